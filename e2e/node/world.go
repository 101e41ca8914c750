package main

// What is around the product: a node with its images, Flux, Entra, Azure DevOps, and the cluster's part of workload identity.

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"flux-token-refresher/e2e/internal/await"
	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/image"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/e2e/internal/node"
	"flux-token-refresher/e2e/internal/toolchain"
	"flux-token-refresher/refresh/azure/azuretest"
)

const (
	namespace = flux.Namespace
	tenant    = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	client    = "5e7d3ec8-7c4c-4f4e-9a3e-0f1d2c3b4a59"

	// The names that the product and Flux use as they are shipped.
	entraHost  = "login.microsoftonline.com"
	devopsHost = "dev.azure.com"

	repository = "localhost/flux-token-refresher"
	version    = "0.0.0-node"
	revision   = "of-the-test"
	imageName  = repository + ":" + version
)

//go:embed identity.yaml
var identity string

// world is a node with everything but the product.
type world struct {
	// Installation is how the product is looked at; it was installed by other means.
	*installation.Installation
	flux.Sources

	dir    string
	root   string // of the repository
	node   *node.Node
	images *image.Builder
	devops *devops.Server
}

// prepare builds and downloads what needs the network.
func prepare(ctx context.Context) error {
	tools := slices.Concat([]toolchain.Tool{toolchain.Etcd, toolchain.KubeAPIServer, toolchain.Kubectl}, flux.Controllers, toolchain.Node)
	for _, tool := range tools {
		if _, err := tool.Build(ctx, os.Stderr); err != nil {
			return err
		}
	}
	return toolchain.DownloadModules(ctx)
}

// startTimeout is generous: the image takes five minutes where Go has to compile all of it.
const startTimeout = 20 * time.Minute

// start gives a world whose Flux is ready. The caller must close it.
func start(ctx context.Context, dir string) (w *world, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	w = &world{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.root, err = toolchain.Root(ctx); err != nil {
		return w, err
	}
	// Images take the processors, a node takes time.
	both, started := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		w.images, err = w.buildImages(started)
		return err
	})
	both.Go(func() (err error) {
		w.node, err = node.Start(started, node.Spec{
			Dir: dir, Progress: os.Stderr, Hosts: map[string]string{entraHost: node.Entra, devopsHost: node.AzureDevOps},
		})
		return err
	})
	if err := both.Wait(); err != nil {
		return w, err
	}
	for _, archive := range archives {
		if err := w.node.Import(ctx, filepath.Join(dir, archive)); err != nil {
			return w, err
		}
	}
	w.Installation = &installation.Installation{Spec: installation.Spec{Cluster: w.node.Cluster, Namespace: namespace}}
	if w.Client, err = kubernetes.NewForConfig(w.node.Config()); err != nil {
		return w, err
	}
	if err := w.emulate(ctx); err != nil {
		return w, err
	}
	if err := w.identify(ctx); err != nil {
		return w, fmt.Errorf("workload identity: %w", err)
	}
	if w.Sources, err = flux.Deploy(ctx, w.node.Cluster); err != nil {
		return w, err
	}
	for _, controller := range flux.Controllers {
		if err := w.rolledOut(ctx, controller.Name, 1); err != nil {
			return w, err
		}
	}
	return w, nil
}

// close ends what is not gone with the namespaces.
func (w *world) close() error {
	var errs []error
	if w.node != nil {
		errs = append(errs, w.node.Stop())
	}
	if w.devops != nil {
		errs = append(errs, w.devops.Close())
	}
	if w.Installation != nil && w.Entra != nil {
		w.Entra.Close()
	}
	return errors.Join(errs...)
}

// archives of images, in the world's folder.
var archives = []string{"pause.tar", "source-controller.tar", "notification-controller.tar", "flux-token-refresher.tar"}

func (w *world) buildImages(ctx context.Context) (*image.Builder, error) {
	b, err := image.New(filepath.Join(w.dir, "images"))
	if err != nil {
		return nil, err
	}
	pause, err := toolchain.Pause(ctx, w.dir)
	if err != nil {
		return nil, err
	}
	if err := b.Program(ctx, node.PauseImage, pause); err != nil {
		return nil, err
	}
	images := map[string]string{"pause.tar": node.PauseImage, "flux-token-refresher.tar": imageName}
	for _, controller := range flux.Controllers {
		path, err := controller.Build(ctx, os.Stderr)
		if err != nil {
			return nil, err
		}
		name, err := flux.Image(ctx, controller)
		if err != nil {
			return nil, err
		}
		if err := b.Program(ctx, name, path); err != nil {
			return nil, err
		}
		images[controller.Name+".tar"] = name
	}
	if err := b.Product(ctx, imageName, map[string]string{"VERSION": version, "REVISION": revision}); err != nil {
		return nil, err
	}
	for archive, name := range images {
		// The product's as a registry would have it; the others need no gzip on their way to the node.
		if err := b.Archive(ctx, name, filepath.Join(w.dir, archive), name == imageName); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// emulate starts an Entra that trusts the product's ServiceAccount, and an Azure DevOps that takes its tokens, where the names of the real
// ones lead.
func (w *world) emulate(ctx context.Context) error {
	federated, err := installation.Federate(ctx, w.node.Cluster, namespace)
	if err != nil {
		return err
	}
	application := azuretest.Application{TenantID: tenant, ClientID: client, Federated: []azuretest.FederatedCredential{federated}}
	w.Entra, err = azuretest.Start(azuretest.Config{
		Address: node.Entra + ":443", Host: entraHost, Applications: []azuretest.Application{application},
	})
	if err != nil {
		return err
	}
	w.devops, err = devops.Start(devops.Config{Entra: w.Entra, Address: node.AzureDevOps + ":443", Host: devopsHost})
	return err
}

// identify makes the namespace, which enforces the restricted Pod Security Standard, and what its Pods get: returns when they do.
func (w *world) identify(ctx context.Context) error {
	core := w.Client.CoreV1()
	options := metav1.ApplyOptions{FieldManager: "e2e"}
	restricted := applycorev1.Namespace(namespace).WithLabels(map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	if _, err := core.Namespaces().Apply(ctx, restricted, options); err != nil {
		return err
	}
	trust := applycorev1.ConfigMap("trust", namespace).
		WithData(map[string]string{"ca.crt": string(slices.Concat(w.Entra.CA(), w.devops.CA()))})
	if _, err := core.ConfigMaps(namespace).Apply(ctx, trust, options); err != nil {
		return err
	}
	objects, err := manifests.Parse([]byte(identity))
	if err != nil {
		return err
	}
	if err := manifests.Apply(ctx, w.node.Config(), namespace, objects); err != nil {
		return err
	}
	for {
		ok, err := w.identifies(ctx)
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// identifies tells whether the policies are in force: one changes a Pod, the other refuses one as long as the ServiceAccount is not there.
func (w *world) identifies(ctx context.Context) (bool, error) {
	yes, no := true, false
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "any", Namespace: namespace},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			SecurityContext:              &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{Name: "any", Image: "any", SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}}},
		},
	}
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	trusts, err := w.Client.CoreV1().Pods(namespace).Create(ctx, pod, dry)
	if apierrors.IsForbidden(err) {
		return false, nil // its ServiceAccount, which is made after the namespace, is not there yet
	}
	if err != nil || len(trusts.Spec.Volumes) == 0 {
		return false, err
	}
	pod.Labels = map[string]string{"azure.workload.identity/use": "true"}
	_, err = w.Client.CoreV1().Pods(namespace).Create(ctx, pod, dry)
	return err != nil, nil
}

// rolledOut returns when a Deployment has n ready Pods of its newest revision, and no others.
func (w *world) rolledOut(ctx context.Context, name string, n int32) error {
	_, err := await.Object(ctx, &appsv1.Deployment{}, "Deployment "+name, func(d *appsv1.Deployment) bool {
		return d != nil && d.Status.ObservedGeneration == d.Generation &&
			d.Status.Replicas == n && d.Status.UpdatedReplicas == n && d.Status.AvailableReplicas == n
	}, cache.NewListWatchFromClient(w.Client.AppsV1().RESTClient(), "deployments", namespace, await.Named(name)))
	return err
}
