package main

// The product, by Helm.

import (
	"context"
	"fmt"
	"path/filepath"

	"flux-token-refresher/e2e/internal/chart"
	"flux-token-refresher/e2e/internal/installation"
)

// helm is a release of deploy/helm/flux-token-refresher, with Flux's end of the events.
type helm struct {
	*world
	release   chart.Release
	installed bool
}

func (h *helm) apply(ctx context.Context, refresh string) error {
	h.release = chart.Release{
		Dir: filepath.Join(h.root, "deploy", "helm", "flux-token-refresher"), Name: installation.Account, Namespace: namespace,
		Values: fmt.Sprintf(`
image: {repository: %s, tag: %s}
workloadIdentity: {clientID: %s}
events: {enabled: true}
flux: {notifications: true}
config: {refresh: %s}
`, repository, version, client, refresh),
	}
	apply := h.release.Install
	if h.installed {
		apply = h.release.Upgrade
	}
	h.installed = true
	return apply(ctx, h.node.Config(), h.dir)
}

func (h *helm) remove(context.Context) error { return h.release.Uninstall(h.node.Config(), h.dir) }
