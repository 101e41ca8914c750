package main

// KEEP=1: everything goes on, for somebody who wants to look around.

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"flux-token-refresher/e2e/internal/cluster"
)

const look = `
Until Ctrl-C (process ids: %[2]s).

  export KUBECONFIG=%[1]s

  kubectl -n flux-system describe secret flux-system        # its annotations, and no token
  kubectl -n flux-system get secret flux-system -w          # each refresh
  kubectl -n flux-system get events
  kubectl -n flux-system get lease flux-token-refresher -w  # who leads
  kubectl -n flux-system annotate --overwrite secret flux-system flux-token-refresher/request=$(date +%%s)
  kubectl -n flux-system delete secret flux-system          # the token is back; ca.crt is not, and Flux needs it here
  kubectl -n flux-system describe role flux-token-refresher
  curl -s http://%[3]s/metrics | grep ^token_refresher

  kubectl -n flux-system get gitrepositories -w             # the sources
  kubectl -n flux-system describe alert,provider            # who sends their failures, and where to
  kubectl -n flux-system patch gitrepository apps --type=merge \
      -p '{"spec":{"url":"%[4]s"}}'
                                                            # not there: an event, and StillValid on the Secret
  curl -s http://%[5]s/metrics | grep '^token_refresher_events.* [^0]'
`

func (d *demo) keep(ctx context.Context, dir string) error {
	d.chapter("It goes on, with three replicas again")
	for range 2 { // in place of those that were ended, as a Deployment would
		if err := d.startReplica(ctx); err != nil {
			return err
		}
	}
	if err := d.notify(ctx); err != nil { // the follower that got the events was ended, too
		return err
	}
	kubeconfig, err := cluster.Kubeconfig(d.cluster.Config())
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		return err
	}
	leader, err := d.replicas[holder(d.lease.last(leads).object)].Address(ctx)
	if err != nil {
		return err
	}
	following, err := d.follower()
	if err != nil {
		return err
	}
	follower, err := following.Address(ctx)
	if err != nil {
		return err
	}
	var ids []string
	for _, name := range d.running() {
		ids = append(ids, fmt.Sprintf("%s %d", name, d.replicas[name].PID()))
	}
	fmt.Fprintf(d.out, look, path, strings.Join(ids, ", "), leader, d.devops.URL()+"/org/project/_git/none", follower)
	<-ctx.Done()
	fmt.Fprintln(d.out, "\nEnding everything.")
	return nil
}
