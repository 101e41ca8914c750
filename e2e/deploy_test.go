package e2e

// What deploy/kustomize renders to: the rights that `config rbac` gives, also when the installation is renamed; and objects
// that a real API server takes.

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
)

const (
	kustomizeBase    = "../deploy/kustomize/base"
	kustomizeAccount = "../deploy/kustomize/account"
)

func TestKustomize(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		folder string
		want   types.NamespacedName
	}{
		"the base": {
			folder: kustomizeBase,
			want:   types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
		},
		"another namespace": {
			folder: overlay(t, "tokens", "", ""),
			want:   types.NamespacedName{Namespace: "tokens", Name: "flux-token-refresher"},
		},
		"another name": {
			folder: overlay(t, "flux-system", "prod-", "-2"),
			want:   types.NamespacedName{Namespace: "flux-system", Name: "prod-flux-token-refresher-2"},
		},
		"another namespace and name": {
			folder: overlay(t, "tokens", "prod-", ""),
			want:   types.NamespacedName{Namespace: "tokens", Name: "prod-flux-token-refresher"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects, err := manifests.Render(test.folder, test.want.Namespace)
			if err != nil {
				t.Fatal(err)
			}
			var configMap corev1.ConfigMap
			objects = take(t, objects, "ConfigMap", &configMap)
			c, err := config.Parse("config.yaml", []byte(configMap.Data["config.yaml"]), nil)
			if err != nil {
				t.Fatal(err)
			}
			var account corev1.ServiceAccount
			objects = take(t, objects, "ServiceAccount", &account)
			if got := (types.NamespacedName{Namespace: account.Namespace, Name: account.Name}); got != test.want {
				t.Errorf("ServiceAccount %s, want %s", got, test.want)
			}
			var deployment appsv1.Deployment
			objects = take(t, objects, "Deployment", &deployment)
			pod := deployment.Spec.Template.Spec
			if deployment.Namespace != account.Namespace || pod.ServiceAccountName != account.Name {
				t.Errorf("the Deployment is in %s and runs as %s, want %s", deployment.Namespace, pod.ServiceAccountName, test.want)
			}
			if mounted := pod.Volumes[0].ConfigMap.Name; configMap.Namespace != account.Namespace || mounted != configMap.Name {
				t.Errorf("the Deployment reads the ConfigMap %s, there is %s/%s", mounted, configMap.Namespace, configMap.Name)
			}

			// Everything else is rights.
			got, want := map[string]any{}, map[string]any{}
			for _, object := range objects {
				got[title(object)] = object.Object
			}
			for _, object := range rbac.Objects(c, test.want) {
				content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
				if err != nil {
					t.Fatal(err)
				}
				delete(content, "status")
				want[title(&unstructured.Unstructured{Object: content})] = content
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("rights are not those of config rbac (-want +got)\n%s", diff)
			}
		})
	}
}

// TestKustomizeInCluster: a namespace that enforces the restricted Pod Security Standard takes all of it, and its pods.
func TestKustomizeInCluster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	namespace, client := newNamespace(t), newClient(t)
	_, err := client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifests.Render(kustomizeBase, namespace)
	if err != nil {
		t.Fatal(err)
	}
	if err := manifests.Apply(ctx, controlPlane.Config(), namespace, objects); err != nil {
		t.Fatal(err)
	}
	var deployment appsv1.Deployment
	take(t, objects, "Deployment", &deployment)
	pod := &corev1.Pod{ObjectMeta: deployment.Spec.Template.ObjectMeta, Spec: deployment.Spec.Template.Spec}
	pod.GenerateName = deployment.Name + "-"
	if _, err := client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Errorf("a pod of the Deployment: %v", err)
	}
}

// overlay writes an overlay over the base, whose targets are in namespace, and gives its folder.
func overlay(t *testing.T, namespace, prefix, suffix string) string {
	t.Helper()
	folder := t.TempDir()
	relative := func(path string) string {
		t.Helper()
		absolute, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		out, err := filepath.Rel(folder, absolute)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	base, err := os.ReadFile(filepath.Join(kustomizeBase, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"config.yaml": strings.ReplaceAll(string(base), "flux-system/", namespace+"/"),
		"kustomization.yaml": `
resources: [` + relative(kustomizeBase) + `]
namePrefix: "` + prefix + `"
nameSuffix: "` + suffix + `"
transformers: [` + relative(kustomizeAccount) + `]
configMapGenerator:
  - {name: flux-token-refresher-config, namespace: flux-system, behavior: replace, files: [config.yaml]}
`,
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// take decodes the one object of a kind, and gives the others.
func take(t *testing.T, objects []*unstructured.Unstructured, kind string, into any) []*unstructured.Unstructured {
	t.Helper()
	is := func(object *unstructured.Unstructured) bool { return object.GetKind() == kind }
	i := slices.IndexFunc(objects, is)
	if i < 0 || slices.ContainsFunc(objects[i+1:], is) {
		t.Fatalf("there is not one %s", kind)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(objects[i].Object, into); err != nil {
		t.Fatal(err)
	}
	return slices.Delete(slices.Clone(objects), i, i+1)
}

// title is what an object is called in messages.
func title(object *unstructured.Unstructured) string {
	return object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
}
