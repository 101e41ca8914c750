package flux_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/flux"
	"flux-token-refresher/refresh"
)

// grace is how long an event has to come before the net asks.
const grace = 500 * time.Millisecond

// target is the Secret of most tests.
var target = refresh.Target{Name: targets[0], Verify: true}

// term is a Sources that runs, with what it asked for.
type term struct {
	*flux.Sources
	log *bytes.Buffer
	end func()

	mu        sync.Mutex
	asks      []flux.Ask
	fail      error // of requests
	overtaken bool  // requests are of failures that are older than the token
}

// lead begins a term. A Git server of a host "accepts", "rejects", … as its URL says.
func lead(t *testing.T, s *server) *term {
	t.Helper()
	w := &term{log: &bytes.Buffer{}}
	w.Sources = flux.NewSources(flux.SourcesConfig{
		API:     s.api(t),
		Targets: []refresh.Target{target, {Name: targets[1], Verify: true}},
		Ask: func(ctx context.Context, url string, token refresh.Token) refresh.Trial {
			if token.Reveal() != "the-token" {
				t.Errorf("asked about another token at %s", url)
			}
			switch name := url[strings.LastIndex(url, "/")+1:]; {
			case strings.HasPrefix(name, "accepts"):
				return refresh.Trial{Accepted: 1}
			case strings.HasPrefix(name, "rejects"):
				return refresh.Trial{Rejected: 1, Why: "the server rejects"}
			case strings.HasPrefix(name, "forbids"):
				return refresh.Trial{Rejected: 1, Why: "the server forbids"}
			case strings.HasPrefix(name, "hangs"):
				<-ctx.Done()
				return refresh.Trial{Silent: 1, Why: "the server is silent"}
			case strings.HasPrefix(name, "silent"):
				return refresh.Trial{Silent: 1, Why: "the server is silent"}
			}
			return refresh.Trial{Why: "may not be asked"}
		},
		Request: func(ctx context.Context, name refresh.Name, ask flux.Ask) (bool, error) {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("a request without a deadline")
			}
			if name != target.Name {
				t.Errorf("asked for %s", name)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.fail == nil {
				w.asks = append(w.asks, ask)
			}
			return w.overtaken, w.fail
		},
		Logger: logTo(w.log),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	w.end = func() {
		t.Helper()
		cancel()
		began := time.Now()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("Run took %s to end", took)
		}
	}
	synctest.Wait()
	return w
}

// requested gives what was asked for since it was called last.
func (w *term) requested() []flux.Ask {
	w.mu.Lock()
	defer w.mu.Unlock()
	asks := w.asks
	w.asks = nil
	return asks
}

func (w *term) failing(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

// logged counts the lines of a level.
func (w *term) logged(level string) int { return strings.Count(w.log.String(), "level="+level) }

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func token() refresh.Token {
	return refresh.NewToken("the-token", time.Now(), time.Now().Add(time.Hour), time.Time{})
}

// woken gives the objects whose annotation is there, and its values.
func (s *server) woken() (names []string, values []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, o := range s.objects {
		if a, ok := o["metadata"].(object)["annotations"].(object); ok {
			names = append(names, at)
			values = append(values, a["reconcile.fluxcd.io/requestedAt"].(string))
		}
	}
	slices.Sort(names)
	return names, values
}

// Wake annotates the readers that fail, whatever the reason, and changes nothing else.
func TestWake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		timeout := ready("False", "GitOperationFailed", "context deadline exceeded", time.Now(), "")
		for kind := range resources {
			read := reads("target")
			switch kind {
			case "HelmChart", "ImageUpdateAutomation":
				read = from("GitRepository", "good")
			}
			s.put(kind, "apps", "fails", all(read, timeout))
			s.put(kind, "apps", "unknown", all(read, ready("Unknown", "Progressing", "", time.Now(), "")))
			s.put(kind, "apps", "good", all(read, ready("True", "Succeeded", "", time.Now(), "")))
			s.put(kind, "apps", "new", read)
			s.put(kind, "apps", "suspended", all(read, timeout, suspended))
			s.put(kind, "apps", "other", all(reads("other"), timeout))
			s.put(kind, "flux-system", "fails", all(read, timeout))
			s.put(kind, "elsewhere", "fails", all(read, timeout))
		}
		w := lead(t, s)
		time.Sleep(1234567 * time.Microsecond)
		n, err := w.Wake(t.Context(), target)
		if err != nil || n != 14 {
			t.Errorf("%d readers woken, %v; want 14", n, err)
		}
		var want []string
		for _, resource := range resources {
			want = append(want, resource+"/apps/fails", resource+"/apps/unknown")
		}
		slices.Sort(want)
		names, values := s.woken()
		if diff := cmp.Diff(want, names); diff != "" {
			t.Error(diff)
		}
		now := time.Now().UTC().Format(time.RFC3339Nano)
		for _, v := range values {
			if v != now {
				t.Errorf("requestedAt %s, want %s", v, now)
			}
		}
		patch := `application/merge-patch+json flux-token-refresher {"metadata":{"annotations":{"reconcile.fluxcd.io/requestedAt":"` + now + `"}}}`
		for _, p := range s.patches {
			if p != patch {
				t.Errorf("patch %s\nwant  %s", p, patch)
			}
		}
		w.end()
	})
}

// What cannot be woken holds up nobody else, and is woken when it can be.
func TestWakeFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		for _, name := range []string{"first", "second"} {
			s.put("GitRepository", "apps", name, all(reads("target"), fails(time.Now())))
		}
		w := lead(t, s)
		s.refuse(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/first") {
				return forbidden(r)
			}
			return nil, nil
		})
		pass(10 * time.Second)
		if asks := w.requested(); len(asks) != 2 {
			t.Errorf("asked for %+v", asks)
		}
		n, err := w.Wake(t.Context(), target)
		var failure *refresh.Error
		if n != 1 || !errors.As(err, &failure) || failure.Class != refresh.Misconfigured || strings.Contains(err.Error(), "whatever-a-server-says") {
			t.Errorf("%d woken, %v; want 1 and a *refresh.Error", n, err)
		}
		pass(time.Minute)
		if names, _ := s.woken(); len(names) != 1 || w.logged("WARN") != 1 {
			t.Errorf("woken %q, logged:\n%s", names, w.log)
		}
		s.refuse(nil)
		pass(time.Minute)
		if names, _ := s.woken(); len(names) != 2 {
			t.Errorf("woken %q", names)
		}
		if asks := w.requested(); len(asks) > 0 {
			t.Errorf("asked for %+v", asks)
		}
		w.end()
	})
}

// Try asks the server of each repository once, and says what most of those were told that were refused.
func TestTry(t *testing.T) {
	t.Parallel()
	hidden := target
	hidden.Verify = false
	nobody := target
	nobody.Name = targets[1]
	for name, test := range map[string]struct {
		target  refresh.Target
		readers string
		want    refresh.Trial
	}{
		"nobody":             {nobody, "accepts", refresh.Trial{}},
		"not to be shown":    {hidden, "accepts", refresh.Trial{}},
		"not to be asked":    {target, "git", refresh.Trial{}},
		"accepted":           {target, "accepts", refresh.Trial{Accepted: 1}},
		"silent":             {target, "silent", refresh.Trial{Silent: 1, Why: "GitRepository apps/silent: the server is silent"}},
		"rejected":           {target, "rejects", refresh.Trial{Rejected: 1, Why: "GitRepository apps/rejects: the server rejects"}},
		"good and forbidden": {target, "accepts forbids", refresh.Trial{Accepted: 1, Rejected: 1, Why: "GitRepository apps/forbids: the server forbids"}},
		"mostly forbidden": {target, "rejects forbids-a forbids-b silent git", refresh.Trial{
			Rejected: 3, Silent: 1, Why: "GitRepository apps/forbids-a, GitRepository apps/forbids-b: the server forbids",
		}},
		"many": {target, "rejects-a rejects-b rejects-c rejects-d forbids accepts-a accepts-b silent-a silent-b silent-c", refresh.Trial{
			Accepted: 2, Rejected: 5, Silent: 3,
			Why: "GitRepository apps/rejects-a, GitRepository apps/rejects-b, GitRepository apps/rejects-c, …: the server rejects",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := installed()
				for reader := range strings.FieldsSeq(test.readers) {
					s.put("GitRepository", "apps", reader, reads("target"))
					// Another reader of the same repository, and one that is no Git client.
					s.put("GitRepository", "apps", "same-"+reader, func(o object) {
						o["spec"] = object{"secretRef": object{"name": "other"}, "url": "https://git.example.com/rejects"}
					})
					s.put("OCIRepository", "apps", reader, reads("target"))
				}
				w := lead(t, s)
				got, err := w.Try(t.Context(), test.target, token(), false)
				if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
					t.Errorf("%v %s", err, diff)
				}
				w.end()
			})
		})
	}
}

// Where one server that takes the token is enough, one that hangs holds nobody up.
func TestTryUntilOneAccepts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		for _, name := range []string{"accepts", "hangs-a", "hangs-b"} {
			s.put("GitRepository", "apps", name, reads("target"))
		}
		w := lead(t, s)
		got, err := w.Try(t.Context(), target, token(), true)
		if want := (refresh.Trial{Accepted: 1}); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		w.end()
	})
}

func TestTryAsksOnceForAURL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		for _, name := range []string{"a", "b"} {
			s.put("GitRepository", "apps", name, func(o object) {
				o["spec"] = object{"secretRef": object{"name": "target"}, "url": "https://git.example.com/rejects", "suspend": name == "b"}
			})
		}
		w := lead(t, s)
		got, err := w.Try(t.Context(), target, token(), false)
		want := refresh.Trial{Rejected: 1, Why: "GitRepository apps/a, GitRepository apps/b: the server rejects"}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		w.end()
	})
}

// A token is not tried on readers that are not known: that would be all of none.
func TestTryWaitsForTheReaders(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		instead func(*http.Request) (*http.Response, error)
		class   refresh.Class
		took    time.Duration
	}{
		"away":      {away, refresh.Unavailable, 5 * time.Second},
		"hanging":   {hangs, refresh.Unavailable, 5 * time.Second},
		"forbidden": {forbidden, refresh.Misconfigured, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := installed()
				s.put("GitRepository", "apps", "accepts", reads("target"))
				s.refuse(func(r *http.Request) (*http.Response, error) {
					if !strings.Contains(r.URL.Path, "/namespaces/") {
						return nil, nil
					}
					s.mu.Unlock() // hanging holds up nobody else
					defer s.mu.Lock()
					return test.instead(r)
				})
				w := lead(t, s)
				began := time.Now()
				_, err := w.Try(t.Context(), target, token(), false)
				var failure *refresh.Error
				if !errors.As(err, &failure) || failure.Class != test.class {
					t.Errorf("%v, want a *refresh.Error of class %s", err, test.class)
				}
				if took := time.Since(began); took != test.took {
					t.Errorf("took %s, want %s", took, test.took)
				}
				s.refuse(nil)
				pass(time.Minute)
				if got, err := w.Try(t.Context(), target, token(), false); name != "hanging" && (err != nil || got.Accepted != 1) {
					t.Errorf("%+v, %v after the API server was back", got, err)
				}
				w.end()
			})
		})
	}
}

// A kind that is not installed has no objects; it is found within minutes when it comes, and when its version changes.
func TestKindsComeAndGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		v1 := s.groups[sourceGroup][0]
		delete(s.groups, sourceGroup)
		w := lead(t, s)
		try := func(want refresh.Trial) {
			t.Helper()
			if got, err := w.Try(t.Context(), target, token(), false); err != nil || got != want {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
		}
		try(refresh.Trial{})
		s.discovered()
		pass(time.Hour)
		if asked := s.discovered(); len(asked) > 5*60 {
			t.Errorf("%d requests of discovery in an hour", len(asked))
		}

		s.serve(v1)
		s.put("GitRepository", "apps", "accepts", reads("target"))
		pass(2 * time.Minute)
		try(refresh.Trial{Accepted: 1})

		s.serve(version{"v2", v1.resources})
		s.put("GitRepository", "apps", "accepts-too", reads("target"))
		pass(5 * time.Second)
		try(refresh.Trial{Accepted: 2})

		s.serve()
		pass(5 * time.Second)
		try(refresh.Trial{})
		if w.logged("WARN") > 0 {
			t.Errorf("logged:\n%s", w.log)
		}
		w.end()
	})
}

// Watches that fail are said once, and do not hammer the API server.
func TestWatchFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		instead           func(*http.Request) (*http.Response, error)
		warnings, infos   int
		perWatchAndSecond float64
	}{
		"away":      {away, 0, 14, 2},
		"forbidden": {forbidden, 14, 14, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := installed()
				s.put("GitRepository", "apps", "accepts", reads("target"))
				s.refuse(func(r *http.Request) (*http.Response, error) {
					if strings.Contains(r.URL.Path, "/namespaces/") {
						return test.instead(r)
					}
					return nil, nil
				})
				w := lead(t, s)
				s.asked()
				pass(10 * time.Minute)
				if n := float64(len(s.asked())) / 600 / 14; n > test.perWatchAndSecond || n == 0 {
					t.Errorf("%.1f requests a second and watch", n)
				}
				s.refuse(nil)
				pass(time.Minute)
				if w.logged("WARN") != test.warnings || w.logged("INFO") != test.infos || strings.Contains(w.log.String(), "whatever-a-server-says") {
					t.Errorf("logged, want %d warnings and %d lines at INFO:\n%s", test.warnings, test.infos, w.log)
				}
				w.end()

				s.refuse(test.instead)
				w = lead(t, s)
				pass(time.Minute)
				w.end() // at once, in the middle of an outage
			})
		})
	}
}

// A failure that no event told is asked for once, after the event had its chance, and by the same id in another term.
func TestNetAsks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		s.put("GitRepository", "apps", "repo", all(reads("target"), ready("True", "Succeeded", "", time.Now(), "")))
		w := lead(t, s)
		pass(time.Hour)
		since := time.Now().Truncate(time.Second)
		s.put("GitRepository", "apps", "repo", fails(since))
		pass(grace - 1)
		if asks := w.requested(); len(asks) > 0 {
			t.Errorf("asked at once for %+v", asks)
		}
		pass(1)
		first := w.requested()
		if len(first) != 1 || first[0].ID == "" || !first[0].Time.Equal(since) {
			t.Fatalf("asked for %+v", first)
		}
		want := flux.Ask{Source: "/namespaces/apps/GitRepository/repo", ID: first[0].ID, Verdict: flux.AuthFailure, Time: first[0].Time}
		if diff := cmp.Diff(want, first[0]); diff != "" {
			t.Error(diff)
		}
		s.put("GitRepository", "apps", "repo", func(o object) { o["metadata"].(object)["labels"] = object{"a": "b"} })
		pass(20 * time.Second)
		if asks := w.requested(); len(asks) > 0 {
			t.Errorf("asked again for %+v", asks)
		}
		// What was asked may have come to nothing.
		pass(time.Hour)
		ids := map[string]bool{first[0].ID: true}
		for _, ask := range w.requested() {
			ids[ask.ID] = true
		}
		if len(ids) != 8 { // after 30 s, 1, 2, 4, 8, 15, 15 minutes
			t.Errorf("asked %d times in an hour", len(ids))
		}
		w.end()

		w = lead(t, s)
		pass(time.Hour)
		if again := w.requested(); len(again) == 0 || again[0].ID != first[0].ID || !again[0].Time.Equal(since) {
			t.Errorf("another term asked for %+v, want %+v", again, first)
		}
		if strings.Contains(w.log.String(), "git.example.com") {
			t.Errorf("a message was logged:\n%s", w.log)
		}
		w.end()
	})
}

// What the net leaves alone.
func TestNetDoesNotAsk(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func() func(object){
		"ready": func() func(object) { return all(reads("target"), ready("True", "Succeeded", "", time.Now(), "")) },
		"unknown": func() func(object) {
			return all(reads("target"), ready("Unknown", "Progressing", authenticationRequired, time.Now(), ""))
		},
		"unrelated": func() func(object) {
			return all(reads("target"), ready("False", "GitOperationFailed", "i/o timeout", time.Now(), ""))
		},
		"suspended":      func() func(object) { return all(reads("target"), fails(time.Now()), suspended) },
		"another Secret": func() func(object) { return all(reads("other"), fails(time.Now())) },
		"no Secret":      func() func(object) { return all(func(o object) { o["spec"] = object{} }, fails(time.Now())) },
		"of an earlier spec": func() func(object) {
			return all(reads("target"), fails(time.Now()), func(o object) { o["metadata"].(object)["generation"] = int64(2) })
		},
		"recovers at once": func() func(object) { return all(reads("target"), fails(time.Now())) },
		"goes at once":     func() func(object) { return all(reads("target"), fails(time.Now())) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := installed()
				w := lead(t, s)
				s.put("GitRepository", "apps", "repo", change())
				pass(grace / 2)
				switch name {
				case "recovers at once":
					s.put("GitRepository", "apps", "repo", ready("True", "Succeeded", "", time.Now(), ""))
				case "goes at once":
					s.remove("GitRepository", "apps", "repo")
				}
				pass(time.Hour)
				if asks := w.requested(); len(asks) > 0 {
					t.Errorf("asked for %+v", asks)
				}
				w.end()
			})
		})
	}
}

// Every kind is in the net, also those that read a Secret by their source.
func TestNetAsksForEveryKind(t *testing.T) {
	t.Parallel()
	for kind := range resources {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := installed()
				read := reads("target")
				if kind == "HelmChart" || kind == "ImageUpdateAutomation" {
					read = from("GitRepository", "source")
					s.put("GitRepository", "apps", "source", all(reads("target"), ready("True", "Succeeded", "", time.Now(), "")))
				}
				s.put(kind, "apps", "repo", all(read, fails(time.Now())))
				w := lead(t, s)
				pass(grace)
				if asks := w.requested(); len(asks) != 1 || asks[0].Source != "/namespaces/apps/"+kind+"/repo" {
					t.Errorf("asked for %+v", asks)
				}
				w.end()
			})
		})
	}
}

// A requestedAt of the future, which anybody may write, does not make a failure a later one.
func TestNetDoesNotTrustTheFuture(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		since := time.Now()
		s.put("GitRepository", "apps", "repo", all(reads("target"),
			ready("False", "GitOperationFailed", authenticationRequired, since, since.Add(time.Hour).Format(time.RFC3339Nano))))
		w := lead(t, s)
		pass(grace)
		if asks := w.requested(); len(asks) != 1 || !asks[0].Time.Equal(since) {
			t.Errorf("asked for %+v", asks)
		}
		w.end()
	})
}

// An object whose source is listed later is not forgotten.
func TestNetWaitsForTheSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		s.put("HelmRepository", "apps", "charts", reads("target"))
		s.put("HelmChart", "apps", "chart", all(from("HelmRepository", "charts"), fails(time.Now())))
		s.refuse(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/helmrepositories") {
				return away(r)
			}
			return nil, nil
		})
		w := lead(t, s)
		pass(time.Minute)
		s.refuse(nil)
		pass(10 * time.Second)
		if asks := w.requested(); len(asks) != 1 {
			t.Errorf("asked for %+v", asks)
		}
		w.end()
	})
}

// What a leader before us wrote and told nobody of: the object is older than the token, and is woken.
func TestNetWakesWhoFailedWithTheTokenBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		s.put("GitRepository", "apps", "repo", all(reads("target"), fails(time.Now())))
		pass(10 * time.Second)
		w := lead(t, s)
		w.mu.Lock()
		w.overtaken = true
		w.mu.Unlock()
		pass(grace)
		if names, _ := s.woken(); len(names) != 1 {
			t.Errorf("woken %q in the next term", names)
		}
		w.end()
	})
}

// An object that fails again is asked for again: after it was Ready at once, also with the same words.
func TestNetAsksAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		w := lead(t, s)
		ids := map[string]bool{}
		for range 5 {
			pass(10 * time.Second)
			s.put("GitRepository", "apps", "repo", all(reads("target"), fails(time.Now())))
			pass(grace)
			for _, ask := range w.requested() {
				ids[ask.ID] = true
			}
			s.put("GitRepository", "apps", "repo", ready("True", "Succeeded", "", time.Now(), ""))
		}
		if len(ids) != 5 {
			t.Errorf("asked for %d failures, want 5", len(ids))
		}
		w.end()
	})
}

// An object that was woken with a new token and fails with the same words, whose condition therefore looks the same, fails anew. It
// is asked for again, but less and less often while it never gets Ready.
func TestNetAsksAgainAboutTheNewToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		w := lead(t, s)
		since := time.Now()
		s.put("GitRepository", "apps", "repo", all(reads("target"), fails(since)))
		var last time.Time
		var pauses []time.Duration
		ids := map[string]bool{}
		for began := time.Now(); time.Since(began) < 2*time.Hour; pass(time.Second) {
			for _, ask := range w.requested() {
				ids[ask.ID] = true
				if last.IsZero() {
					if !ask.Time.Equal(since) {
						t.Errorf("asked first about %s", ask.Time)
					}
				} else {
					pauses = append(pauses, time.Since(last).Round(5*time.Second))
					if !ask.Time.After(last) || ask.Time.After(time.Now()) {
						t.Errorf("asked at %s about %s, and before at %s", time.Now(), ask.Time, last)
					}
				}
				last = time.Now()
				// A new token is written; source-controller is woken and fails as before.
				pass(200 * time.Millisecond)
				if n, err := w.Wake(t.Context(), target); n != 1 || err != nil {
					t.Errorf("%d woken, %v", n, err)
				}
				handled := time.Now().UTC().Format(time.RFC3339Nano)
				pass(300 * time.Millisecond)
				s.put("GitRepository", "apps", "repo", ready("False", "GitOperationFailed", authenticationRequired, since, handled))
			}
		}
		want := []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 15 * time.Minute}
		if len(pauses) < len(want) || !slices.Equal(pauses[:len(want)], want) {
			t.Errorf("asked again after %s, want %s", pauses, want)
		}
		if len(ids) != len(pauses)+1 {
			t.Errorf("%d ids of %d asks", len(ids), len(pauses)+1)
		}
		w.end()
	})
}

// The event and the net together: what was woken since it failed is not asked for. What failed before it could be woken, but was seen
// only later, is woken.
func TestNetAfterAWake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		w := lead(t, s)
		pass(300 * time.Millisecond) // lastTransitionTime is cut to seconds
		s.put("GitRepository", "apps", "seen", all(reads("target"), fails(time.Now())))
		synctest.Wait()
		pass(100 * time.Millisecond)
		if n, err := w.Wake(t.Context(), target); n != 1 || err != nil {
			t.Errorf("%d woken, %v", n, err)
		}
		s.put("GitRepository", "apps", "late", all(reads("target"), fails(time.Now())))
		synctest.Wait()
		if len(s.patches) != 2 {
			t.Errorf("%d patches, want that of what was seen late at once", len(s.patches))
		}
		pass(time.Hour)
		if asks := w.requested(); len(asks) > 0 {
			t.Errorf("asked for %+v", asks)
		}
		s.put("GitRepository", "apps", "late", func(o object) {
			o["metadata"].(object)["annotations"] = object{"reconcile.fluxcd.io/requestedAt": "somebody's"}
		})
		pass(time.Hour)
		names, values := s.woken()
		if want := []string{"gitrepositories/apps/late", "gitrepositories/apps/seen"}; !slices.Equal(names, want) || len(s.patches) != 2 {
			t.Errorf("woken %q at %q by %d patches", names, values, len(s.patches))
		}
		w.end()
	})
}

// A request that was not taken is made again; that is said once.
func TestNetRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		w := lead(t, s)
		w.failing(&refresh.Error{Class: refresh.Unavailable, Text: "the API server failed"})
		s.put("GitRepository", "apps", "repo", all(reads("target"), fails(time.Now())))
		pass(10 * time.Minute)
		if w.logged("WARN") != 1 {
			t.Errorf("logged:\n%s", w.log)
		}
		w.failing(nil)
		pass(time.Minute)
		if asks := w.requested(); len(asks) == 0 || !strings.HasSuffix(asks[0].ID, "/0") {
			t.Errorf("asked for %+v", asks)
		}
		w.end()
	})
}

// https://org@dev.azure.com/… beside a bearer token: no refresh helps, and a person is told so once.
func TestNetWarnsOfAUserInTheURL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		w := lead(t, s)
		for i, name := range []string{"first", "second", "first"} {
			s.put("GitRepository", "apps", name, all(reads("target"), ready("False", "GitOperationFailed",
				fmt.Sprintf("%d: failed to checkout: basic auth and bearer token cannot be set at the same time", i), time.Now(), "")))
			pass(time.Minute)
		}
		s.put("GitRepository", "apps", "of-others", all(reads("other"), ready("False", "GitOperationFailed",
			"basic auth and bearer token cannot be set at the same time", time.Now(), "")))
		pass(time.Minute)
		if w.logged("WARN") != 2 || strings.Count(w.log.String(), "org@") != 2 || len(w.requested()) > 0 {
			t.Errorf("logged:\n%s", w.log)
		}
		w.end()
	})
}

// The reason why a server gives no answer (its certificate, DNS, a firewall) reaches whoever asks.
func TestTrySaysWhyAServerIsSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		s.put("GitRepository", "apps", "repo", func(o object) {
			o["spec"] = object{"url": "https://git.example.com/silent", "secretRef": object{"name": "target"}}
		})
		w := lead(t, s)
		trial, err := w.Try(t.Context(), target, token(), false)
		if err != nil || trial.Silent != 1 || trial.Why == "" {
			t.Errorf("%+v, %v; want why it is silent", trial, err)
		}
		w.end()
	})
}
