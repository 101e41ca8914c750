package refresh_test

// What must stay bounded, or happen at once, when people, issuers and clocks do odd things.

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

// seed puts good Secrets there for the targets, changed.
func (w *world) seed(t *testing.T, change func(*corev1.Secret)) {
	t.Helper()
	for _, target := range w.Targets {
		s := good()
		s.Name = target.Name.Name
		if change != nil {
			change(s)
		}
		if err := w.store.Create(t.Context(), "somebody", s); err != nil {
			t.Fatal(err)
		}
	}
}

func annotate(key string, ahead time.Duration) func(*corev1.Secret) {
	return func(s *corev1.Secret) { s.Annotations[key] = time.Now().Add(ahead).UTC().Format(time.RFC3339) }
}

func misconfigured(refresh.MintKey) error {
	return &refresh.Error{Class: refresh.Misconfigured, Code: "AADSTS700016", Text: "no such application"}
}

// TestForgedTimesMintNothing: who may annotate a Secret cannot make us ask the issuer again and again.
func TestForgedTimesMintNothing(t *testing.T) {
	t.Parallel()
	for name, forge := range map[string]func(*corev1.Secret){
		"refresh-at in the past":     func(s *corev1.Secret) { s.Annotations[secret.RefreshAt] = "1999-01-01T00:00:00Z" },
		"expires-at in the past":     func(s *corev1.Secret) { s.Annotations[secret.ExpiresAt] = "1999-01-01T00:00:00Z" },
		"refresh-at is taken away":   func(s *corev1.Secret) { delete(s.Annotations, secret.RefreshAt) },
		"refreshed-at in the future": func(s *corev1.Secret) { s.Annotations[secret.RefreshedAt] = "2999-01-01T00:00:00Z" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(many(1)...)
				target := w.Targets[0]
				defer w.lead(t)()
				time.Sleep(time.Minute)
				for range 100 {
					w.edit(t, target.Name, forge)
					time.Sleep(200 * time.Millisecond)
				}
				time.Sleep(time.Minute)
				if got := len(w.source.Mints()); got != 1 {
					t.Errorf("%d mints, want the first alone", got)
				}
				ours := -1 // the first
				for _, write := range w.store.Writes() {
					if write.Manager == secret.Actor {
						ours++
					}
				}
				if ours < 1 || ours > 8 {
					t.Errorf("%d writes against 100 forgeries in 20 s", ours)
				}
				s := w.secret(t, target.Name)
				if at, err := time.Parse(time.RFC3339, s.Annotations[secret.RefreshAt]); err != nil || at.Before(time.Now()) {
					t.Errorf("refresh-at is %q in the end", s.Annotations[secret.RefreshAt])
				}
			})
		})
	}
}

func TestTokensOfMoreThanADay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(1)...)
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return 28 * time.Hour }
		defer w.lead(t)()
		time.Sleep(17 * time.Hour)
		if mints, writes := len(w.source.Mints()), len(w.store.Writes()); mints != 1 || writes != 1 {
			t.Errorf("%d mints and %d writes in 17 hours, want one", mints, writes)
		}
		time.Sleep(2 * time.Hour)
		if got := len(w.source.Mints()); got != 2 {
			t.Errorf("%d mints after 19 hours, want 2: no token is trusted for more than a day", got)
		}
	})
}

// TestRotationIsOneMintAndOneWrite: times that fall between whole seconds, as the annotations hold them, make no difference.
func TestRotationIsOneMintAndOneWrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(10)...)
		w.source.Latency = 333 * time.Millisecond
		time.Sleep(456 * time.Millisecond)
		defer w.lead(t)()
		time.Sleep(24 * time.Hour)
		mints, writes := len(w.source.Mints()), len(w.store.Writes())
		if mints < 24 || writes != 10*mints {
			t.Errorf("%d writes of 10 Secrets for %d mints in a day", writes, mints)
		}
		if told := w.recorder.Events(); len(told) != 0 {
			t.Errorf("events %v of a day on which nothing happened", told)
		}
	})
}

func TestRefreshInOfNextToNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(1)...)
		w.source.RefreshIn = time.Millisecond
		defer w.lead(t)()
		time.Sleep(5 * time.Minute)
		if got := len(w.source.Mints()); got > 11 {
			t.Errorf("%d mints in five minutes", got)
		}
	})
}

// TestMendedIsTriedAtOnce: after a configuration error lasted, a request means that somebody mended it, whatever state the
// Secret is in by then; and once it worked, nothing of the long delay is left.
func TestMendedIsTriedAtOnce(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*corev1.Secret){
		"the token is due":     annotate(secret.RefreshAt, -time.Minute),
		"the token has ended":  annotate(secret.ExpiresAt, -time.Minute),
		"the token is missing": func(s *corev1.Secret) { delete(s.Data, "bearerToken") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(target)
				w.source.Lifetime = func(refresh.MintKey) time.Duration { return 5 * time.Minute }
				w.seed(t, change)
				w.fail(misconfigured)
				defer w.lead(t)()
				time.Sleep(40 * time.Minute)
				if got := len(w.source.Mints()); got > 30 { // more of them towards the end of a token that still works
					t.Errorf("%d tries in 40 minutes of a permanent error", got)
				}
				w.fail(nil)
				w.request(t, target.Name, "mended")
				synctest.Wait()
				if got := w.secret(t, target.Name).Annotations[secret.HandledOutcome]; got != "Refreshed" {
					t.Fatalf("handled-outcome %q at once after it was mended", got)
				}
				for range 60 {
					time.Sleep(time.Minute)
					ends, err := time.Parse(time.RFC3339, w.secret(t, target.Name).Annotations[secret.ExpiresAt])
					if err != nil || time.Now().After(ends) {
						t.Fatalf("expires-at %s, now %s: an expired token while the issuer answers", ends, time.Now())
					}
				}
			})
		})
	}
}

// TestPermanentFailureIsOneMint: however many targets ask for it.
func TestPermanentFailureIsOneMint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(100)...)
		w.source.Latency = time.Second
		w.fail(misconfigured)
		w.seed(t, func(s *corev1.Secret) { s.Annotations[secret.Request] = "revoked" })
		defer w.lead(t)()
		time.Sleep(50 * time.Second)
		if got := len(w.source.Mints()); got != 1 {
			t.Errorf("%d mints for a hundred requests about one identity that is not right, want 1", got)
		}
		failed, failing := 0.0, 0.0
		for name, n := range w.series(t) {
			switch {
			case strings.Contains(name, "refreshes{") && strings.Contains(name, "outcome=Failed"):
				failed += n
			case strings.Contains(name, "refresh.failing{"):
				failing += n
			}
		}
		if failed != 100 || failing != 100 {
			t.Errorf("%g failures counted, and %g failing, for 100 targets", failed, failing)
		}
		for _, target := range w.Targets {
			if got := w.secret(t, target.Name).Annotations[secret.HandledOutcome]; got != "Failed" {
				t.Fatalf("%s: handled-outcome %q, want Failed", target.Name, got)
			}
		}
		if got := strings.Count(w.logs.String(), "refresh failed"); got != 100 {
			t.Errorf("%d lines name a target that failed, want each once", got)
		}
	})
}

// TestRetryFitsTheOwnValidity: what another target can wait for does not count.
func TestRetryFitsTheOwnValidity(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(2)...)
		first, second := w.Targets[0], w.Targets[1]
		w.Targets = w.Targets[1:]
		w.seed(t, func(s *corev1.Secret) {
			annotate(secret.ExpiresAt, 10*time.Minute)(s)
			annotate(secret.RefreshAt, 5*time.Minute)(s)
		})
		w.Targets = []refresh.Target{first, second}
		w.fail(func(refresh.MintKey) error {
			return &refresh.Error{Class: refresh.Throttled, Code: "429", Text: "later", RetryAfter: 30 * time.Minute}
		})
		defer w.lead(t)()
		start := time.Now()
		time.Sleep(10 * time.Minute)
		tries := 0
		for _, mint := range w.source.Mints() {
			if mint.At.Sub(start) >= 5*time.Minute {
				tries++
			}
		}
		if tries < 2 {
			t.Errorf("%d tries while %s came to its end", tries, second.Name)
		}
	})
}

// TestParkedTargets: while a mint is under way, changes of a Secret neither add up nor go unseen.
func TestParkedTargets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(3)...)
		w.source.Latency = 10 * time.Second
		w.fail(func(refresh.MintKey) error { return &refresh.Error{Class: refresh.Unavailable, Text: "away"} })
		w.seed(t, annotate(secret.RefreshAt, -time.Minute))
		defer w.lead(t)()
		for i := range 20 {
			for _, target := range w.Targets {
				w.edit(t, target.Name, func(s *corev1.Secret) { s.Annotations["x"] = fmt.Sprint(i) })
			}
			time.Sleep(100 * time.Millisecond)
		}
		suspended := w.Targets[2].Name
		w.edit(t, suspended, func(s *corev1.Secret) { s.Annotations[secret.Suspend] = "true" })
		time.Sleep(8500 * time.Millisecond)
		failures := map[string]float64{}
		for name, n := range w.series(t) {
			if strings.Contains(name, "outcome=Failed") {
				_, target, _ := strings.Cut(name, "secret=")
				failures[strings.TrimSuffix(target, "}")] += n
			}
		}
		// Whoever minted counts even if it was suspended meanwhile; the parked do not.
		if len(w.source.Mints()) != 1 || failures["secret-0"] > 1 || failures["secret-1"] > 1 || failures["secret-2"] > 1 {
			t.Errorf("%d mints, failures %v: want one mint, and at most one failure each", len(w.source.Mints()), failures)
		}
	})
}

// TestRequestIsNotAnsweredWithTheTokenItIsAbout: the Secret no longer tells which token was ours.
func TestRequestIsNotAnsweredWithTheTokenItIsAbout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(1)...)
		target := w.Targets[0]
		defer w.lead(t)()
		time.Sleep(2 * time.Minute)
		before := string(w.secret(t, target.Name).Data["bearerToken"])
		w.edit(t, target.Name, func(s *corev1.Secret) {
			s.Annotations = map[string]string{secret.Request: "now"}
			s.Data["bearerToken"] = []byte("somebody's")
		})
		synctest.Wait()
		s := w.secret(t, target.Name)
		if s.Annotations[secret.HandledOutcome] != "Refreshed" || string(s.Data["bearerToken"]) == before || len(w.source.Mints()) != 2 {
			t.Errorf("handled-outcome %q with %d mints, the same token: %t", s.Annotations[secret.HandledOutcome], len(w.source.Mints()), string(s.Data["bearerToken"]) == before)
		}
	})
}

// TestIssuersThatHang: one for each worker, and a repair that needs none of them.
func TestIssuersThatHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		targets := many(21)
		for i := range targets {
			targets[i].Mint.Identity = fmt.Sprint("identity-", i)
		}
		good := targets[20]
		w := newWorld(targets...)
		hang := make(chan struct{})
		w.Source = sourceFunc{w.source, func(key refresh.MintKey) {
			if key != good.Mint {
				<-hang
			}
		}}
		defer w.lead(t)()
		defer close(hang)
		for range 3 {
			if err := w.store.Delete(t.Context(), good.Name); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if s, _ := w.store.Get(t.Context(), good.Name); s == nil {
				t.Fatal("a repair waits for issuers that have nothing to do with it")
			}
		}
	})
}

// TestContentionByReplacing: somebody puts a whole Secret of their own there, again and again.
func TestContentionByReplacing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(1)...)
		defer w.lead(t)()
		for range 5 {
			time.Sleep(5 * time.Minute)
			w.edit(t, w.Targets[0].Name, func(s *corev1.Secret) {
				s.Annotations, s.Data["bearerToken"] = nil, []byte("theirs")
			})
		}
		synctest.Wait()
		told := map[string]int{}
		for _, event := range w.recorder.Events() {
			told[event.Reason]++
		}
		if told["Adopted"] != 2 || told["Contended"] != 3 {
			t.Errorf("told %v, want Adopted twice, then Contended", told)
		}
	})
}

// TestConflictsWithoutNewsSlowDown: the watch is blind, and tells nothing of what is in the way.
func TestConflictsWithoutNewsSlowDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		w.seed(t, annotate(secret.RefreshAt, -time.Minute))
		w.store.Fail(func(refresh.Name) error { return refresh.ErrConflict })
		defer w.lead(t)()
		time.Sleep(10 * time.Minute)
		got := w.series(t)["token_refresher.refreshes{namespace=flux-system,outcome=Conflicted,reason=RefreshDue,secret=flux-system}"]
		if got < 10 || got > 17 || len(w.source.Mints()) != 1 {
			t.Errorf("%g applies and %d mints in ten minutes, want one a minute in the end, and one mint", got, len(w.source.Mints()))
		}
	})
}

// TestWriteAtTheEndOfTheTermIsTold: every credential that was issued leaves its line, count and span.
func TestWriteAtTheEndOfTheTermIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(1)...)
		ctx, cancel := context.WithCancel(t.Context())
		w.Store = endingStore{w.Store, cancel}
		if err := w.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(w.logs.String(), "wrote a new token") {
			t.Errorf("the log says %q", w.logs.String())
		}
	})
}

// endingStore ends the term with its first write, which succeeds.
type endingStore struct {
	refresh.Store
	end context.CancelFunc
}

func (s endingStore) Apply(ctx context.Context, target refresh.Target, o refresh.Observed, token refresh.Token, record refresh.Record) error {
	defer s.end()
	return s.Store.Apply(ctx, target, o, token, record)
}
