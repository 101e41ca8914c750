package flux

// Flux as Pods, on a cluster that has a node.

import (
	"context"
	"fmt"
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/e2e/internal/toolchain"
)

// Controllers are what Deploy deploys.
var Controllers = []toolchain.Tool{toolchain.NotificationController, toolchain.SourceController}

// Deploy installs the controllers with the Deployments and Services of their own repositories, which name what Image gives. It does not
// wait for Pods.
func Deploy(ctx context.Context, in *cluster.Cluster) (Sources, error) {
	client, err := dynamic.NewForConfig(in.Config())
	if err != nil {
		return Sources{}, err
	}
	for _, controller := range Controllers {
		objects, err := deployment(ctx, in, controller)
		if err != nil {
			return Sources{}, fmt.Errorf("deploy %s: %w", controller.Name, err)
		}
		if err := manifests.Apply(ctx, in.Config(), Namespace, objects); err != nil {
			return Sources{}, fmt.Errorf("deploy %s: %w", controller.Name, err)
		}
	}
	return Sources{client}, nil
}

func deployment(ctx context.Context, in *cluster.Cluster, controller toolchain.Tool) ([]*unstructured.Unstructured, error) {
	config, err := prepare(ctx, in, controller)
	if err != nil {
		return nil, err
	}
	objects, err := manifests.Render(filepath.Join(config, "manager"), Namespace)
	if err != nil {
		return nil, err
	}
	for _, object := range objects {
		if object.GetKind() != "Deployment" {
			continue
		}
		pod := []string{"spec", "template", "spec"}
		containers, _, err := unstructured.NestedSlice(object.Object, append(pod, "containers")...)
		if err != nil {
			return nil, err
		}
		container, _ := containers[0].(map[string]any)
		args := []any{"--watch-all-namespaces", "--log-encoding=json"} // one replica elects no leader
		if controller == toolchain.SourceController {
			args = append(args, "--storage-path=/data", "--storage-adv-addr=source-controller."+Namespace+".svc.cluster.local.",
				"--events-addr=http://notification-controller."+Namespace+".svc.cluster.local./")
		}
		container["args"] = args
		if err := unstructured.SetNestedSlice(object.Object, containers, append(pod, "containers")...); err != nil {
			return nil, err
		}
		if err := unstructured.SetNestedField(object.Object, controller.Name, append(pod, "serviceAccountName")...); err != nil {
			return nil, err
		}
	}
	return objects, nil
}

// Image is what the Deployment of a controller runs: that of its version.
func Image(ctx context.Context, controller toolchain.Tool) (string, error) {
	version, err := controller.Version(ctx)
	return "docker.io/fluxcd/" + controller.Name + ":" + version, err
}
