package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

// seeded gives the Secret that a row of docs/decisions.md describes; nil when it does not exist.
func (r row) seeded(t *testing.T) *corev1.Secret {
	t.Helper()
	s := good()
	set := func(key, value string) {
		switch at := when(time.Now(), value); {
		case value == "none":
			delete(s.Annotations, key)
		case at.IsZero():
			s.Annotations[key] = value
		default:
			s.Annotations[key] = at.UTC().Format(time.RFC3339)
		}
	}
	for key, value := range r.secret {
		switch key {
		case "good", "create", "about":
		case "exists":
			return nil
		case "immutable":
			s.Immutable = new(true)
		case "type":
			s.Type = corev1.SecretType(value)
		case "content":
			delete(s.Data, "bearerToken")
			if value == "other" {
				s.Data["bearerToken"] = []byte("somebody's")
			}
		case "request":
			s.Annotations[secret.Request] = "please"
			if about := r.secret["about"]; about != "" {
				hash := map[string]string{"current": current.Hash, "other": other.Hash}[about]
				s.Annotations[secret.RequestContext] = fmt.Sprintf(`{"request":"please","about":%q}`, hash)
			}
			if value == "handled" {
				s.Annotations[secret.HandledRequest] = refresh.Hash("please")
			}
		default:
			set("flux-token-refresher/"+key, value)
		}
	}
	return s
}

// TestDecisionsAreCarriedOut runs the rows of docs/decisions.md in which a leader starts with nothing, from the
// Secret to what is written to it.
func TestDecisionsAreCarriedOut(t *testing.T) {
	t.Parallel()
	for name, r := range decisions(t) {
		if len(r.knows) > 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				target := target
				target.Create = r.secret["create"] == "yes"
				w := newWorld(target)
				before := r.seeded(t)
				if before != nil {
					if err := w.store.Create(t.Context(), "somebody", before); err != nil {
						t.Fatal(err)
					}
				}
				writes := len(w.store.Writes())
				w.lead(t)()

				made := w.store.Writes()[writes:]
				if len(r.writes) == 0 {
					if len(made) != 0 {
						t.Fatalf("%d writes, want none; the last: %v", len(made), made[len(made)-1].Secret.Annotations)
					}
					return
				}
				if len(made) != 1 {
					t.Fatalf("%d writes, want one", len(made))
				}
				got, want := made[0].Secret.Annotations, append(r.writes, "")[:2]
				if reason := got[secret.Reason]; want[0] != "-" && reason != want[0] {
					t.Errorf("reason %q, want %q", reason, want[0])
				}
				if outcome := got[secret.HandledOutcome]; outcome != want[1] {
					t.Errorf("handled-outcome %q, want %q", outcome, want[1])
				}
				if minted := len(w.source.Mints()); (minted == 1) != (r.action == refresh.Mint) {
					t.Errorf("%d mints for %q", minted, r.action)
				}
			})
		})
	}
}

func TestRepairsDoNotMint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		created := target
		created.Create, created.Labels = true, map[string]string{"team": "a"}
		w := newWorld(created)
		defer w.lead(t)()
		token := string(w.secret(t, target.Name).Data["bearerToken"])
		written := w.secret(t, target.Name).Annotations[secret.RefreshedAt]

		for _, harm := range []func(){
			func() { _ = w.store.Delete(t.Context(), target.Name) },
			func() {
				w.edit(t, target.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("overwritten") })
			},
			func() { w.edit(t, target.Name, func(s *corev1.Secret) { delete(s.Data, "bearerToken") }) },
			func() { w.edit(t, target.Name, func(s *corev1.Secret) { s.Annotations[secret.ConfigHash] = "x" }) },
		} {
			time.Sleep(2 * time.Minute) // fake; longer than repairs are paced
			harm()
			synctest.Wait()
			if got := string(w.secret(t, target.Name).Data["bearerToken"]); got != token {
				t.Errorf("the Secret holds %q, want the held token", got)
			}
			// The token may have failed before it was repaired; an event that tells so late still concerns it.
			if got := w.secret(t, target.Name).Annotations[secret.RefreshedAt]; got != written {
				t.Errorf("refreshed-at is %s after a repair, want %s", got, written)
			}
		}
		if got := len(w.source.Mints()); got != 1 {
			t.Errorf("%d mints for a creation and four repairs, want 1", got)
		}
	})
}

func TestContention(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		before := len(w.store.Writes())
		// Somebody overwrites the key once a second for ten minutes.
		for range 600 {
			w.edit(t, target.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("theirs") })
			time.Sleep(time.Second)
		}
		ours := 0
		for _, write := range w.store.Writes()[before:] {
			if write.Manager == secret.Actor {
				ours++
			}
		}
		// 1+2+4+8+16+32 s are six repairs, then one a minute.
		if ours < 12 || ours > 17 {
			t.Errorf("%d repairs in ten minutes, want about 15", ours)
		}
		if mints := len(w.source.Mints()); mints > 2 {
			t.Errorf("%d mints, want one for the first repair of this term and at most one at the token's time", mints)
		}
		told := w.recorder.Events()
		if len(told) == 0 || told[0].Reason != "Contended" || !told[0].Warning || !strings.Contains(told[0].Note, "somebody") {
			t.Errorf("events %v, want Contended naming the field manager", told)
		}
		time.Sleep(2 * time.Minute)
		if got := string(w.secret(t, target.Name).Data["bearerToken"]); got == "theirs" {
			t.Error("it was not repaired after they stopped")
		}
	})
}

// TestRareOverwritesAreRepairedAtOnce: a kustomization with the key in Git comes back every ten minutes.
func TestRareOverwritesAreRepairedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return 24 * time.Hour }
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		for i := range 20 {
			w.edit(t, target.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("theirs") })
			synctest.Wait()
			if got := string(w.secret(t, target.Name).Data["bearerToken"]); got == "theirs" {
				t.Fatalf("overwrite %d was not repaired at once", i+1)
			}
			time.Sleep(10 * time.Minute)
		}
		// The first was repaired with a new token, as this term held none; the next two are nobody's habit yet.
		if told := w.recorder.Events(); len(told) != 17 {
			t.Errorf("%d Contended events for 20 overwrites, want 17", len(told))
		}
	})
}

func many(n int) []refresh.Target {
	targets := make([]refresh.Target, n)
	for i := range targets {
		targets[i] = target
		targets[i].Name.Name = fmt.Sprintf("secret-%d", i)
		targets[i].Create = true
	}
	return targets
}

func TestOneMintManySecrets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		targets := many(1000)
		w := newWorld(targets...)
		w.source.Latency = time.Second
		defer w.lead(t)()
		time.Sleep(2 * time.Second)
		if got := len(w.source.Mints()); got != 1 {
			t.Fatalf("%d mints for 1000 Secrets of one identity, want 1", got)
		}
		// All are asked for a refresh at once: one token was revoked.
		for _, target := range targets {
			w.request(t, target.Name, "revoked")
		}
		time.Sleep(2 * time.Second)
		if got := len(w.source.Mints()); got != 2 {
			t.Errorf("%d mints after a thousand requests about one token, want 2", got)
		}
		for _, target := range targets {
			s := w.secret(t, target.Name)
			if s.Annotations[secret.HandledOutcome] != string(refresh.Refreshed) || refresh.Hash(string(s.Data["bearerToken"])) != w.source.Mints()[1].Token.Hash {
				t.Fatalf("%s: %v", target.Name, s.Annotations)
			}
		}
	})
}

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
		if got := w.series(t)["token_refresher.refresh.failing{namespace=flux-system,secret=flux-system}"]; got != 1 {
			t.Errorf("failing is %v after the only try failed", got)
		}
		w.edit(t, target.Name, func(s *corev1.Secret) { s.Annotations[secret.Suspend] = "true" })
		synctest.Wait()
		if got := w.series(t)["token_refresher.refresh.failing{namespace=flux-system,secret=flux-system}"]; got != 0 {
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

func TestConflictKeepsTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.store.Fail(refreshtest.Times(3, refresh.ErrConflict))
		defer w.lead(t)()
		w.request(t, target.Name, "1")
		time.Sleep(10 * time.Second)
		if got := w.secret(t, target.Name).Annotations[secret.HandledOutcome]; got != "Refreshed" {
			t.Errorf("handled-outcome %q", got)
		}
		if got := len(w.source.Mints()); got != 1 {
			t.Errorf("%d mints for three conflicts, want 1", got)
		}
		if got := w.series(t)["token_refresher.refreshes{namespace=flux-system,outcome=Conflicted,reason=RefreshRequested,secret=flux-system}"]; got != 3 {
			t.Errorf("%g conflicts counted, want 3", got)
		}
	})
}

func TestAPIOutageKeepsTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.store.Fail(func(refresh.Name) error { return refreshtest.Unavailable() })
		defer w.lead(t)()
		time.Sleep(16 * time.Minute) // a minute after the refresh was due
		w.store.Fail(nil)
		time.Sleep(2 * time.Minute) // longer than the longest delay by then
		if got := refresh.Hash(string(w.secret(t, target.Name).Data["bearerToken"])); len(w.source.Mints()) != 1 || got != w.source.Mints()[0].Token.Hash {
			t.Errorf("%d mints; the Secret holds %s, want the one token that was minted during the outage", len(w.source.Mints()), got)
		}
	})
}

func TestNotLeadingStartsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(3)...)
		var leads atomic.Bool
		w.Fresh = leads.Load
		defer w.lead(t)()
		time.Sleep(time.Minute)
		if mints, writes := w.source.Mints(), w.store.Writes(); len(mints) != 0 || len(writes) != 0 {
			t.Fatalf("%d mints and %d writes without the lease", len(mints), len(writes))
		}
		leads.Store(true)
		time.Sleep(2 * time.Second)
		if got := len(w.store.Writes()); got != 3 {
			t.Errorf("%d writes with the lease, want 3", got)
		}
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

func TestNewLeaderMintsNothingThatIsGood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(100)...)
		w.lead(t)()
		writes := len(w.store.Writes())
		for range 5 {
			w.source = &refreshtest.Source{}
			w.Source = w.source
			w.lead(t)()
			if mints := w.source.Mints(); len(mints) != 0 {
				t.Fatalf("a new leader made %d mints", len(mints))
			}
		}
		if got := len(w.store.Writes()); got != writes {
			t.Errorf("%d writes by new leaders, want none", got-writes)
		}
	})
}

func TestWaitingIsSaidOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		defer w.lead(t)()
		time.Sleep(time.Hour)
		if got := strings.Count(w.logs.String(), `"reason":"SecretMissing"`); got != 1 {
			t.Errorf("said %d times that the Secret is missing", got)
		}
		refused := good()
		refused.Type = corev1.SecretTypeTLS
		if err := w.store.Create(t.Context(), "somebody", refused); err != nil {
			t.Fatal(err)
		}
		w.edit(t, target.Name, func(s *corev1.Secret) { s.Annotations["x"] = "y" })
		synctest.Wait()
		if told := w.recorder.Events(); len(told) != 1 || told[0].Reason != "Refused" {
			t.Errorf("events %v, want one Refused", told)
		}
		series := w.series(t)
		for _, reason := range []string{"SecretMissing", "Refused"} {
			if got := series["token_refresher.refreshes{namespace=flux-system,outcome=Waiting,reason="+reason+",secret=flux-system}"]; got != 1 {
				t.Errorf("%s counted %g times, want once", reason, got)
			}
		}
		if err := w.store.Delete(t.Context(), target.Name); err != nil {
			t.Fatal(err)
		}
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.request(t, target.Name, "1")
		synctest.Wait()
		if got := w.secret(t, target.Name).Annotations[secret.HandledOutcome]; got != "Refreshed" {
			t.Errorf("handled-outcome %q after the wait ended", got)
		}
	})
}

func TestMetricsGoWithTheTerm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		created := target
		created.Create = true
		w := newWorld(created)
		start := float64(time.Now().Unix())
		stop := w.lead(t)
		want := map[string]float64{
			"token_refresher.refreshes{namespace=flux-system,outcome=Refreshed,reason=SecretMissing,secret=flux-system}": 1,
			"token_refresher.token.expiry.timestamp{namespace=flux-system,secret=flux-system}":                           start + 3600,
			"token_refresher.next_refresh.timestamp{namespace=flux-system,secret=flux-system}":                           start + 2700,
			"token_refresher.refresh.duration{outcome=Refreshed,reason=SecretMissing}":                                   1,
			"token_refresher.refresh.failing{namespace=flux-system,secret=flux-system}":                                  0,
		}
		if diff := cmp.Diff(want, w.series(t)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		stop()
		for name := range w.series(t) {
			if strings.Contains(name, "secret=") {
				t.Errorf("%s is still there after the term", name)
			}
		}
	})
}

func TestSpans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		seed := good()
		const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
		seed.Annotations[secret.Request] = "r"
		seed.Annotations[secret.RequestContext] = `{"request":"r","traceparent":"00-` + traceID + `-00f067aa0ba902b7-01"}`
		if err := w.store.Create(t.Context(), "somebody", seed); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		spans := map[string]trace.ReadOnlySpan{}
		for _, s := range w.spans.Ended() {
			spans[s.Name()] = s
		}
		root := spans["refresh"]
		if root == nil || len(spans) != 4 {
			t.Fatalf("spans %v", spans)
		}
		if root.SpanKind() != oteltrace.SpanKindConsumer || root.Parent().TraceID().String() != traceID || root.Status().Code != codes.Unset {
			t.Errorf("kind %v, parent %v, status %v", root.SpanKind(), root.Parent(), root.Status())
		}
		attributes := map[string]string{}
		for _, a := range root.Attributes() {
			attributes[string(a.Key)] = a.Value.String()
		}
		if diff := cmp.Diff(map[string]string{
			"refresh.target": "flux-system/flux-system", "refresh.reason": "RefreshRequested", "refresh.outcome": "Refreshed",
			"token.expires_at": w.source.Mints()[0].Token.Expires.UTC().Format(time.RFC3339),
			"messaging.system": "kubernetes", "messaging.destination.name": "flux-system/flux-system",
			"messaging.operation.type": "process", "messaging.operation.name": "refresh",
		}, attributes); diff != "" {
			t.Errorf("attributes of refresh: -want +got:\n%s", diff)
		}
		for _, child := range []string{"token.acquire", "secret.apply", "flux.wake"} {
			if s := spans[child]; s == nil || s.Parent().SpanID() != root.SpanContext().SpanID() {
				t.Errorf("%s is not a child of refresh", child)
			}
		}
	})
}

// TestReusedTokenLeadsToItsMint: whoever asks where the token in a Secret comes from finds the trace in which it was minted.
func TestReusedTokenLeadsToItsMint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := target, target
		first.Create, second.Create = true, true
		second.Name.Name = "second"
		w := newWorld(first, second)
		w.lead(t)()
		reused := attribute.Bool("token.reused", true)
		var minted, taken trace.ReadOnlySpan
		for _, s := range w.spans.Ended() {
			switch {
			case s.Name() != "token.acquire":
			case slices.Contains(s.Attributes(), reused):
				taken = s
			default:
				minted = s
			}
		}
		if minted == nil || taken == nil {
			t.Fatal("one target mints, and the other takes its token")
		}
		if links := taken.Links(); len(links) != 1 || !links[0].SpanContext.Equal(minted.SpanContext()) || len(minted.Links()) != 0 {
			t.Errorf("the token that was taken links to %v, and its mint to %v", links, minted.Links())
		}
	})
}

// TestSpansOfFailures: each says what failed in a word, in a sentence and as an event; what nobody asked for consumes nothing.
func TestSpansOfFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		created := target
		created.Create = true
		w := newWorld(created)
		failure := &refresh.Error{Class: refresh.Misconfigured, Code: "AADSTS700016", Text: "the application is not in the tenant"}
		w.fail(func(refresh.MintKey) error { return failure })
		w.lead(t)()
		ended := w.spans.Ended()
		if len(ended) != 2 || ended[0].Name() != "token.acquire" || ended[1].Name() != "refresh" {
			t.Fatalf("spans %v", ended)
		}
		for _, s := range ended {
			if s.Status().Code != codes.Error || s.Status().Description != failure.Error() {
				t.Errorf("%s: status %v", s.Name(), s.Status())
			}
			if !slices.Contains(s.Attributes(), attribute.String("error.type", "misconfigured")) {
				t.Errorf("%s: attributes %v", s.Name(), s.Attributes())
			}
			if len(s.Events()) != 1 || !slices.Contains(s.Events()[0].Attributes, attribute.String("exception.message", failure.Error())) {
				t.Errorf("%s: events %v", s.Name(), s.Events())
			}
			if s.SpanKind() != oteltrace.SpanKindInternal {
				t.Errorf("%s is a %s", s.Name(), s.SpanKind())
			}
		}
	})
}

// TestUnknownErrorsSayNothing: an error that is not ours could quote a server.
func TestUnknownErrorsSayNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.fail(func(refresh.MintKey) error { return errors.New("body: eyJsecret") })
		defer w.lead(t)()
		w.request(t, target.Name, "1")
		synctest.Wait()
		out := w.logs.String() + fmt.Sprint(w.recorder.Events())
		for _, s := range w.spans.Ended() {
			out += fmt.Sprint(s.Attributes(), s.Status(), s.Events())
		}
		if strings.Contains(out, "eyJsecret") || !strings.Contains(out, "not shown") {
			t.Errorf("told: %s", out)
		}
	})
}

func TestOnce(t *testing.T) {
	t.Parallel()
	bad := many(1)[0]
	bad.Mint.Identity = "bad"
	bad.Name.Name = "bad"
	missing := target
	missing.Name.Name = "missing"
	for name, test := range map[string]struct {
		targets []refresh.Target
		within  time.Duration
		mints   int
		errors  []string
	}{
		"good":             {[]refresh.Target{target}, 0, 0, nil},
		"soon due":         {[]refresh.Target{target}, 20 * time.Minute, 1, nil},
		"always due":       {[]refresh.Target{target}, 48 * time.Hour, 1, nil},
		"created":          {many(20), 0, 1, nil},
		"one fails":        {append(many(20), bad), 0, 2, []string{"Secret flux-system/bad: no such application"}},
		"one is missing":   {[]refresh.Target{target, missing}, 0, 0, []string{"Secret flux-system/missing: the Secret does not exist"}},
		"several failures": {[]refresh.Target{bad, missing}, 0, 1, []string{"bad", "missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(test.targets...)
				w.Policy.Within = test.within
				w.fail(func(key refresh.MintKey) error {
					if key.Identity == "bad" {
						return &refresh.Error{Class: refresh.Misconfigured, Text: "no such application"}
					}
					return nil
				})
				if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
					t.Fatal(err)
				}
				err := w.Once(t.Context())
				if (err == nil) != (test.errors == nil) {
					t.Fatalf("error %v, want %v", err, test.errors)
				}
				for _, want := range test.errors {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q, want %q in it", err, want)
					}
				}
				if got := len(w.source.Mints()); got != test.mints {
					t.Errorf("%d mints, want %d", got, test.mints)
				}
			})
		})
	}
}

func TestOnceEndsWithItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(1)...)
		w.Fresh = func() bool { return false }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.Once(ctx); err == nil || !strings.Contains(err.Error(), "flux-system/secret-0") {
			t.Errorf("error %v, want the target that was not refreshed", err)
		}
	})
}
