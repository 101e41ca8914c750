package main

// KEEP=1: everything goes on, for somebody who wants to look around.

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"flux-token-refresher/e2e/internal/cluster"
)

const look = `
It goes on until Ctrl-C, with three replicas again (process ids: %[2]s).

  export KUBECONFIG=%[1]s

  kubectl -n flux-system describe secret flux-system        # its annotations, and no token
  kubectl -n flux-system get secret flux-system -w          # each refresh
  kubectl -n flux-system get events
  kubectl -n flux-system get lease flux-token-refresher -w  # who leads
  kubectl -n flux-system annotate --overwrite secret flux-system flux-token-refresher/request=$(date +%%s)
  kubectl -n flux-system delete secret flux-system
  kubectl -n flux-system describe role flux-token-refresher
  curl -s http://%[3]s/metrics | grep ^token_refresher
`

func (d *demo) keep(ctx context.Context, dir string) error {
	for range 2 { // in place of those that were ended, as a Deployment would
		if err := d.startReplica(ctx); err != nil {
			return err
		}
	}
	kubeconfig, err := cluster.Kubeconfig(d.cluster.Config())
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		return err
	}
	leader := d.replicas[holder(d.lease.last(leads).object)]
	address, err := leader.Address(ctx)
	if err != nil {
		return err
	}
	var ids []string
	for _, name := range slices.Sorted(maps.Keys(d.replicas)) {
		select {
		case <-d.replicas[name].Done():
		default:
			ids = append(ids, fmt.Sprintf("%s %d", name, d.replicas[name].PID()))
		}
	}
	fmt.Fprintf(d.out, look, path, strings.Join(ids, ", "), address)
	<-ctx.Done()
	fmt.Fprintln(d.out, "\nEnding everything.")
	return nil
}
