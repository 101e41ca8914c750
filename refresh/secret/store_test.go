package secret_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// api is the other end of a Store's HTTP client, for what a real API server does not do on demand: refuse, hang,
// and tell of versions late. The zero value refuses connections.
type api struct {
	mu       sync.Mutex
	respond  func(*http.Request) (*http.Response, error)
	requests int
}

func (a *api) set(respond func(*http.Request) (*http.Response, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.respond = respond
}

func (a *api) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests
}

func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	a.requests++
	respond := a.respond
	a.mu.Unlock()
	if respond == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	return respond(r)
}

func (a *api) store(t *testing.T, log io.Writer) *secret.Store {
	t.Helper()
	client, err := typedcorev1.NewForConfigAndClient(&rest.Config{Host: "https://api.example.com", QPS: -1}, &http.Client{Transport: a})
	if err != nil {
		t.Fatal(err)
	}
	return secret.New(client, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

// answer is a response of the API server.
func answer(code int, body any) (*http.Response, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(raw))}, nil
}

// status is an error of the API server.
func status(code int, reason metav1.StatusReason, causes ...metav1.StatusCause) metav1.Status {
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason,
		Message: "whatever-a-server-says",
		Details: &metav1.StatusDetails{Causes: causes, RetryAfterSeconds: 7},
	}
}

// stream is a response to a watch, which brings events until the request ends.
func stream(r *http.Request, events <-chan string) (*http.Response, error) {
	reader, writer := io.Pipe()
	go func() {
		for {
			select {
			case event := <-events:
				_, _ = io.WriteString(writer, event)
			case <-r.Context().Done():
				_ = writer.CloseWithError(r.Context().Err())
				return
			}
		}
	}()
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: reader}, nil
}

// object is a Secret of some version.
func object(version string) *corev1.Secret {
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "target", UID: "uid", ResourceVersion: version},
	}
}

func event(kind string, o *corev1.Secret) string {
	raw, _ := json.Marshal(map[string]any{"type": kind, "object": o})
	return string(raw) + "\n"
}

// synced is the bookmark that ends the initial events of a watch.
func synced(version string) string {
	o := object(version)
	o.ObjectMeta = metav1.ObjectMeta{ResourceVersion: version, Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}
	return event("BOOKMARK", o)
}

var target = refresh.Target{
	Name:   refresh.Name{Namespace: "ns", Name: "target"},
	Format: refresh.BearerToken(),
}

// watch starts a Watch, and gives what it tells and how to end it.
func watch(t *testing.T, store *secret.Store) (told <-chan refresh.Observed, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	observed := make(chan refresh.Observed, 100)
	done := make(chan error)
	go func() { done <- store.Watch(ctx, target, func(o refresh.Observed) { observed <- o }) }()
	return observed, func() {
		t.Helper()
		cancel()
		began := time.Now()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v, want the context's error", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("Watch took %s to end", took)
		}
	}
}

func versions(told <-chan refresh.Observed) string {
	var all []string
	for {
		select {
		case o := <-told:
			all = append(all, fmt.Sprintf("%s:%t", o.Version, o.Exists))
		default:
			return strings.Join(all, " ")
		}
	}
}

// What a watch brings late does not undo what an answer told.
func TestWatchDropsWhatIsOlder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var a api
		events := make(chan string)
		a.set(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodPatch {
				return answer(http.StatusOK, object("20"))
			}
			return stream(r, events)
		})
		store := a.store(t, io.Discard)
		told, end := watch(t, store)
		send := func(all ...string) {
			for _, e := range all {
				events <- e
			}
			synctest.Wait()
		}

		send(event("ADDED", object("8")), synced("9"))
		if got := versions(told); got != "8:true" {
			t.Errorf("told %s at the start", got)
		}
		send(event("DELETED", object("15")))
		absent := <-told
		if absent.Exists || absent.Version != "15" {
			t.Errorf("told %+v of a deletion", absent)
		}
		if err := store.Apply(t.Context(), target, absent, refresh.Token{}, refresh.Record{}); err != nil {
			t.Fatal(err)
		}
		if got := versions(told); got != "20:true" {
			t.Errorf("told %s when Apply returned", got)
		}
		send(event("ADDED", object("17")), event("DELETED", object("18")), event("ADDED", object("20")))
		if got := versions(told); got != "" {
			t.Errorf("told %s again", got)
		}
		send(event("MODIFIED", object("100")))
		if got := versions(told); got != "100:true" {
			t.Errorf("told %s of a change", got)
		}
		end()
	})
}

// An API server that does not send initial events is listed first.
func TestWatchFallsBackToList(t *testing.T) {
	t.Parallel()
	for name, items := range map[string][]corev1.Secret{"10:false": nil, "8:true": {*object("8")}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var a api
				a.set(func(r *http.Request) (*http.Response, error) {
					query := r.URL.Query()
					switch {
					case query.Get("fieldSelector") != "metadata.name=target":
						return answer(http.StatusForbidden, status(http.StatusForbidden, metav1.StatusReasonForbidden))
					case query.Get("sendInitialEvents") != "":
						return answer(http.StatusUnprocessableEntity, status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid))
					case query.Get("watch") != "":
						return stream(r, nil)
					}
					return answer(http.StatusOK, corev1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: "10"}, Items: items})
				})
				told, end := watch(t, a.store(t, io.Discard))
				synctest.Wait()
				if got := versions(told); got != name {
					t.Errorf("told %s, want %s", got, name)
				}
				end()
			})
		})
	}
}

// There is one Watch of a Secret: two would each tell half of what is in order.
func TestWatchTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := (&api{}).store(t, io.Discard)
		_, end := watch(t, store)
		synctest.Wait()
		var e *refresh.Error
		if err := store.Watch(t.Context(), target, nil); !errors.As(err, &e) {
			t.Errorf("the second Watch: %v", err)
		}
		end()
	})
}

// However long the API server is away, it is not hammered, and its return is seen within two seconds.
func TestWatchDuringAnOutage(t *testing.T) {
	t.Parallel()
	tenMinutes := func(t *testing.T, a *api, perSecond float64) {
		before := a.count()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := a.count() - before; n < 100 || float64(n) > perSecond*600 {
			t.Errorf("%d requests in ten minutes, want up to %v a second", n, perSecond)
		}
	}
	for _, test := range []struct {
		name      string
		respond   func(*http.Request) (*http.Response, error)
		perSecond float64
		within    time.Duration
		level     string
		lines     int
	}{
		{"connection refused", nil, 2, 2 * time.Second, "DEBUG", 1},
		{"too many requests", func(*http.Request) (*http.Response, error) {
			return answer(http.StatusTooManyRequests, status(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests))
		}, 2, 2 * time.Second, "DEBUG", 1},
		{"unavailable", func(*http.Request) (*http.Response, error) {
			return answer(http.StatusServiceUnavailable, status(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable))
		}, 2, 2 * time.Second, "DEBUG", 1},
		{"forbidden", func(*http.Request) (*http.Response, error) {
			return answer(http.StatusForbidden, status(http.StatusForbidden, metav1.StatusReasonForbidden))
		}, 0.5, 8 * time.Second, "WARN", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var a api
				a.set(test.respond)
				var log bytes.Buffer
				told, end := watch(t, a.store(t, &log))
				tenMinutes(t, &a, test.perSecond)
				if got := log.String(); strings.Count(got, "\n") != test.lines || !strings.Contains(got, "level="+test.level) || strings.Contains(got, "whatever-a-server-says") {
					t.Errorf("logged, want %d line of level %s:\n%s", test.lines, test.level, got)
				}

				events := make(chan string)
				a.set(func(r *http.Request) (*http.Response, error) {
					if r.URL.Query().Get("watch") == "" { // the fallback of a watch that was still refused
						return answer(http.StatusOK, corev1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: "9"}})
					}
					return stream(r, events)
				})
				back := time.Now()
				events <- synced("9")
				if o := <-told; o.Exists {
					t.Errorf("told %+v", o)
				}
				if took := time.Since(back); took > test.within {
					t.Errorf("took %s to come back, want %s", took, test.within)
				}
				synctest.Wait()
				if got := log.String(); !strings.Contains(got, "level=INFO") {
					t.Errorf("logged, want a word that it works again:\n%s", got)
				}
				end()

				a.set(test.respond)
				_, end = watch(t, a.store(t, io.Discard))
				time.Sleep(time.Minute)
				synctest.Wait()
				end() // at once, in the middle of an outage
			})
		})
	}
}

// Errors are sentences of ours with a class; what a server says goes nowhere.
func TestWriteFailures(t *testing.T) {
	t.Parallel()
	respond := func(code int, reason metav1.StatusReason, causes ...metav1.StatusCause) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) {
			return answer(code, status(code, reason, causes...))
		}
	}
	const settle, apply = "Settle", "Apply"
	for _, test := range []struct {
		name    string
		respond func(*http.Request) (*http.Response, error)
		only    string // one of the two, "" for both
		want    refresh.Error
		text    string
		took    time.Duration
	}{
		{name: "unauthorized", respond: respond(401, metav1.StatusReasonUnauthorized),
			want: refresh.Error{Class: refresh.Misconfigured, Code: "401", RetryAfter: 7 * time.Second}, text: "token"},
		{name: "forbidden", respond: respond(403, metav1.StatusReasonForbidden),
			want: refresh.Error{Class: refresh.Misconfigured, Code: "403", RetryAfter: 7 * time.Second}, text: "config rbac"},
		{name: "the namespace ends", respond: respond(403, metav1.StatusReasonForbidden, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause}),
			want: refresh.Error{Class: refresh.Unavailable, Code: "403", RetryAfter: 7 * time.Second}, text: "being deleted"},
		{name: "no namespace", respond: respond(404, metav1.StatusReasonNotFound), only: apply,
			want: refresh.Error{Class: refresh.Misconfigured, Code: "404", RetryAfter: 7 * time.Second}, text: "namespace"},
		{name: "invalid", respond: respond(422, metav1.StatusReasonInvalid),
			want: refresh.Error{Class: refresh.Misconfigured, Code: "422", RetryAfter: 7 * time.Second}, text: "admission policy"},
		{name: "bad request", respond: respond(400, metav1.StatusReasonBadRequest),
			want: refresh.Error{Class: refresh.Misconfigured, Code: "400", RetryAfter: 7 * time.Second}, text: "does not take"},
		{name: "throttled", respond: respond(429, metav1.StatusReasonTooManyRequests),
			want: refresh.Error{Class: refresh.Throttled, Code: "429", RetryAfter: 7 * time.Second}, text: "too many requests"},
		{name: "throttled before anybody looked", respond: func(*http.Request) (*http.Response, error) {
			header := http.Header{"Content-Type": {"text/plain"}, "Retry-After": {"1"}}
			return &http.Response{StatusCode: 429, Header: header, Body: io.NopCloser(strings.NewReader("whatever-a-server-says"))}, nil
		}, want: refresh.Error{Class: refresh.Throttled, Code: "429", RetryAfter: time.Second}, text: "too many requests"},
		{name: "broken", respond: respond(500, metav1.StatusReasonInternalError),
			want: refresh.Error{Class: refresh.Unavailable, Code: "500", RetryAfter: 7 * time.Second}, text: "failed"},
		{name: "a proxy's page", respond: func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 502, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("whatever-a-server-says"))}, nil
		}, want: refresh.Error{Class: refresh.Unavailable, Code: "502"}, text: "failed"},
		{name: "no connection", respond: nil,
			want: refresh.Error{Class: refresh.Unavailable}, text: "cannot be reached"},
		{name: "no answer", respond: func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}, want: refresh.Error{Class: refresh.Unavailable}, text: "within 10s", took: 10 * time.Second},
	} {
		for verb, write := range map[string]func(*secret.Store, context.Context) error{
			apply: func(s *secret.Store, ctx context.Context) error {
				token := refresh.NewToken("the-token", time.Now(), time.Now().Add(time.Hour), time.Time{})
				return s.Apply(ctx, target, refresh.Observed{}, token, refresh.Record{})
			},
			settle: func(s *secret.Store, ctx context.Context) error {
				return s.Settle(ctx, target, refresh.Observed{Exists: true, Version: "5"}, refresh.Handled{Request: "r"}, time.Time{})
			},
		} {
			if test.only != "" && test.only != verb {
				continue
			}
			t.Run(test.name+"/"+verb, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var a api
					a.set(test.respond)
					began := time.Now()
					err := write(a.store(t, io.Discard), t.Context())
					if took := time.Since(began); took != test.took {
						t.Errorf("took %s, want %s", took, test.took)
					}
					if n := a.count(); n != 1 {
						t.Errorf("%d requests, want one", n)
					}
					var got *refresh.Error
					if !errors.As(err, &got) {
						t.Fatalf("got %v, want a *refresh.Error", err)
					}
					want := test.want
					want.Text = got.Text
					if *got != want || !strings.Contains(got.Text, test.text) || strings.Contains(err.Error(), "whatever-a-server-says") {
						t.Errorf("got %+v, want %+v about %q", *got, test.want, test.text)
					}
				})
			})
		}
	}
}

// The caller's end of time is not a failure of the API server.
func TestWriteIsCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var a api
		a.set(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := a.store(t, io.Discard).Apply(ctx, target, refresh.Observed{}, refresh.Token{}, refresh.Record{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
	})
}
