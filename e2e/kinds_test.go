package e2e

// Flux's kinds as far as rights go: their resources, and an object of each.

import (
	"context"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// sourceKind is one of Flux's kinds that read a Secret.
type sourceKind struct {
	group, resource, kind string
	// spec is one that Flux's own definition takes too.
	spec map[string]any
}

var gitRepository = sourceKind{
	"source.toolkit.fluxcd.io", "gitrepositories", "GitRepository", map[string]any{"url": "https://git.example/repo", "interval": "1m", "ignore": "*.md"},
}

var sourceKinds = []sourceKind{
	gitRepository,
	{"source.toolkit.fluxcd.io", "buckets", "Bucket", map[string]any{"bucketName": "b", "endpoint": "git.example", "interval": "1m"}},
	{"source.toolkit.fluxcd.io", "helmcharts", "HelmChart", map[string]any{
		"chart": "c", "interval": "1m", "sourceRef": map[string]any{"kind": "HelmRepository", "name": "source"}}},
	{"source.toolkit.fluxcd.io", "helmrepositories", "HelmRepository", map[string]any{"url": "https://git.example/charts"}},
	{"source.toolkit.fluxcd.io", "ocirepositories", "OCIRepository", map[string]any{"url": "oci://git.example/repo", "interval": "1m"}},
	{"image.toolkit.fluxcd.io", "imagerepositories", "ImageRepository", map[string]any{"image": "git.example/image", "interval": "1m"}},
	{"image.toolkit.fluxcd.io", "imageupdateautomations", "ImageUpdateAutomation", map[string]any{
		"interval": "1m", "sourceRef": map[string]any{"kind": "GitRepository", "name": "source"}}},
}

func (k sourceKind) gvr() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.group, Version: "v1", Resource: k.resource}
}

// object is one of this kind, the caller's own.
func (k sourceKind) object(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": k.group + "/v1", "kind": k.kind, "metadata": map[string]any{"name": name}, "spec": runtime.DeepCopyJSON(k.spec),
	}}
}

// newDynamic gives the administrator's client for kinds of all sorts.
func newDynamic(t *testing.T) dynamic.Interface {
	t.Helper()
	client, err := dynamic.NewForConfig(controlPlane.Config())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// installSources makes the kinds known to the shared control plane, where nobody did. Flux's own come first: where its definitions take the place
// of others, kube-apiserver ends watches of them, and for a moment serves none.
func installSources(ctx context.Context, t *testing.T) {
	t.Helper()
	fluxOf(t)
	definitions := newDynamic(t).Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	})
	for _, k := range sourceKinds {
		anything := map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}
		definition := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
			"metadata": map[string]any{"name": k.resource + "." + k.group},
			"spec": map[string]any{
				"group": k.group, "scope": "Namespaced",
				"names": map[string]any{"plural": k.resource, "kind": k.kind},
				"versions": []any{map[string]any{
					"name": "v1", "served": true, "storage": true,
					"subresources": map[string]any{"status": map[string]any{}},
					"schema": map[string]any{"openAPIV3Schema": map[string]any{
						"type": "object", "properties": map[string]any{"spec": anything, "status": anything},
					}},
				}},
			},
		}}
		if _, err := definitions.Create(ctx, definition, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	for _, k := range sourceKinds {
		until(ctx, t, k.kind+" is served", func(ctx context.Context) (bool, error) {
			_, err := newDynamic(t).Resource(k.gvr()).Namespace("default").List(ctx, metav1.ListOptions{})
			if apierrors.IsNotFound(err) {
				return false, nil
			}
			return err == nil, err
		})
	}
}
