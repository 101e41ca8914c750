package main

// The story: what is done, what has to come of it, and by when.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// calm lies between two parts, for whoever reads along. It is more than the second or two that the product itself leaves
// between repairs of one Secret.
const calm = 3 * time.Second

func (d *demo) tell(ctx context.Context) error {
	chapters := []struct {
		title  string
		within time.Duration
		run    func(context.Context) error
	}{
		{"The first token", 30 * time.Second, d.first},
		{"A refresh by the timer", 90 * time.Second, d.timer},
		{"Somebody deletes the Secret", 20 * time.Second, d.deleted},
		{"Somebody writes another token into it", 20 * time.Second, d.overwritten},
		{"Somebody asks for a new token", 20 * time.Second, d.requested},
		{"The leader is stopped (SIGTERM), as by a rolling update", 30 * time.Second, d.stopped},
		{"The leader is killed (SIGKILL), as by a node that dies", 60 * time.Second, d.killed},
		{"And the timer goes on, with the last replica", 90 * time.Second, d.timer},
	}
	for n, c := range chapters {
		if n > 0 {
			if err := pause(ctx, calm); err != nil {
				return err
			}
		}
		d.chapter(c.title)
		bounded, cancel := context.WithTimeoutCause(ctx, c.within, fmt.Errorf("not within %s", c.within))
		err := c.run(bounded)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", c.title, err)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

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

// wrote tells what is wrong with a write of the product, and with the number of requests that Entra has got by then.
func (d *demo) wrote(s *corev1.Secret, reason refresh.Reason, minted int) error {
	if got := s.Annotations[secret.Reason]; got != string(reason) {
		return fmt.Errorf("the token was written for %s, want %s", got, reason)
	}
	return d.stillAt(minted)
}

func (d *demo) stillAt(minted int) error {
	if got := d.installed.Entra.Requests(); got != minted {
		return fmt.Errorf("by now Entra has got %d token requests, want %d", got, minted)
	}
	return nil
}

func (d *demo) secrets() typedcorev1.SecretInterface {
	return d.installed.Client.CoreV1().Secrets(namespace)
}

// command shows what a person would type for what the demo does through the API.
func (d *demo) command(line string) { d.did("$ %s", line) }

// good tells whether a Secret holds a token that Entra takes now, with the annotations that are about it.
func (d *demo) good(s *corev1.Secret) bool {
	if s == nil {
		return false
	}
	token := string(s.Data["bearerToken"])
	_, err := d.installed.Entra.Validate(token, azuretest.AzureDevOps)
	return err == nil && hash(s) == refresh.Hash(token)
}

// other tells of a good token that is another one.
func (d *demo) other(than *corev1.Secret) func(*corev1.Secret) bool {
	return func(s *corev1.Secret) bool { return d.good(s) && hash(s) != hash(than) }
}

// ours tells whether a request came from the product.
func (d *demo) ours(r cluster.Request) bool {
	return r.User == "system:serviceaccount:"+namespace+":"+installation.Account
}

func hash(s *corev1.Secret) string { return s.Annotations[secret.TokenHash] }

func expiry(s *corev1.Secret) time.Time { return moment(s, secret.ExpiresAt) }

// moment reads an annotation; what is no time is zero, which nothing that is awaited here agrees with.
func moment(s *corev1.Secret, annotation string) time.Time {
	t, _ := time.Parse(time.RFC3339, s.Annotations[annotation])
	return t
}

// left says how much time is left, in whole seconds, as the annotations are.
func left(until, from time.Time) string { return fmt.Sprintf("%.0f s", until.Sub(from).Seconds()) }

// holder is the replica in a Lease, whose holderIdentity has something random behind its name.
func holder(l *coordinationv1.Lease) string {
	if l == nil || l.Spec.HolderIdentity == nil {
		return ""
	}
	name, _, _ := strings.Cut(*l.Spec.HolderIdentity, "_")
	return name
}

func leads(l *coordinationv1.Lease) bool { return holder(l) != "" }
