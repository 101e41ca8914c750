package main

// What runs, from its start to its end.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/refresh/azure/azuretest"
)

const (
	namespace = "flux-system"
	target    = "flux-system" // the Secret
	caKey     = "ca.crt"      // in it, for Flux

	// Tokens live a 60th of their time, and so does what lies between two mints that somebody requested.
	shortest, longest = 60 * time.Second, 70 * time.Second
	cooldown          = 500 * time.Millisecond
)

type demo struct {
	timeline
	rows    []row // of the table at the end
	closers []func() error

	cluster   *cluster.Cluster
	spans     *otlp.Receiver
	flux      *flux.Flux
	installed *installation.Installation
	devops    *devops.Server
	replicas  map[string]*replica.Replica
	secret    *history[*corev1.Secret]
	lease     *history[*coordinationv1.Lease]
	source    *source   // the GitRepository that fails and recovers
	event     otlp.Span // about it
}

func newDemo(out io.Writer) *demo {
	return &demo{timeline: timeline{out: out, started: time.Now()}, replicas: map[string]*replica.Replica{}}
}

// start brings up everything but the replicas.
func (d *demo) start(ctx context.Context, binaries cluster.Binaries, product, dir string) (err error) {
	d.did("etcd and kube-apiserver start")
	started := time.Now()
	if d.cluster, err = cluster.Start(ctx, binaries, filepath.Join(dir, "cluster")); err != nil {
		return err
	}
	d.closers = append(d.closers, d.cluster.Stop)
	d.measured(short(time.Since(started)), "they are ready")

	if d.spans, err = otlp.Start(); err != nil {
		return err
	}
	d.closers = append(d.closers, d.spans.Close)
	if err := d.startFlux(ctx, dir); err != nil {
		return err
	}
	if err := d.install(ctx, product, dir); err != nil {
		return err
	}
	client := d.installed.Client
	if d.secret, err = follow[*corev1.Secret](ctx, target, client.CoreV1().Secrets(namespace).Watch); err != nil {
		return err
	}
	d.closers = append(d.closers, d.secret.close)
	if d.lease, err = follow[*coordinationv1.Lease](ctx, installation.Account, client.CoordinationV1().Leases(namespace).Watch); err != nil {
		return err
	}
	d.closers = append(d.closers, d.lease.close)
	return nil
}

// install applies what a user applies, beside an Entra that trusts the product and an Azure DevOps that takes its tokens.
func (d *demo) install(ctx context.Context, product, dir string) error {
	key, err := d.makeKey(ctx, dir)
	if err != nil {
		return err
	}
	var failed error
	d.installed, err = installation.Start(ctx, installation.Spec{
		Cluster: d.cluster, Binary: product, Manifests: "../deploy/kustomize", Overlay: "events", Dir: dir, Namespace: namespace,
		Volumes: map[string]string{eventsVolume: key},
		Entra:   azuretest.Config{MinLifetime: shortest, MaxLifetime: longest},
		Peers: func(entra *azuretest.Entra) (config string) {
			config, failed = d.startDevOps(entra, dir)
			return config
		},
		Env: d.spans.Env(),
	})
	if err != nil {
		return errors.Join(failed, err)
	}
	d.closers = append(d.closers, func() error { d.installed.Close(); return nil })
	if failed != nil {
		return failed
	}
	d.command("kubectl apply -k deploy/kustomize/events")
	d.more("and Entra trusts its ServiceAccount")
	return nil
}

// startReplica starts one more of the Deployment's pods.
func (d *demo) startReplica(ctx context.Context) error {
	name := fmt.Sprintf("refresher-%d", len(d.replicas))
	r, err := d.installed.Replica(ctx, name, "")
	if err != nil {
		return err
	}
	d.replicas[name] = r
	ending := context.WithoutCancel(ctx)
	d.closers = append(d.closers, func() error {
		ctx, cancel := context.WithTimeout(ending, 10*time.Second)
		defer cancel()
		return r.Stop(ctx)
	})
	return nil
}

// close ends what was started, the last first.
func (d *demo) close() error {
	var errs []error
	for _, end := range slices.Backward(d.closers) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// showLogs shows what the replicas and Flux wrote, for somebody who looks for a failure.
func (d *demo) showLogs() {
	for _, name := range slices.Sorted(maps.Keys(d.replicas)) {
		fmt.Fprintf(d.out, "\n%s wrote:\n%s", name, d.replicas[name].Output)
	}
	fmt.Fprintf(d.out, "\nsource-controller wrote:\n%s", d.flux.Source.Log(namespace))
	fmt.Fprintf(d.out, "\nnotification-controller wrote:\n%s", d.flux.Notification.Log(namespace))
}
