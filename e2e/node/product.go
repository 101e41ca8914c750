package main

// The product, as users install it.

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

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
	deploy, err := filepath.Abs("../deploy")
	if err != nil {
		return err
	}
	if deploy, err = filepath.Rel(dir, deploy); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join("..", "deploy", "kustomize", "events", "config.yaml"))
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
