package events_test

// The bench: a Handler with two senders and a third that may speak of one namespace, a Router and a Requester that can be told to
// fail, and everything that the Handler says.

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"flux-token-refresher/events"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	fluxKey   = "the-key-that-flux-signs-with-0123456789"
	otherKey  = "the-key-that-another-one-signs-with-012"
	tokenKey  = "the-token-of-a-broker-0123456789-abcdef"
	tenantKey = "the-token-of-one-tenant-0123456789-abcd"
)

func static(key string) events.Key { return func() ([]byte, error) { return []byte(key), nil } }

type bench struct {
	http.Handler
	config    events.Config
	router    *router
	requester *requester
	spans     *tracetest.SpanRecorder
	metrics   *sdkmetric.ManualReader
	log       *log
}

func newBench(t testing.TB, change ...func(*events.Config)) *bench {
	t.Helper()
	b := &bench{router: &router{}, requester: &requester{}, spans: tracetest.NewSpanRecorder(), metrics: sdkmetric.NewManualReader(), log: &log{}}
	config := events.Config{
		Senders: []events.Sender{
			{Name: "flux", HMACKey: static(fluxKey), Namespaces: []string{"*"}},
			{Name: "other", HMACKey: static(otherKey), Namespaces: []string{"*"}},
			{Name: "broker", BearerToken: static(tokenKey), Namespaces: []string{"*"}},
			{Name: "tenant", BearerToken: static(tenantKey), Namespaces: []string{"apps"}},
		},
		Decoder:        decodeFlux,
		Logger:         slog.New(slog.NewJSONHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(b.spans)),
		MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(b.metrics)),
	}
	for _, c := range change {
		c(&config)
	}
	b.config = config
	var err error
	if b.Handler, err = events.Handler(config, b.router, b.requester); err != nil {
		t.Fatal(err)
	}
	return b
}

// with changes a request before it is sent; signed and the like look at its body.
type with func(r *http.Request, body string)

func header(name, value string) with {
	return func(r *http.Request, _ string) { r.Header.Add(name, value) }
}

func media(value string) with {
	return func(r *http.Request, _ string) { r.Header.Set("Content-Type", value) }
}

func bearer(token string) with { return header("Authorization", "Bearer "+token) }

func macOf(key, body string) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

func signed(key string) with {
	return func(r *http.Request, body string) { r.Header.Set("X-Signature", macOf(key, body)) }
}

func method(name string) with { return func(r *http.Request, _ string) { r.Method = name } }

func newRequest(ctx context.Context, url, body string, changes ...with) *http.Request {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for _, change := range changes {
		change(r, body)
	}
	return r
}

func (b *bench) send(t testing.TB, body string, changes ...with) *httptest.ResponseRecorder {
	return b.do(newRequest(t.Context(), events.Path, body, changes...))
}

func (b *bench) do(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w
}

// answer is one of a 202.
type answer struct {
	ID, Verdict, Rule, Outcome string
	Targets                    []string
}

func answerOf(t testing.TB, w *httptest.ResponseRecorder) (a answer) {
	t.Helper()
	if w.Code != http.StatusAccepted {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return a
}

func errorOf(t testing.TB, w *httptest.ResponseRecorder) string {
	t.Helper()
	var a map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || len(a) != 1 || a["error"] == "" {
		t.Fatalf("status %d, not an error: %s", w.Code, w.Body)
	}
	return a["error"]
}

func wantStatus(t testing.TB, w *httptest.ResponseRecorder, want int) {
	t.Helper()
	if w.Code != want {
		t.Errorf("status %d, want %d: %s", w.Code, want, w.Body)
	}
}

// counts are the series of token_refresher.events that have counted something, by "sender type verdict outcome".
func (b *bench) counts(t testing.TB) map[string]int64 {
	t.Helper()
	return b.countsBy(t, "sender", "type", "verdict", "outcome")
}

// countsBy gives the values of some labels, with spaces between them.
func (b *bench) countsBy(t testing.TB, labels ...string) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := b.metrics.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
				if p.Attributes.Len() != 4 {
					t.Errorf("%s has %d labels", m.Name, p.Attributes.Len())
				}
				values := make([]string, len(labels))
				for i, label := range labels {
					v, _ := p.Attributes.Value(attribute.Key(label))
					values[i] = v.AsString()
				}
				if p.Value > 0 {
					counts[strings.Join(values, " ")] += p.Value
				}
			}
		}
	}
	return counts
}

// fluxEvent is what notification-controller posts, cut to what matters here, about an object in apps.
func fluxEvent(name, message string, at time.Time) string {
	return fmt.Sprintf(`{"involvedObject":{"kind":"GitRepository","namespace":"apps","name":%q},"severity":"error","timestamp":%q,"message":%q,"reason":"GitOperationFailed"}`,
		name, at.UTC().Format(time.RFC3339), message)
}

func decodeFlux(body []byte) (events.Event, error) {
	var f struct {
		InvolvedObject struct{ Namespace, Name string }
		Timestamp      time.Time
	}
	if err := json.Unmarshal(body, &f); err != nil {
		return events.Event{}, fmt.Errorf("%s: %w", body, err)
	}
	if f.InvolvedObject.Name == "" {
		return events.Event{}, fmt.Errorf("not about an object: %s", body)
	}
	e := event.New()
	hash := sha256.Sum256(body)
	e.SetID(hex.EncodeToString(hash[:]))
	e.SetType(events.TypeFlux)
	e.SetSource("/flux")
	e.SetSubject(f.InvolvedObject.Namespace + "/" + f.InvolvedObject.Name)
	e.SetTime(f.Timestamp)
	err := e.SetData(event.ApplicationJSON, body)
	return events.Event{Event: e, Content: f.InvolvedObject.Name}, err
}

// cloudEvent is one in the JSON format; attributes are added to it, or replace its own, or remove them where they are nil.
func cloudEvent(attributes map[string]any) string {
	all := map[string]any{
		"specversion": "1.0", "id": "1", "source": "/test", "type": events.TypeRefreshRequested, "subject": "apps/repos",
		"time": time.Now().UTC().Format(time.RFC3339),
	}
	for name, value := range attributes {
		all[name] = value
		if value == nil {
			delete(all, name)
		}
	}
	data, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func batchOf(events ...string) string { return "[" + strings.Join(events, ",") + "]" }

// router leads each event to the Secret that its subject names, unless that is called unrelated, and keeps those that it looked for the targets of.
type router struct {
	mu     sync.Mutex
	routed []events.Event
	err    error
	// before is done first, if there is any.
	before func(context.Context) error
}

func (r *router) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *router) Classify(e events.Event, may func(string) bool) events.Classification {
	namespace, name, _ := strings.Cut(e.Subject(), "/")
	switch {
	case !may(namespace):
		return events.Classification{Verdict: events.Unrelated, Rule: "namespace"}
	case name == "unrelated":
		return events.Classification{Verdict: events.Unrelated, Rule: "timeout"}
	case name != "two" && e.Type() == events.TypeRefreshRequested:
		return events.Classification{Verdict: events.RefreshRequested, Rule: "request"}
	}
	return events.Classification{Verdict: events.AuthFailure, Rule: "401"}
}

func (r *router) Targets(ctx context.Context, e events.Event) ([]string, error) {
	if r.before != nil {
		if err := r.before(ctx); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.routed = append(r.routed, e)
	if r.err != nil {
		return nil, r.err
	}
	switch namespace, name, _ := strings.Cut(e.Subject(), "/"); name {
	case "nowhere":
		return nil, nil
	case "two":
		return []string{namespace + "/a", namespace + "/b"}, nil
	}
	return []string{e.Subject()}, nil
}

func (r *router) seen() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.routed)
}

type request struct {
	target string
	events.Ask
}

// requester takes each request once; the same again is coalesced. It does first what is set for a target.
type requester struct {
	mu       sync.Mutex
	requests []request
	before   map[string]func(context.Context) error
}

func (r *requester) set(target string, before func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = map[string]func(context.Context) error{target: before}
}

func (r *requester) Request(ctx context.Context, target string, ask events.Ask) (events.Outcome, error) {
	r.mu.Lock()
	before := r.before[target]
	r.mu.Unlock()
	if before != nil {
		if err := before(ctx); err != nil {
			return "", err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, known := range r.requests {
		if known.target == target && known.Sender == ask.Sender && known.Source == ask.Source && known.ID == ask.ID {
			return events.Coalesced, nil
		}
	}
	r.requests = append(r.requests, request{target, ask})
	return events.Requested, nil
}

func (r *requester) made() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]request(nil), r.requests...)
}

var errDown = errors.New("the server could not be reached")

func down(context.Context) error { return errDown }

// log is what was logged.
type log struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.String()
}
