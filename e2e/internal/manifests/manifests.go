// Package manifests installs the product's Kubernetes objects in a test cluster, several times side by side.
package manifests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"flux-token-refresher/e2e/internal/await"
)

// Render gives what an overlay of one namespace line makes of the kustomization in dir, as a user would write it.
func Render(dir, namespace string) ([]*unstructured.Unstructured, error) {
	overlay, err := os.MkdirTemp("", "flux-token-refresher-overlay-")
	if err != nil {
		return nil, err
	}
	objects, err := render(overlay, dir, namespace)
	if err != nil {
		err = fmt.Errorf("render %s for namespace %s: %w", dir, namespace, err)
	}
	return objects, errors.Join(err, os.RemoveAll(overlay))
}

func render(overlay, dir, namespace string) ([]*unstructured.Unstructured, error) {
	// kustomize takes a base by its relative path only, and follows symbolic links first.
	from, err := filepath.EvalSymlinks(overlay)
	if err != nil {
		return nil, err
	}
	base, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if base, err = filepath.EvalSymlinks(base); err != nil {
		return nil, err
	}
	resource, err := filepath.Rel(from, base)
	if err != nil {
		return nil, err
	}
	kustomization := fmt.Sprintf("namespace: %s\nresources: [%q]\n", namespace, resource)
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(kustomization), 0o600); err != nil {
		return nil, err
	}
	return Build(overlay)
}

// Build gives what the kustomization in dir makes, as it is.
func Build(dir string) ([]*unstructured.Unstructured, error) {
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, err
	}
	rendered, err := resources.AsYaml()
	if err != nil {
		return nil, err
	}
	return Parse(rendered)
}

// Parse reads objects from YAML documents.
func Parse(documents []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(documents), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}

// Apply applies the objects (server-side apply, forced, as the client that config names). Objects that belong to no namespace, and what refers to
// them, get the suffix "-NAMESPACE", so that installations in several namespaces leave each other alone.
func Apply(ctx context.Context, config *rest.Config, namespace string, objects []*unstructured.Unstructured) error {
	return each(config, namespace, objects, func(resource dynamic.ResourceInterface, object *unstructured.Unstructured) error {
		options := metav1.ApplyOptions{FieldManager: "e2e", Force: true}
		if _, err := resource.Apply(ctx, object.GetName(), object, options); err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		return nil
	})
}

// Delete deletes what Apply applied, the last first, and returns when each is gone with what belonged to it.
func Delete(ctx context.Context, config *rest.Config, namespace string, objects []*unstructured.Unstructured) error {
	objects = slices.Clone(objects)
	slices.Reverse(objects)
	return each(config, namespace, objects, func(resource dynamic.ResourceInterface, object *unstructured.Unstructured) error {
		foreground := metav1.DeletePropagationForeground
		if err := resource.Delete(ctx, object.GetName(), metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
			return fmt.Errorf("delete %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		_, err := await.Object(ctx, &unstructured.Unstructured{}, object.GetKind()+" "+object.GetName(),
			func(o *unstructured.Unstructured) bool { return o == nil }, await.Dynamic(resource, object.GetName()))
		return err
	})
}

// each does something to each object, under the name that it has in the cluster.
func each(
	config *rest.Config, namespace string, objects []*unstructured.Unstructured,
	do func(dynamic.ResourceInterface, *unstructured.Unstructured) error,
) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	kinds, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(kinds))
	rename := func(name string) string { return name + "-" + namespace }
	renamed := map[string]bool{} // kind/name
	mappings := make([]*meta.RESTMapping, len(objects))
	for i, object := range objects {
		gvk := object.GroupVersionKind()
		if mappings[i], err = mapper.RESTMapping(gvk.GroupKind(), gvk.Version); err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		if mappings[i].Scope.Name() == meta.RESTScopeNameRoot && object.GetKind() != "Namespace" {
			renamed[object.GetKind()+"/"+object.GetName()] = true
		}
	}
	for i, object := range objects {
		object = object.DeepCopy()
		if renamed[object.GetKind()+"/"+object.GetName()] {
			object.SetName(rename(object.GetName()))
		}
		if kind, path := reference(object); kind != "" {
			name, _, err := unstructured.NestedString(object.Object, path...)
			if err != nil {
				return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
			}
			if renamed[kind+"/"+name] {
				_ = unstructured.SetNestedField(object.Object, rename(name), path...) // a string was read there
			}
		}
		var resource dynamic.ResourceInterface = client.Resource(mappings[i].Resource)
		if mappings[i].Scope.Name() == meta.RESTScopeNameNamespace {
			resource = client.Resource(mappings[i].Resource).Namespace(object.GetNamespace())
		}
		if err := do(resource, object); err != nil {
			return err
		}
	}
	return nil
}

// reference tells what kind of object another one names, and in which field; "" when it names none.
func reference(object *unstructured.Unstructured) (kind string, path []string) {
	switch object.GetKind() {
	case "RoleBinding", "ClusterRoleBinding":
		kind, _, _ = unstructured.NestedString(object.Object, "roleRef", "kind")
		return kind, []string{"roleRef", "name"}
	case "ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicyBinding":
		return strings.TrimSuffix(object.GetKind(), "Binding"), []string{"spec", "policyName"}
	}
	return "", nil
}
