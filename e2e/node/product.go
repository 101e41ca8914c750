package main

// The product, as users install it.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/tools/cache"

	"flux-token-refresher/e2e/internal/await"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/manifests"
)

const (
	secretName = "flux-system"
	keySecret  = "flux-token-refresher-events"
	replicas   = 3
)

// way is one in which the product is installed.
type way interface {
	// apply installs the product with a configuration's section refresh, or changes that. It does not wait for Pods.
	apply(ctx context.Context, refresh string) error
	// remove takes it away; neither its Pods nor its Secret may be gone when it returns.
	remove(ctx context.Context) error
}

// kustomize is an overlay of deploy/kustomize/events, with deploy/flux.
type kustomize struct {
	*world
	objects []*unstructured.Unstructured // as they were applied
}

func (k *kustomize) apply(ctx context.Context, refresh string) (err error) {
	dir, err := os.MkdirTemp(k.dir, "overlay-")
	if err != nil {
		return err
	}
	deploy, err := filepath.Rel(dir, filepath.Join(k.root, "deploy"))
	if err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(k.root, "deploy", "kustomize", "events", "config.yaml"))
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"config.yaml": string(config) + "refresh: " + refresh + "\n",
		"kustomization.yaml": fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%[1]s/kustomize/events, %[1]s/flux]
images: [{name: flux-token-refresher, newName: %[2]s, newTag: %[3]s}]
configMapGenerator:
  - {name: flux-token-refresher-config, namespace: flux-system, behavior: replace, files: [config.yaml]}
patches:
  - target: {kind: ServiceAccount, name: flux-token-refresher}
    patch: |
      - op: replace
        path: /metadata/annotations/azure.workload.identity~1client-id
        value: %[4]s
`, deploy, repository, version, client),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	if k.objects, err = manifests.Build(dir); err != nil {
		return err
	}
	return manifests.Apply(ctx, k.node.Config(), namespace, k.objects)
}

func (k *kustomize) remove(ctx context.Context) error {
	return manifests.Delete(ctx, k.node.Config(), namespace, k.objects)
}

// install makes the key that Flux and the product share, installs, and returns when all replicas are ready.
func (w *world) install(ctx context.Context, by way) error {
	key := applycorev1.Secret(keySecret, namespace).WithStringData(map[string]string{"token": rand.Text() + rand.Text()})
	if _, err := w.Client.CoreV1().Secrets(namespace).Apply(ctx, key, metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
		return err
	}
	if err := by.apply(ctx, "{}"); err != nil {
		return err
	}
	return w.rolledOut(ctx, installation.Account, replicas)
}

// uninstall returns when nothing is left of the product but the key.
func (w *world) uninstall(ctx context.Context, by way) error {
	if err := by.remove(ctx); err != nil {
		return err
	}
	_, err := await.Object(ctx, &corev1.Pod{}, "the last Pod", func(pod *corev1.Pod) bool { return pod == nil },
		cache.NewFilteredListWatchFromClient(w.Client.CoreV1().RESTClient(), "pods", namespace, selected))
	if err != nil {
		return err
	}
	return errors.Join(
		w.Client.CoreV1().Secrets(namespace).Delete(ctx, secretName, metav1.DeleteOptions{}),
		w.Client.CoordinationV1().Leases(namespace).Delete(ctx, installation.Account, metav1.DeleteOptions{}),
	)
}

// selected selects the product's Pods.
func selected(options *metav1.ListOptions) {
	options.LabelSelector = "app.kubernetes.io/name=" + installation.Account
}
