package main

// The chapters about the leader, and who leads.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"flux-token-refresher/e2e/internal/cluster"
)

func (d *demo) stopped(ctx context.Context) error {
	leader := holder(d.lease.last(leads).object)
	minted, seen := d.installed.Entra.Requests(), len(d.lease.all())
	mark, err := d.cluster.Audit.Mark(ctx)
	if err != nil {
		return err
	}
	d.did("SIGTERM to %s", leader)
	began := time.Now()
	if err := d.replicas[leader].Stop(ctx); err != nil {
		return err
	}
	ended := time.Since(began)
	if code, err := d.replicas[leader].Wait(ctx); err != nil || code != 0 {
		return errors.Join(err, fmt.Errorf("it ended with exit code %d", code))
	}
	released, err := d.lease.await(ctx, seen, func(l *coordinationv1.Lease) bool { return holder(l) == "" })
	if err != nil {
		return err
	}
	led, err := d.follows(ctx, mark, seen, leader)
	if err != nil {
		return err
	}
	d.measured(short(released.seen.Sub(began)), "%s gave back the Lease, and ended in order after %s", leader, short(ended))
	d.measured(short(led.seen.Sub(began))+" after the signal", "%s leads; requests to Entra: %d, as before", holder(led.object), minted)
	d.row("the leader stopped (SIGTERM) → another one leads", led.seen.Sub(began), "no mint")
	return d.stillAt(minted)
}

func (d *demo) killed(ctx context.Context) error {
	leader := holder(d.lease.last(leads).object)
	minted := d.installed.Entra.Requests()
	mark, err := d.cluster.Audit.Mark(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := d.replicas[leader].Kill(); err != nil {
		return err
	}
	d.did("SIGKILL to %s; its Lease is for 15 s, and nobody gives it back", leader)
	led, err := d.follows(ctx, mark, len(d.lease.all()), leader)
	if err != nil {
		return err
	}
	renewed := d.lease.last(func(l *coordinationv1.Lease) bool { return holder(l) == leader }).seen
	d.measured(short(led.seen.Sub(began))+" after the kill", "%s leads; requests to Entra: %d, as before", holder(led.object), minted)
	d.more("that is %s after the last renewal by %s", short(led.seen.Sub(renewed)), leader)
	d.row("the leader killed (SIGKILL): its last renewal → another one leads", led.seen.Sub(renewed), "no mint")
	return d.stillAt(minted)
}

// follows waits until another replica leads, and has looked at the Secret.
func (d *demo) follows(ctx context.Context, mark cluster.Position, seen int, leader string) (state[*coordinationv1.Lease], error) {
	led, err := d.lease.await(ctx, seen, func(l *coordinationv1.Lease) bool { return leads(l) && holder(l) != leader })
	if err != nil {
		return led, err
	}
	_, err = d.cluster.Audit.Wait(ctx, mark, 1, func(r cluster.Request) bool { return d.ours(r) && r.Resource == "secrets" && r.Verb == "watch" })
	return led, err
}

// holder is the replica in a Lease, whose holderIdentity has something random behind its name.
func holder(l *coordinationv1.Lease) string {
	if l == nil || l.Spec.HolderIdentity == nil {
		return ""
	}
	name, _, _ := strings.Cut(*l.Spec.HolderIdentity, "_")
	return name
}

func leads(l *coordinationv1.Lease) bool { return holder(l) != "" }
