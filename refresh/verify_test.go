package refresh_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

// verifying is a world whose target's Git servers may be asked, with a Secret.
func verifying(t *testing.T, s *corev1.Secret) *world {
	t.Helper()
	target := target
	target.Verify = true
	w := newWorld(target)
	if err := w.store.Create(t.Context(), "somebody", s); err != nil {
		t.Fatal(err)
	}
	return w
}

// event writes the request that an event about the token that stands there makes.
func (w *world) event(t *testing.T, id string) {
	t.Helper()
	token := string(w.secret(t, target.Name).Data["bearerToken"])
	w.edit(t, target.Name, func(s *corev1.Secret) {
		s.Annotations[secret.Request] = id
		s.Annotations[secret.RequestContext] = fmt.Sprintf(`{"request":%q,"about":%q,"received":%q}`,
			id, refresh.Hash(token), time.Now().UTC().Format(time.RFC3339Nano))
	})
	synctest.Wait()
}

func (w *world) outcome(t *testing.T) string {
	t.Helper()
	return w.secret(t, target.Name).Annotations[secret.HandledOutcome]
}

func TestEventIsAnsweredByWhatTheServersSay(t *testing.T) {
	t.Parallel()
	old := func(rejected, accepted, silent int) func(refresh.Token) refresh.Trial {
		return func(token refresh.Token) refresh.Trial {
			if token.Hash == refresh.Hash("current") {
				return refresh.Trial{Accepted: accepted, Rejected: rejected, Silent: silent, Why: "sign in"}
			}
			return refresh.Trial{Accepted: 1}
		}
	}
	for name, test := range map[string]struct {
		verify  bool
		answer  func(refresh.Token) refresh.Trial
		outcome refresh.Outcome
		mints   int
		trials  int
		woken   int
	}{
		"the old token is refused":           {true, old(1, 0, 0), refresh.Refreshed, 1, 2, 1},
		"the old token is taken":             {true, old(0, 1, 0), refresh.StillValid, 0, 1, 0},
		"one takes it, another forbids":      {true, old(1, 1, 0), refresh.StillValid, 0, 1, 0},
		"nobody answers about the old token": {true, old(0, 0, 1), refresh.Refreshed, 1, 2, 1},
		"nobody can be asked":                {true, nil, refresh.Refreshed, 1, 2, 1},
		"nobody may be asked":                {false, old(0, 1, 0), refresh.Refreshed, 1, 0, 1},
		"every server refuses every token": {true, func(refresh.Token) refresh.Trial {
			return refresh.Trial{Rejected: 2, Why: "no licence"}
		}, refresh.TokenRejected, 1, 2, 1},
		"the new token is refused by one": {true, func(token refresh.Token) refresh.Trial {
			if token.Hash == refresh.Hash("current") {
				return refresh.Trial{Rejected: 2}
			}
			return refresh.Trial{Accepted: 1, Rejected: 1}
		}, refresh.Refreshed, 1, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				target := target
				target.Verify = test.verify
				w := newWorld(target)
				w.readers.Answer(test.answer)
				if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
					t.Fatal(err)
				}
				defer w.lead(t)()
				w.event(t, "1")
				if got := w.outcome(t); got != string(test.outcome) {
					t.Errorf("handled-outcome %q, want %q", got, test.outcome)
				}
				if mints, trials, woken := len(w.source.Mints()), len(w.readers.Trials()), len(w.readers.Woken()); mints != test.mints || trials != test.trials || woken != test.woken {
					t.Errorf("%d mints, %d trials, %d wakes; want %d, %d, %d", mints, trials, woken, test.mints, test.trials, test.woken)
				}
				if test.mints > 0 && w.series(t)["token_refresher.event_to_secret{}"] != 1 {
					t.Error("the time from the event to the Secret was not measured")
				}
			})
		})
	}
}

// TestTokenThatIsGivenAgainIsRejected: an endpoint that insists on its token hides that nobody takes it any more.
func TestTokenThatIsGivenAgainIsRejected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		target := target
		target.Verify, target.Create = true, true
		w := newWorld(target)
		w.source.Sticky = true
		defer w.lead(t)()
		w.readers.Answer(func(refresh.Token) refresh.Trial { return refresh.Trial{Rejected: 1, Why: "no licence"} })
		time.Sleep(time.Minute)
		w.event(t, "1")
		if got := w.outcome(t); got != string(refresh.TokenRejected) {
			t.Errorf("handled-outcome %q, want TokenRejected", got)
		}
		events := w.recorder.Events()
		want := "Every Git server refuses the token that is given again of identity " + target.Mint.Identity + ": no licence"
		if len(events) == 0 || events[len(events)-1].Note != want {
			t.Errorf("Events %v, want the last one to say %q", events, want)
		}
		asked := len(w.source.Mints())
		time.Sleep(time.Second)
		w.event(t, "2")
		if got := len(w.source.Mints()); got != asked || w.secret(t, target.Name).Annotations[secret.HandledRequest] == refresh.Hash("2") {
			t.Errorf("the endpoint was asked %d times more during the cool-down", got-asked)
		}
		w.readers.Answer(func(refresh.Token) refresh.Trial { return refresh.Trial{Accepted: 1} })
		time.Sleep(2 * time.Minute)
		if got := w.outcome(t); got != string(refresh.StillValid) {
			t.Errorf("handled-outcome %q after the licence was given, want StillValid", got)
		}
	})
}

// hanging is a server that never answers about the token that stands there.
type hanging struct{ *refreshtest.Readers }

func (h hanging) Try(ctx context.Context, target refresh.Target, token refresh.Token, enough bool) (refresh.Trial, error) {
	if token.Hash == refresh.Hash("current") {
		<-ctx.Done()
		return refresh.Trial{}, ctx.Err()
	}
	return h.Readers.Try(ctx, target, token, enough)
}

// TestServerThatHangsDelaysAnEventLittle: no answer is no verdict, and a token that nobody is known to take is replaced.
func TestServerThatHangsDelaysAnEventLittle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := verifying(t, good())
		w.Readers = hanging{w.readers}
		defer w.lead(t)()
		w.event(t, "1")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := w.outcome(t); got != string(refresh.Refreshed) || len(w.readers.Woken()) != 1 {
			t.Errorf("handled-outcome %q, %d wakes; want Refreshed and one, 3 s after the event", got, len(w.readers.Woken()))
		}
	})
}

// TestRejectedTokensCoolDown: where a permission is missing another token does not help, and is asked for ever more rarely.
func TestRejectedTokensCoolDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := verifying(t, good())
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return 24 * time.Hour }
		w.readers.Answer(func(refresh.Token) refresh.Trial {
			return refresh.Trial{Rejected: 1, Why: "the identity has no licence"}
		})
		defer w.lead(t)()
		for i := range 240 { // an event every 15 seconds for an hour
			w.event(t, fmt.Sprint(i))
			time.Sleep(15 * time.Second)
		}
		time.Sleep(7 * time.Second) // to no moment at which a cool-down ends
		synctest.Wait()
		// Cool-downs of 1, 2, 4, 8, 15, 15, 15 minutes.
		if got := len(w.source.Mints()); got < 6 || got > 8 {
			t.Errorf("%d mints in an hour of rejections, want about 7", got)
		}
		told := w.recorder.Events()
		if len(told) == 0 || told[0].Reason != "TokenRejected" || !told[0].Warning || !strings.Contains(told[0].Note, "no licence") {
			t.Errorf("events %v, want TokenRejected that says why", told)
		}
		if n := strings.Count(w.logs.String(), `"level":"WARN","msg":"the Git servers refuse the token that was issued"`); n != len(w.source.Mints()) {
			t.Errorf("%d warnings of %d tokens that were refused", n, len(w.source.Mints()))
		}
		w.readers.Answer(func(refresh.Token) refresh.Trial { return refresh.Trial{Accepted: 1} })
		w.event(t, "after the permission came")
		time.Sleep(15 * time.Minute)
		if got := w.outcome(t); got != string(refresh.StillValid) {
			t.Errorf("handled-outcome %q after the permission came, want StillValid", got)
		}
	})
}

func TestNobodyIsAskedWithoutNeed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := verifying(t, good())
		w.readers.Answer(func(refresh.Token) refresh.Trial { return refresh.Trial{Accepted: 1} })
		defer w.lead(t)()
		time.Sleep(5 * time.Hour)
		if trials, woken := len(w.readers.Trials()), len(w.readers.Woken()); trials != 0 || woken != 0 || len(w.source.Mints()) < 5 {
			t.Errorf("%d trials, %d wakes for %d refreshes by the timer", trials, woken, len(w.source.Mints()))
		}
		// A person who asks gets a new token, although the present one is good.
		w.request(t, target.Name, "now")
		synctest.Wait()
		if got := w.outcome(t); got != string(refresh.Refreshed) {
			t.Errorf("handled-outcome %q, want Refreshed", got)
		}
		if trials, woken := len(w.readers.Trials()), len(w.readers.Woken()); trials != 1 || woken != 1 {
			t.Errorf("%d trials, %d wakes for a request, want the new token tried and the readers woken", trials, woken)
		}
	})
}

// TestRefreshDueAnswersARequest: the request cools down, and the timer comes first. Somebody waits all the same.
func TestRefreshDueAnswersARequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return time.Minute }
		w.Policy.Cooldown = 10 * time.Minute
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		w.event(t, "1")
		w.event(t, "2") // cools down; the token of the first is due after 45 s
		time.Sleep(50 * time.Second)
		s := w.secret(t, target.Name)
		if s.Annotations[secret.Reason] != "RefreshDue" || s.Annotations[secret.HandledRequest] != refresh.Hash("2") || len(w.readers.Woken()) != 2 {
			t.Errorf("annotations %v, %d wakes; want the timer's refresh to answer the second event, and two wakes", s.Annotations, len(w.readers.Woken()))
		}
	})
}

func TestSupersededRequestWakes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		seed := good()
		seed.Annotations[secret.Request] = "1"
		seed.Annotations[secret.RequestContext] = `{"request":"1","about":"0123456789abcdef"}`
		if err := w.store.Create(t.Context(), "somebody", seed); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		if woken := len(w.readers.Woken()); w.outcome(t) != string(refresh.Superseded) || woken != 1 {
			t.Errorf("handled-outcome %q, %d wakes", w.outcome(t), woken)
		}
	})
}

// TestAdoption: a credential that works is never taken away for one that may not.
func TestAdoption(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		verify bool
		trial  refresh.Trial
		adopts bool
	}{
		"nobody to ask":     {true, refresh.Trial{}, true},
		"all take it":       {true, refresh.Trial{Accepted: 2}, true},
		"one refuses it":    {true, refresh.Trial{Accepted: 1, Rejected: 1, Why: "no permission"}, false},
		"one is silent":     {true, refresh.Trial{Accepted: 1, Silent: 1}, false},
		"none may be asked": {false, refresh.Trial{Rejected: 1}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				target := target
				target.Verify = test.verify
				w := newWorld(target)
				w.readers.Answer(func(refresh.Token) refresh.Trial { return test.trial })
				pat := good()
				pat.Annotations = nil
				pat.Data = map[string][]byte{"username": []byte("git"), "password": []byte("a personal access token")}
				if err := w.store.Create(t.Context(), "somebody", pat); err != nil {
					t.Fatal(err)
				}
				defer w.lead(t)()
				time.Sleep(time.Hour)
				_, adopted := w.secret(t, target.Name).Data["bearerToken"]
				if adopted != test.adopts {
					t.Fatalf("adopted: %t, want %t", adopted, test.adopts)
				}
				if !adopted {
					if mints, trials := len(w.source.Mints()), len(w.readers.Trials()); mints > 2 || trials < 4 || trials > 40 {
						t.Errorf("%d mints, %d trials in an hour of waiting", mints, trials)
					}
					if told := w.recorder.Events(); len(told) != 2 || told[0].Reason != "RefreshFailed" || !strings.Contains(told[0].Note, "left alone") {
						t.Errorf("events %v, want one in half an hour that says why", told)
					}
				}
				w.readers.Answer(func(refresh.Token) refresh.Trial { return refresh.Trial{Accepted: 2} })
				time.Sleep(20 * time.Minute)
				if _, adopted := w.secret(t, target.Name).Data["bearerToken"]; !adopted {
					t.Error("not adopted after every server took the token")
				}
				told := slices.DeleteFunc(w.recorder.Events(), func(e refreshtest.Event) bool { return e.Reason != string(refresh.Adopted) })
				if len(told) != 1 || told[0].Warning || !strings.Contains(told[0].Note, "Left beside it: username, password") {
					t.Errorf("events %v, want one that says what is left", told)
				}
			})
		})
	}
}
