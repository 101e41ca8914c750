package events_test

// The table of answers, and how they exclude each other.

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"flux-token-refresher/events"
)

const maxHandled = 6

func TestAnswers(t *testing.T) {
	t.Parallel()
	now := time.Now()
	flux := fluxEvent("repos", "authentication required", now)
	tooBig := flux + strings.Repeat(" ", 256<<10)
	many := func(n int) string {
		all := make([]string, n)
		for i := range all {
			all[i] = cloudEvent(map[string]any{"id": fmt.Sprint(i), "subject": fmt.Sprint("apps/", i)})
		}
		return batchOf(all...)
	}
	for _, test := range []struct {
		name    string
		body    string
		with    []with
		status  int
		outcome string // as the counter has it
		headers map[string]string
	}{
		{"an event of Flux", flux, []with{signed(fluxKey)}, 202, "flux io.fluxcd.event auth-failure requested", nil},
		{"a request", cloudEvent(nil), []with{signed(fluxKey)}, 202, "flux flux-token-refresher.refresh.requested refresh-requested requested", nil},
		{"an unrelated one", fluxEvent("unrelated", "i/o timeout", now), []with{signed(fluxKey)}, 202, "flux io.fluxcd.event unrelated ignored", nil},
		{"another type", cloudEvent(map[string]any{"type": "com.example.other"}), []with{signed(fluxKey)}, 202, "flux other unrelated ignored", nil},
		{"of a namespace that the sender may speak of", cloudEvent(nil), []with{bearer(tenantKey)}, 202, "tenant flux-token-refresher.refresh.requested refresh-requested requested", nil},
		{"of another namespace", cloudEvent(map[string]any{"subject": "prod/repos"}), []with{bearer(tenantKey)}, 202, "tenant flux-token-refresher.refresh.requested unrelated ignored", nil},
		{"100 events", many(100), []with{signed(fluxKey)}, 202, "flux flux-token-refresher.refresh.requested refresh-requested requested", nil},
		{"no events", "[]", []with{signed(fluxKey)}, 202, "", nil},

		{"GET", "", []with{method(http.MethodGet), signed(fluxKey)}, 405, "none other none method-not-allowed", map[string]string{"Allow": "POST, OPTIONS"}},
		{"a large body", tooBig, []with{signed(fluxKey)}, 413, "none other none too-large", nil},
		{"101 events", many(101), []with{signed(fluxKey)}, 413, "none other none too-large", nil},
		{"no proof", flux, nil, 401, "none other none unauthenticated", map[string]string{"WWW-Authenticate": "Bearer"}},
		{"text", flux, []with{signed(fluxKey), media("text/plain")}, 415, "none other none unsupported-media-type", nil},
		{"no media type", flux, []with{signed(fluxKey), func(r *http.Request, _ string) { r.Header.Del("Content-Type") }}, 415, "none other none unsupported-media-type", nil},
		{"a broken media type", flux, []with{signed(fluxKey), media("application/json; charset")}, 415, "none other none unsupported-media-type", nil},
		{"latin1", flux, []with{signed(fluxKey), media("application/json; charset=iso-8859-1")}, 415, "none other none unsupported-media-type", nil},
		{"avro", flux, []with{signed(fluxKey), media("application/cloudevents+avro")}, 415, "none other none unsupported-media-type", nil},
		{"gzip", flux, []with{signed(fluxKey), header("Content-Encoding", "gzip")}, 415, "none other none unsupported-media-type", nil},
		{"nothing", "", []with{signed(fluxKey)}, 400, "none other none invalid", nil},
		{"an event of nobody", `{"hello":"world"}`, []with{signed(fluxKey)}, 400, "none other none invalid", nil},
		{"too old", fluxEvent("repos", "", now.Add(-11*time.Minute)), []with{signed(fluxKey)}, 400, "none other none stale", nil},
		{"the router fails", fluxEvent("lost", "", now), []with{signed(fluxKey)}, 503, "none other none unavailable", map[string]string{"Retry-After": "3"}},
		{"the requester fails", fluxEvent("down", "", now), []with{signed(fluxKey)}, 503, "none other none unavailable", map[string]string{"Retry-After": "3"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.requester.set("apps/down", down)
			if strings.Contains(test.body, "lost") {
				b.router.fail(errDown)
			}
			w := b.send(t, test.body, test.with...)
			wantStatus(t, w, test.status)
			if got := w.Header().Get("Content-Type"); got != "application/json" {
				t.Errorf("Content-Type %q", got)
			}
			for name, want := range test.headers {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if test.status != http.StatusAccepted {
				errorOf(t, w)
			}
			counts := b.counts(t)
			if len(counts) > 1 || counts[test.outcome] == 0 && test.outcome != "" {
				t.Errorf("counted %v, want %s", counts, test.outcome)
			}
			if test.status != http.StatusAccepted && len(b.requester.made()) > 0 {
				t.Errorf("it asked for %v", b.requester.made())
			}
		})
	}
}

// TestRefusalsAreCountedFromZero: Prometheus's increase() does not see the first one of a series that begins with it.
func TestRefusalsAreCountedFromZero(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var all metricdata.ResourceMetrics
	if err := b.metrics.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, p := range all.ScopeMetrics[0].Metrics[0].Data.(metricdata.Sum[int64]).DataPoints {
		why, _ := p.Attributes.Value("outcome")
		got[why.AsString()] = p.Value
	}
	want := map[string]int64{
		"method-not-allowed": 0, "too-many-requests": 0, "too-large": 0, "unauthenticated": 0, "unsupported-media-type": 0, "invalid": 0, "cut-off": 0, "incomplete": 0, "stale": 0,
		"unavailable": 0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestAnswerBody(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	body := fluxEvent("two", "authentication required", time.Now())
	e, err := decodeFlux([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{"id":%q,"verdict":"auth-failure","rule":"401","targets":["apps/a","apps/b"],"outcome":"requested"}`+"\n", e.ID())
	if got := b.send(t, body, signed(fluxKey)).Body.String(); got != want {
		t.Errorf("got %s want %s", got, want)
	}
	// The strongest of two outcomes: the request for b is there already, that for a is not any more.
	half := newBench(t)
	half.requester.requests = b.requester.requests[1:]
	if got := half.send(t, body, signed(fluxKey)).Body.String(); got != want {
		t.Errorf("one more, one again: got %s want %s", got, want)
	}
	if got, want := b.send(t, body, signed(fluxKey)).Body.String(), strings.Replace(want, "requested", "coalesced", 1); got != want {
		t.Errorf("all again: got %s want %s", got, want)
	}
	unrelated := fluxEvent("unrelated", "i/o timeout", time.Now())
	if got := b.send(t, unrelated, signed(fluxKey)).Body.String(); !strings.Contains(got, `"targets":[],"outcome":"ignored"`) {
		t.Errorf("unrelated: %s", got)
	}
	if got := b.send(t, "[]", signed(fluxKey)).Body.String(); got != "[]\n" {
		t.Errorf("no events: %s", got)
	}
}

func TestAsk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		at := time.Now().Add(-5 * time.Minute)
		answerOf(t, b.send(t, cloudEvent(map[string]any{"time": at.Format(time.RFC3339Nano)}), bearer(tenantKey)))
		want := []request{{"apps/repos", events.Ask{Sender: "tenant", Source: "/test", ID: "1", Verdict: events.RefreshRequested, Time: at, Received: time.Now()}}}
		got := b.requester.made()
		got[0].TraceParent = ""
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(request{})); diff != "" {
			t.Error(diff)
		}
	})
}

// TestPrecedence sends a request with everything wrong, and takes away one fault after the other. What a stranger can make
// comes before what only a sender can.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	faults := []struct {
		status int
		fault  string
	}{
		{405, "method"}, {401, "no proof"}, {413, "large"}, {401, "wrong proof"}, {429, "busy"}, {415, "media"}, {400, "stale"}, {503, "down"}, {202, ""},
	}
	for i, first := range faults {
		wrong := map[string]bool{}
		for _, f := range faults[i:] {
			wrong[f.fault] = true
		}
		t.Run(fmt.Sprint(first.status, " ", first.fault), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.requester.set("apps/repos", nil)
				if wrong["busy"] {
					defer b.occupy(t)()
				}
				at, proof, changes := time.Now(), signed(fluxKey), []with(nil)
				if wrong["stale"] {
					at = at.Add(-time.Hour)
				}
				body := fluxEvent("repos", "", at)
				if wrong["large"] {
					body += strings.Repeat(" ", 256<<10)
				}
				if wrong["wrong proof"] {
					proof = signed("somebody-else-signed-this-0123456789")
				}
				if wrong["no proof"] {
					proof = func(*http.Request, string) {}
				}
				if wrong["media"] {
					changes = append(changes, media("text/plain"))
				}
				if wrong["method"] {
					changes = append(changes, method(http.MethodPut))
				}
				if wrong["down"] {
					b.router.fail(errDown)
				}
				wantStatus(t, b.send(t, body, append(changes, proof)...), first.status)
			})
		})
	}
}

// occupy takes all turns with requests that wait; what it gives lets them go.
func (b *bench) occupy(t *testing.T) (leave func()) {
	var all sync.WaitGroup
	in, out := make(chan struct{}), make(chan struct{})
	b.requester.set("apps/slow", func(context.Context) error {
		in <- struct{}{}
		<-out
		return nil
	})
	body := fluxEvent("slow", "", time.Now())
	for range maxHandled {
		all.Go(func() { wantStatus(t, b.send(t, body, signed(fluxKey)), http.StatusAccepted) })
		<-in
	}
	return func() { close(out); all.Wait() }
}

func TestTooManyAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		body := fluxEvent("repos", "", time.Now())
		leave := b.occupy(t)
		began := time.Now()
		w := b.send(t, body, signed(fluxKey))
		wantStatus(t, w, http.StatusTooManyRequests)
		if got := w.Header().Get("Retry-After"); got != "1" || time.Since(began) != time.Second {
			t.Errorf("Retry-After %q, after %s", got, time.Since(began))
		}
		leave()
		wantStatus(t, b.send(t, body, signed(fluxKey)), http.StatusAccepted)
	})
}

// TestPanics: a request that panics, which net/http survives, leaves its place and its turn.
func TestPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.requester.set("apps/broken", func(context.Context) error { panic("broken") })
		for range 16 {
			func() {
				defer func() {
					if recover() == nil {
						t.Error("no panic")
					}
				}()
				b.send(t, fluxEvent("broken", "", time.Now()), signed(fluxKey))
			}()
		}
		wantStatus(t, b.send(t, fluxEvent("repos", "", time.Now()), signed(fluxKey)), http.StatusAccepted)
	})
}

func TestStale(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		age    time.Duration
		maxAge time.Duration
		status int
	}{
		{"as old as may be", 10 * time.Minute, 0, 202},
		{"older", 10*time.Minute + time.Second, 0, 400},
		{"older than is configured", 2*time.Minute + time.Second, 2 * time.Minute, 400},
		{"a clock that is ahead", -time.Minute, 0, 202},
		{"a clock that is wrong", -time.Minute - time.Second, 0, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, func(c *events.Config) { c.MaxAge = test.maxAge })
				at := time.Now().Add(-test.age)
				for _, body := range []string{
					fluxEvent("repos", "", at),
					cloudEvent(map[string]any{"time": at.Format(time.RFC3339)}),
					cloudEvent(map[string]any{"time": at.Format(time.RFC3339), "type": "com.example.other"}),
				} {
					w := b.send(t, body, signed(fluxKey))
					wantStatus(t, w, test.status)
					if test.status != http.StatusAccepted && !strings.Contains(errorOf(t, w), "attribute time") {
						t.Errorf("it does not name the attribute: %s", w.Body)
					}
				}
			})
		})
	}
	b := newBench(t)
	for _, at := range []any{nil, "0001-01-01T00:00:00Z", "yesterday"} {
		w := b.send(t, cloudEvent(map[string]any{"time": at}), signed(fluxKey))
		wantStatus(t, w, http.StatusBadRequest)
		if !strings.Contains(errorOf(t, w), "time") {
			t.Errorf("it does not name the attribute: %s", w.Body)
		}
	}
}

// TestBatch: all or nothing.
func TestBatch(t *testing.T) {
	t.Parallel()
	good := cloudEvent(nil)
	other := cloudEvent(map[string]any{"id": "2", "type": "com.example.other"})
	again := cloudEvent(map[string]any{"id": "3", "subject": "apps/two"})
	batch := media("application/cloudevents-batch+json; charset=UTF-8")

	b := newBench(t)
	w := b.send(t, batchOf(good, other, again, good), signed(fluxKey), batch)
	wantStatus(t, w, http.StatusAccepted)
	var got []answer
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := []answer{
		{"1", "refresh-requested", "request", "requested", []string{"apps/repos"}},
		{"2", "unrelated", "type", "ignored", []string{}},
		{"3", "auth-failure", "401", "requested", []string{"apps/a", "apps/b"}},
		{"1", "refresh-requested", "request", "coalesced", []string{"apps/repos"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	for name, bad := range map[string]string{
		"stale":         cloudEvent(map[string]any{"time": "2020-01-01T00:00:00Z"}),
		"without an id": cloudEvent(map[string]any{"id": nil}),
		"of Flux":       fluxEvent("repos", "", time.Now()),
		"null":          "null",
		"a number":      "1",
	} {
		b := newBench(t)
		w := b.send(t, batchOf(good, bad, good), signed(fluxKey), batch)
		wantStatus(t, w, http.StatusBadRequest)
		if got := errorOf(t, w); !strings.HasPrefix(got, "event 2: ") {
			t.Errorf("%s: it does not say which: %s", name, got)
		}
		if b.router.seen() > 0 || len(b.requester.made()) > 0 {
			t.Errorf("%s: something was asked for", name)
		}
	}
}

// TestRetry: what fails half way is not acknowledged, and sent again it is complete, with nothing twice.
func TestRetry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	body := batchOf(cloudEvent(nil), cloudEvent(map[string]any{"id": "2", "subject": "apps/two"}))
	b.requester.set("apps/b", down)
	w := b.send(t, body, signed(fluxKey))
	wantStatus(t, w, http.StatusServiceUnavailable)
	errorOf(t, w)
	if got := len(b.requester.made()); got != 2 {
		t.Errorf("%d requests beside the one that failed, want 2", got)
	}
	b.requester.set("apps/b", nil)
	w = b.send(t, body, signed(fluxKey))
	wantStatus(t, w, http.StatusAccepted)
	var targets []string
	for _, r := range b.requester.made() {
		targets = append(targets, r.target)
	}
	slices.Sort(targets)
	if diff := cmp.Diff([]string{"apps/a", "apps/b", "apps/repos"}, targets); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(b.log.String(), errDown.Error()) {
		t.Error("the log does not say why")
	}
}

// TestAPIHangs: a sender is not kept waiting longer than it would wait.
func TestAPIHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.requester.set("apps/repos", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		began := time.Now()
		wantStatus(t, b.send(t, cloudEvent(nil), signed(fluxKey)), http.StatusServiceUnavailable)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	origin, rate := "WebHook-Request-Origin", "WebHook-Request-Rate"
	for _, test := range []struct {
		name    string
		with    []with
		consent string
	}{
		{"with a rate", []with{header(origin, "broker.example.com"), header(rate, "120")}, "broker.example.com"},
		{"with a callback, which is not called", []with{header(origin, "broker.example.com"), header("WebHook-Request-Callback", "https://broker.example.com/confirm")},
			"broker.example.com"},
		{"without a rate", []with{header(origin, "*.example.com")}, "*.example.com"},
		{"of nobody", nil, ""},
		{"of two", []with{header(origin, "a.example.com"), header(origin, "b.example.com")}, ""},
		{"of what is no domain", []with{header(origin, "https://broker.example.com/")}, ""},
		{"of a long name", []with{header(origin, strings.Repeat("a.", 127))}, ""},
		{"at no rate", []with{header(origin, "broker.example.com"), header(rate, "0")}, ""},
		{"at a rate below", []with{header(origin, "broker.example.com"), header(rate, "-1")}, ""},
		{"at a rate that is no number", []with{header(origin, "broker.example.com"), header(rate, "often")}, ""},
		{"at two rates", []with{header(origin, "broker.example.com"), header(rate, "1"), header(rate, "2")}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			w := b.send(t, "", append(test.with, method(http.MethodOptions))...)
			wantStatus(t, w, http.StatusOK)
			want := map[string]string{"WebHook-Allowed-Origin": test.consent, "WebHook-Allowed-Rate": "", "Allow": "POST, OPTIONS"}
			if test.consent != "" {
				want["WebHook-Allowed-Rate"] = "*"
			}
			for name, want := range want {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if b.router.seen() > 0 || len(b.spans.Started()) > 0 {
				t.Error("an unauthenticated request went further than it may")
			}
		})
	}
}

func TestOtherPaths(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, path := range []string{"/", "/events/", "//events", "/metrics"} {
		r := newRequest(t.Context(), "http://receiver.example"+path, cloudEvent(nil), signed(fluxKey))
		wantStatus(t, b.do(r), http.StatusNotFound)
	}
}
