package refresh_test

// How requests, rejections and Git servers that are slow pace what comes after them.

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

// slowReaders answer as a function says, which may take its time.
type slowReaders struct {
	*refreshtest.Readers
	answer func(context.Context, refresh.Target, refresh.Token) refresh.Trial
}

func (r slowReaders) Try(ctx context.Context, target refresh.Target, token refresh.Token, _ bool) (refresh.Trial, error) {
	return r.answer(ctx, target, token), ctx.Err()
}

// hang is a server behind a firewall that drops, asked with gitremote's timeout.
func hang(ctx context.Context) refresh.Trial {
	select {
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
	}
	return refresh.Trial{Silent: 1}
}

// rejectedFor an hour: the cool-down has grown to 15 minutes, and nothing is open or cools down any more.
func (w *world) rejectedFor(t *testing.T, d time.Duration) {
	t.Helper()
	w.readers.Answer(func(refresh.Token) refresh.Trial {
		return refresh.Trial{Rejected: 1, Why: "the identity has no licence"}
	})
	for i := range int(d / (15 * time.Second)) {
		w.event(t, fmt.Sprint("rejected ", i))
		time.Sleep(15 * time.Second)
	}
	time.Sleep(20*time.Minute + 7*time.Second)
	synctest.Wait()
}

func (w *world) takenBut(revoked string) {
	w.readers.Answer(func(token refresh.Token) refresh.Trial {
		if token.Hash == revoked {
			return refresh.Trial{Rejected: 1, Why: "sign in"}
		}
		return refresh.Trial{Accepted: 1}
	})
}

// repairsRevocation revokes the token, after a cool-down, and expects another within the next one.
func (w *world) repairsRevocation(t *testing.T) {
	t.Helper()
	time.Sleep(w.Policy.Cooldown + time.Second)
	held := w.secret(t, target.Name).Annotations[secret.TokenHash]
	w.takenBut(held)
	w.event(t, "revoked")
	began := time.Now()
	for w.secret(t, target.Name).Annotations[secret.TokenHash] == held && time.Since(began) < time.Hour {
		time.Sleep(time.Second)
	}
	if took := time.Since(began); took > w.Policy.Cooldown {
		t.Errorf("a token that was revoked after the server had taken it was replaced after %s, want at most the cool-down of %s", took, w.Policy.Cooldown)
	}
}

// A token that is taken again ends the doubled cool-down: the look at the old token says so as well as one at a new token.
func TestStillValidEndsTheDoubledCooldown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := verifying(t, good())
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return 24 * time.Hour }
		defer w.lead(t)()
		w.rejectedFor(t, time.Hour)

		w.takenBut("") // the permission came
		w.event(t, "after the permission came")
		if got := w.outcome(t); got != string(refresh.StillValid) {
			t.Fatalf("handled-outcome %q", got)
		}
		w.repairsRevocation(t)
	})
}

// The same after a new token was taken: the cool-down that was set for a rejection does not outlive it.
func TestAcceptedTokenEndsTheDoubledCooldown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := verifying(t, good())
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return 24 * time.Hour }
		defer w.lead(t)()
		w.rejectedFor(t, time.Hour)

		held := w.secret(t, target.Name).Annotations[secret.TokenHash]
		w.takenBut(held)
		w.event(t, "the next token is taken")
		if got := w.outcome(t); got != string(refresh.Refreshed) {
			t.Fatalf("handled-outcome %q", got)
		}
		w.repairsRevocation(t)
	})
}

// Two targets share an identity. Whoever asks Git servers about the one's old token does not hold up the other, which needs a token now.
func TestTrialHoldsUpNoOtherTarget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asking, needy := target, target
		asking.Verify, needy.Verify = true, true
		needy.Name.Name = "needy"
		w := newWorld(asking, needy)
		w.Readers = slowReaders{w.readers, func(ctx context.Context, about refresh.Target, _ refresh.Token) refresh.Trial {
			if about.Name == asking.Name {
				return hang(ctx)
			}
			return refresh.Trial{Rejected: 1}
		}}
		for _, name := range []string{asking.Name.Name, needy.Name.Name} {
			s := good()
			s.Name = name
			if err := w.store.Create(t.Context(), "somebody", s); err != nil {
				t.Fatal(err)
			}
		}
		defer w.lead(t)()
		w.event(t, "1")
		time.Sleep(time.Second)
		w.edit(t, needy.Name, func(s *corev1.Secret) { delete(s.Data, "bearerToken") })
		began := time.Now()
		for len(w.secret(t, needy.Name).Data["bearerToken"]) == 0 && time.Since(began) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("a Secret without a token got one after %s, because another target's Git server hangs", took)
		}
	})
}

// The only server hangs, or cannot be reached from here: Flux, which may reach it, gets the new token at once and is told of it.
func TestSilentServersDelayNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := verifying(t, good())
		w.Readers = slowReaders{w.readers, func(ctx context.Context, _ refresh.Target, _ refresh.Token) refresh.Trial {
			return hang(ctx)
		}}
		defer w.lead(t)()
		began := time.Now()
		w.event(t, "1")
		var written, woken time.Duration
		for woken == 0 && time.Since(began) < time.Minute {
			if written == 0 && w.outcome(t) == string(refresh.Refreshed) {
				written = time.Since(began)
			}
			if len(w.readers.Woken()) > 0 {
				woken = time.Since(began)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if written > 3*time.Second || woken > 3*time.Second {
			t.Errorf("the token was written %s after the event, and Flux told after %s", written, woken)
		}
	})
}

// handled-outcome tells how the request ended that handled-request names. A repair that nobody requested is not its outcome.
func TestRejectedRepairRewritesNoHandledRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := good()
		s.Annotations[secret.HandledRequest], s.Annotations[secret.HandledOutcome] = refresh.Hash("yesterday's"), string(refresh.Refreshed)
		delete(s.Data, "bearerToken")
		w := verifying(t, s)
		w.readers.Answer(func(refresh.Token) refresh.Trial { return refresh.Trial{Rejected: 1, Why: "no licence"} })
		defer w.lead(t)()
		if got := w.outcome(t); got != string(refresh.Refreshed) {
			t.Errorf("the outcome of yesterday's request became %s", got)
		}
	})
}

// A reader that may not read what the others may is answered with StillValid, and mints nothing: the cool-down between two requested mints
// has not begun. It does not hold up the repair of a token that is revoked right after.
func TestForbiddenReaderDelaysNoRepair(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := verifying(t, good())
		w.readers.Answer(func(refresh.Token) refresh.Trial { return refresh.Trial{Accepted: 1, Rejected: 1} })
		defer w.lead(t)()
		w.event(t, "the forbidden reader's")
		if got := w.outcome(t); got != string(refresh.StillValid) {
			t.Fatalf("handled-outcome %q", got)
		}
		time.Sleep(time.Second)
		w.takenBut(refresh.Hash("current"))
		began := time.Now()
		w.event(t, "revoked")
		for len(w.source.Mints()) == 0 && time.Since(began) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the revoked token was replaced after %s, because another reader's event had been answered without a mint", took)
		}
	})
}

// busyStore is a Store whose Secret somebody else changes whenever it is about to be read, as an annotation every second does.
type busyStore struct {
	refresh.Store
	conflicts int
}

func (s *busyStore) Read(ctx context.Context, target refresh.Target, observed refresh.Observed) (refresh.Token, error) {
	if s.conflicts > 0 {
		s.conflicts--
		return refresh.Token{}, refresh.ErrConflict
	}
	return s.Store.Read(ctx, target, observed)
}

// What could not be read now is read again: a token that the Git servers take is not replaced for a conflict.
func TestConflictBeforeTheTrialMintsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := verifying(t, good())
		w.Store = &busyStore{w.store, 1}
		w.takenBut("")
		defer w.lead(t)()
		w.event(t, "1")
		time.Sleep(5 * time.Second)
		if got := w.outcome(t); got != string(refresh.StillValid) || len(w.source.Mints()) != 0 {
			t.Errorf("handled-outcome %q after %d mints, want StillValid after none", got, len(w.source.Mints()))
		}
	})
}

// Which server gave no answer, and why, is what somebody has to know whose credential is not adopted for it.
func TestAdoptionSaysWhichServerIsSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		target := target
		target.Verify = true
		w := newWorld(target)
		const why = "the certificate of git.example.com is not trusted; name its CA in verifyCAFile"
		w.readers.Answer(func(refresh.Token) refresh.Trial { return refresh.Trial{Silent: 1, Why: why} })
		pat := good()
		pat.Annotations = nil
		pat.Data = map[string][]byte{"username": []byte("git"), "password": []byte("a personal access token")}
		if err := w.store.Create(t.Context(), "somebody", pat); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		told := w.recorder.Events()
		if len(told) != 1 || !strings.Contains(told[0].Note, why) {
			t.Errorf("events %+v, want one that says %q", told, why)
		}
	})
}
