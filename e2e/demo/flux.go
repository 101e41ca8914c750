package main

// What stands around the product: Flux's controllers, and the Azure DevOps that they read from.

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/refresh/azure/azuretest"
)

const (
	// eventsSecret holds the key that notification-controller and the replicas share, under eventsKey.
	eventsSecret = "flux-token-refresher-events"
	eventsKey    = "token"
	// eventsVolume is where a pod of deploy/kustomize/events mounts it.
	eventsVolume = "/etc/flux-token-refresher-events"
)

// startFlux starts both controllers.
func (d *demo) startFlux(ctx context.Context, dir string) (err error) {
	started := time.Now()
	if d.flux, err = flux.Start(ctx, flux.Spec{Cluster: d.cluster, Dir: filepath.Join(dir, "flux"), Progress: d.out}); err != nil {
		return err
	}
	ending := context.WithoutCancel(ctx)
	d.closers = append(d.closers, func() error {
		ctx, cancel := context.WithTimeout(ending, 10*time.Second)
		defer cancel()
		return d.flux.Stop(ctx)
	})
	d.measured(short(time.Since(started)), "source-controller and notification-controller start, and are ready")
	return nil
}

// makeKey makes the key of the events as deploy/flux/kustomization.yaml says, and gives the folder where it is mounted.
func (d *demo) makeKey(ctx context.Context, dir string) (mounted string, err error) {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails (crypto/rand)
	key := hex.EncodeToString(random)
	d.command("kubectl -n flux-system create secret generic " + eventsSecret + " \\")
	d.more(`    --from-literal=token="$(openssl rand -hex 32)"`)
	client, err := kubernetes.NewForConfig(d.cluster.Config())
	if err != nil {
		return "", err
	}
	object := applycorev1.Secret(eventsSecret, namespace).WithStringData(map[string]string{eventsKey: key})
	if _, err := client.CoreV1().Secrets(namespace).Apply(ctx, object, metav1.ApplyOptions{FieldManager: "kubectl-create"}); err != nil {
		return "", err
	}
	mounted = filepath.Join(dir, "events")
	if err := os.MkdirAll(mounted, 0o700); err != nil {
		return "", err
	}
	return mounted, os.WriteFile(filepath.Join(mounted, eventsKey), []byte(key), 0o600)
}

// startDevOps starts an Azure DevOps that takes the tokens of entra. It gives what the
// product's configuration says of it: in a cluster, verifyHosts is dev.azure.com by itself.
func (d *demo) startDevOps(entra *azuretest.Entra, dir string) (config string, err error) {
	if d.devops, err = devops.Start(devops.Config{Entra: entra}); err != nil {
		return "", err
	}
	d.closers = append(d.closers, d.devops.Close)
	ca := filepath.Join(dir, "devops-ca.pem")
	return fmt.Sprintf("\nrefresh: {cooldown: %s, verifyHosts: [%q], verifyCAFile: %q}\n",
		cooldown, strings.TrimPrefix(d.devops.URL(), "https://"), ca), os.WriteFile(ca, d.devops.CA(), 0o600)
}

// notify applies deploy/flux. Its Provider sends to a follower: there is no Service without a node.
func (d *demo) notify(ctx context.Context) error {
	follower, err := d.follower()
	if err != nil {
		return err
	}
	receiving, err := follower.Output.Wait(ctx, func(r process.Record) bool { return r["msg"] == "receiving events" })
	if err != nil {
		return fmt.Errorf("%s receives no events: %w", follower.Name(), err)
	}
	objects, err := manifests.Render("../deploy/flux", namespace)
	if err != nil {
		return err
	}
	for _, object := range objects {
		if object.GetKind() != "Provider" {
			continue
		}
		if err := unstructured.SetNestedField(object.Object, fmt.Sprintf("http://%s/events", receiving["address"]), "spec", "address"); err != nil {
			return err
		}
	}
	if err := manifests.Apply(ctx, d.cluster.Config(), namespace, objects); err != nil {
		return err
	}
	d.command("kubectl apply -k deploy/flux")
	d.more("its Provider sends to %s here, a follower", follower.Name())
	return nil
}

// follower gives a replica that runs and does not lead.
func (d *demo) follower() (*replica.Replica, error) {
	leader := holder(d.lease.last(leads).object)
	for _, name := range d.running() {
		if name != leader {
			return d.replicas[name], nil
		}
	}
	return nil, errors.New("no replica follows")
}

// running gives the names of the replicas that have not ended.
func (d *demo) running() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(d.replicas)), func(name string) bool {
		select {
		case <-d.replicas[name].Done():
			return true
		default:
			return false
		}
	})
}
