package main

// The chapters about the token: how it comes into the Secret, and back into it.

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

func (d *demo) first(ctx context.Context) error {
	began := time.Now()
	for range 3 {
		if err := d.startReplica(ctx); err != nil {
			return err
		}
	}
	d.did("refresher-0, refresher-1 and refresher-2 start; there is no Secret yet")
	led, err := d.lease.await(ctx, 0, leads)
	if err != nil {
		return err
	}
	d.did("%s leads", holder(led.object))
	written, err := d.secret.await(ctx, 0, d.good)
	if err != nil {
		return err
	}
	if err := d.wrote(written.object, refresh.SecretMissing, 1); err != nil {
		return err
	}
	took := written.seen.Sub(began)
	d.measured(short(took), "token %s stands in the Secret, good for %s", hash(written.object), left(expiry(written.object), written.seen))
	d.row("three replicas start → the first token in the Secret", took, "1 mint")
	return nil
}

func (d *demo) timer(ctx context.Context) error {
	before, seen, minted := d.secret.last(d.good).object, len(d.secret.all()), d.installed.Entra.Requests()
	due := moment(before, secret.RefreshAt)
	d.did("token %s is to be refreshed at %s, in %s; nothing to do until then",
		hash(before), due.Local().Format(time.TimeOnly), left(due, time.Now()))
	written, err := d.secret.await(ctx, seen, d.other(before))
	if err != nil {
		return err
	}
	if err := d.wrote(written.object, refresh.RefreshDue, minted+1); err != nil {
		return err
	}
	if !written.seen.Before(expiry(before)) {
		return fmt.Errorf("the old token had ended at %s", expiry(before).Local().Format(time.TimeOnly))
	}
	took := written.seen.Sub(due)
	d.measured(short(took)+" after its time", "token %s took its place, %s before the old one ends",
		hash(written.object), left(expiry(before), written.seen))
	d.row("the timer of "+holder(d.lease.last(leads).object)+": refresh-at → a new token in the Secret", took, "1 mint")
	return nil
}

func (d *demo) deleted(ctx context.Context) error {
	d.command("kubectl -n flux-system delete secret flux-system")
	return d.repaired(ctx, "deleted", refresh.SecretMissing, func(ctx context.Context) error {
		return d.secrets().Delete(ctx, target, metav1.DeleteOptions{})
	})
}

func (d *demo) overwritten(ctx context.Context) error {
	const change = `{"stringData":{"bearerToken":"mine"}}`
	d.command("kubectl -n flux-system patch secret flux-system --type=merge \\")
	d.more("    -p '%s'", change)
	return d.repaired(ctx, "overwritten", refresh.TokenAltered, func(ctx context.Context) error {
		_, err := d.secrets().Patch(ctx, target, types.MergePatchType, []byte(change), metav1.PatchOptions{FieldManager: "kubectl-patch"})
		return err
	})
}

// repaired does something to the Secret, and sees the same token in it again, without a mint.
func (d *demo) repaired(ctx context.Context, done string, reason refresh.Reason, do func(context.Context) error) error {
	before, seen, minted := d.secret.last(d.good).object, len(d.secret.all()), d.installed.Entra.Requests()
	began := time.Now()
	if err := do(ctx); err != nil {
		return err
	}
	if _, err := d.secret.await(ctx, seen, func(s *corev1.Secret) bool { return !d.good(s) }); err != nil {
		return err
	}
	written, err := d.secret.await(ctx, seen, func(s *corev1.Secret) bool {
		return d.good(s) && s.ResourceVersion != before.ResourceVersion
	})
	if err != nil {
		return err
	}
	if hash(written.object) != hash(before) {
		return fmt.Errorf("token %s was there, now %s is", hash(before), hash(written.object))
	}
	if err := d.wrote(written.object, reason, minted); err != nil {
		return err
	}
	took := written.seen.Sub(began)
	d.measured(short(took), "token %s is back; requests to Entra: %d, as before", hash(written.object), minted)
	d.row("the Secret "+done+" → the same token in it again", took, "no mint")
	return nil
}

func (d *demo) requested(ctx context.Context) error {
	before, seen, minted := d.secret.last(d.good).object, len(d.secret.all()), d.installed.Entra.Requests()
	wish := fmt.Sprint(time.Now().Unix())
	d.command("kubectl -n flux-system annotate --overwrite secret flux-system \\")
	d.more("    %s=$(date +%%s)", secret.Request)
	// What kubectl annotate sends.
	change, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{secret.Request: wish}}})
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := d.secrets().Patch(ctx, target, types.MergePatchType, change, metav1.PatchOptions{FieldManager: "kubectl-annotate"}); err != nil {
		return err
	}
	written, err := d.secret.await(ctx, seen, d.other(before))
	if err != nil {
		return err
	}
	if err := d.wrote(written.object, refresh.RefreshRequested, minted+1); err != nil {
		return err
	}
	annotations := written.object.Annotations
	if annotations[secret.HandledRequest] != refresh.Hash(wish) || annotations[secret.HandledOutcome] != string(refresh.Refreshed) {
		return fmt.Errorf("the request is not noted as handled, but as %q, %q", annotations[secret.HandledRequest], annotations[secret.HandledOutcome])
	}
	took := written.seen.Sub(began)
	d.measured(short(took), "token %s took its place; handled-outcome: %s", hash(written.object), annotations[secret.HandledOutcome])
	d.row("a request → a new token in the Secret", took, "1 mint")
	return nil
}
