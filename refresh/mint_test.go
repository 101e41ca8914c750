package refresh_test

// An issuer that is slow, fails or gives the same token again.

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

// TestSlowIssuerHoldsUpNobodyElse: more targets than workers wait for an identity that hangs.
func TestSlowIssuerHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		targets := many(51)
		quick := &targets[50]
		quick.Mint.Identity = "quick"
		w := newWorld(targets...)
		slow := make(chan struct{})
		w.Source = sourceFunc{w.source, func(key refresh.MintKey) {
			if key.Identity != "quick" {
				<-slow
			}
		}}
		defer w.lead(t)()
		if s, _ := w.store.Get(t.Context(), quick.Name); s == nil {
			t.Error("a target waits for another identity's issuer")
		}
		close(slow)
		synctest.Wait()
		if got := len(w.store.Writes()); got != 51 {
			t.Errorf("%d Secrets written in the end, want 51", got)
		}
	})
}

// sourceFunc lets a test stand between a Refresher and its issuer.
type sourceFunc struct {
	*refreshtest.Source
	before func(refresh.MintKey)
}

func (s sourceFunc) Token(ctx context.Context, key refresh.MintKey, notHash string) (refresh.Token, error) {
	s.before(key)
	return s.Source.Token(ctx, key, notHash)
}

func TestFailedRefreshLeavesTheTokenAndRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		seed := good()
		if err := w.store.Create(t.Context(), "somebody", seed); err != nil {
			t.Fatal(err)
		}
		w.fail(func(refresh.MintKey) error {
			return &refresh.Error{Class: refresh.Unavailable, Code: "503", Text: "Entra does not answer"}
		})
		defer w.lead(t)()
		due := time.Now().Add(15 * time.Minute)
		expires := time.Now().Add(30 * time.Minute)
		time.Sleep(time.Until(expires))

		if got := string(w.secret(t, target.Name).Data["bearerToken"]); got != "current" {
			t.Errorf("the Secret holds %q, want the token that still worked", got)
		}
		mints := w.source.Mints()
		if len(mints) < 10 || len(mints) > 40 {
			t.Errorf("%d tries in the 15 minutes that were left", len(mints))
		}
		if first := mints[0].At; first.Before(due) || first.After(due.Add(time.Second)) {
			t.Errorf("first try at %s, due at %s", first, due)
		}
		if last := mints[len(mints)-1].At; expires.Sub(last) > 3*time.Second {
			t.Errorf("the last try was %s before the end: a try should fit in", expires.Sub(last))
		}
		if told := w.recorder.Events(); len(told) != 1 || told[0].Reason != "RefreshFailed" || told[0].Note != "503: Entra does not answer" {
			t.Errorf("events %v, want one RefreshFailed", told)
		}
		const failing = "token_refresher.refresh.failing{namespace=flux-system,secret=flux-system}"
		if got := w.series(t)[failing]; got != 1 {
			t.Errorf("failing is %v while every try fails", got)
		}
		w.fail(nil)
		time.Sleep(5 * time.Minute)
		if got := string(w.secret(t, target.Name).Data["bearerToken"]); got == "current" {
			t.Error("no refresh after Entra came back")
		}
		if got := w.series(t)[failing]; got != 0 {
			t.Errorf("failing is %v after Entra came back", got)
		}
	})
}

func TestRequestAfterAPermanentErrorEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.fail(func(refresh.MintKey) error {
			return &refresh.Error{Class: refresh.Misconfigured, Code: "AADSTS700016", Text: "no such application"}
		})
		defer w.lead(t)()
		w.request(t, target.Name, "1")
		synctest.Wait()
		if got := w.secret(t, target.Name).Annotations; got[secret.HandledRequest] != refresh.Hash("1") || got[secret.HandledOutcome] != "Failed" {
			t.Errorf("annotations %v, want the request handled as Failed", got)
		}
		// No other try is due, and the next one will fail as this one did.
		const failing = "token_refresher.refresh.failing{namespace=flux-system,secret=flux-system}"
		if got := w.series(t)[failing]; got != 1 {
			t.Errorf("failing is %v after the only try failed", got)
		}
		w.edit(t, target.Name, func(s *corev1.Secret) { s.Annotations[secret.Suspend] = "true" })
		synctest.Wait()
		if got := w.series(t)[failing]; got != 0 {
			t.Errorf("failing is %v while it is suspended", got)
		}
		w.edit(t, target.Name, func(s *corev1.Secret) { delete(s.Annotations, secret.Suspend) })
		w.fail(func(refresh.MintKey) error { return refreshtest.Unavailable() })
		time.Sleep(2 * time.Minute)
		w.request(t, target.Name, "2")
		time.Sleep(time.Second)
		if got := w.secret(t, target.Name).Annotations; got[secret.HandledRequest] == refresh.Hash("2") {
			t.Error("a request that failed for now was called handled")
		}
		w.fail(nil)
		time.Sleep(time.Minute)
		if got := w.secret(t, target.Name).Annotations; got[secret.HandledRequest] != refresh.Hash("2") || got[secret.HandledOutcome] != "Refreshed" {
			t.Errorf("annotations %v, want the second request Refreshed", got)
		}
	})
}

func TestRequestsCoolDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		for i := range 100 {
			w.request(t, target.Name, fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		mints := w.source.Mints()
		if len(mints) < 4 || len(mints) > 5 {
			t.Errorf("%d mints for 100 requests in 100 s, want one every 30 s", len(mints))
		}
		time.Sleep(policy.Cooldown)
		if got := w.secret(t, target.Name).Annotations[secret.HandledRequest]; got != refresh.Hash("99") {
			t.Error("the last request was never handled")
		}
		told := w.recorder.Events()
		if len(told) == 0 || told[0].Reason != "Refreshed" || told[0].Warning {
			t.Errorf("events %v, want Refreshed", told)
		}
	})
}

func TestSameTokenAgainIsUnchanged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sticky := target
		sticky.Create = true
		w := newWorld(sticky)
		w.source.Sticky = true
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return 24 * time.Hour }
		defer w.lead(t)()
		written := w.secret(t, target.Name)
		w.request(t, target.Name, "1")
		synctest.Wait()
		got := w.secret(t, target.Name)
		if got.Annotations[secret.HandledOutcome] != "Unchanged" || got.Annotations[secret.HandledRequest] != refresh.Hash("1") {
			t.Errorf("annotations %v, want Unchanged", got.Annotations)
		}
		if got.Annotations[secret.RefreshedAt] != written.Annotations[secret.RefreshedAt] || got.Annotations[secret.RefreshAt] == written.Annotations[secret.RefreshAt] {
			t.Errorf("annotations %v: refresh-at alone moves", got.Annotations)
		}
		asked := len(w.source.Mints())
		time.Sleep(23 * time.Hour)
		if again := len(w.source.Mints()) - asked; again < 1 || again > 12 {
			t.Errorf("asked %d more times in a day for a token that does not change", again)
		}
		if said := strings.Count(w.logs.String(), "the issuer gave the same token again"); said != 1 {
			t.Errorf("said it %d times", said)
		}
		w.request(t, target.Name, "2")
		synctest.Wait()
		if said := strings.Count(w.logs.String(), "the issuer gave the same token again"); said != 2 {
			t.Errorf("who asked got no answer: said %d times", said)
		}
	})
}

// TestSameTokenAgainAnswersAll: the issuer is asked once for all the Secrets that hold the token which it insists on, and once more when it can
// have another one. Who demands a token asks it anew.
func TestSameTokenAgainAnswersAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 200
		w := newWorld(many(n)...)
		w.source.Sticky = true
		w.source.Latency = time.Second
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return 24 * time.Hour }
		start := time.Now()
		// asked sleeps until so long after the start, and expects so many requests to the issuer by then.
		asked := func(at time.Duration, want int) {
			t.Helper()
			time.Sleep(at - time.Since(start))
			if got := len(w.source.Mints()); got != want {
				t.Fatalf("%d requests for %d Secrets of one token after %s, want %d", got, n, at, want)
			}
		}
		defer w.lead(t)()
		asked(17*time.Hour, 1)
		// Due after three quarters of the day, then half-way to its end each time.
		asked(20*time.Hour, 2)
		asked(22*time.Hour, 3)
		for _, target := range w.Targets {
			at, err := time.Parse(time.RFC3339, w.secret(t, target.Name).Annotations[secret.RefreshAt])
			if err != nil || at.Sub(start) < 22*time.Hour || at.Sub(start) > 23*time.Hour {
				t.Fatalf("%s: refresh-at is %s after the first token (%v), want half-way to its end", target.Name, at.Sub(start), err)
			}
		}
		before := len(w.store.Writes())
		w.request(t, w.Targets[0].Name, "first")
		time.Sleep(500 * time.Millisecond)
		for _, target := range w.Targets[1:] { // while the first is answered
			w.request(t, target.Name, "others")
		}
		asked(22*time.Hour+5*time.Second, 5)
		for _, target := range w.Targets {
			if got := w.secret(t, target.Name).Annotations[secret.HandledOutcome]; got != string(refresh.Unchanged) {
				t.Fatalf("%s: handled-outcome %q, want Unchanged", target.Name, got)
			}
		}
		if writes := len(w.store.Writes()) - before; writes != 2*n {
			t.Errorf("%d writes, want each request and its answer", writes)
		}
		asked(22*time.Hour+30*time.Minute, 5)
		asked(23*time.Hour+5*time.Minute, 6)
	})
}

// TestLeaseLostWhileMinting: the mint began under the lease, the write must not.
func TestLeaseLostWhileMinting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(1)...)
		var leads atomic.Bool
		leads.Store(true)
		w.Fresh = leads.Load
		w.source.Latency = 10 * time.Second
		defer w.lead(t)()
		leads.Store(false)
		time.Sleep(time.Minute)
		if mints, writes := w.source.Mints(), w.store.Writes(); len(mints) != 1 || len(writes) != 0 {
			t.Errorf("%d mints, %d writes, want one mint and no write", len(mints), len(writes))
		}
	})
}
