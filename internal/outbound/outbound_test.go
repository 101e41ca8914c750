package outbound_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"flux-token-refresher/internal/outbound"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "s3cret"

type client struct {
	spans *tracetest.SpanRecorder
	sent  http.Header // of the last request that arrived
	url   string
}

// ask makes a request below a span, or below none, by base and of a server that answers with status.
func (c *client) ask(t *testing.T, status int, base http.RoundTripper, propagator propagation.TextMapPropagator, within bool) trace.SpanContext {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.sent = r.Header
		w.Header().Set("X-Answer", secret)
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, secret)
	}))
	defer server.Close()
	c.url = server.URL
	c.spans = tracetest.NewSpanRecorder()
	ctx := t.Context()
	var parent trace.SpanContext
	if within {
		provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(c.spans))
		var span trace.Span
		ctx, span = provider.Tracer("test").Start(ctx, "parent")
		defer span.End()
		parent = span.SpanContext()
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPatch, strings.Replace(server.URL, "//", "//user:"+secret+"@", 1)+"/a/path?token="+secret, strings.NewReader(secret))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+secret)
	response, err := outbound.Transport(base, outbound.Method, propagator).RoundTrip(request)
	if err == nil {
		_ = response.Body.Close()
	}
	return parent
}

// failing is a RoundTripper whose error quotes.
type failing struct{}

func (failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New(secret) }

func TestTransport(t *testing.T) {
	t.Parallel()
	base := &http.Transport{DisableKeepAlives: true}
	for _, test := range []struct {
		name       string
		base       http.RoundTripper
		status     int
		code       codes.Code
		attributes map[string]string
	}{
		{"success", base, http.StatusOK, codes.Unset, map[string]string{"http.response.status_code": "200"}},
		{"refusal", base, http.StatusConflict, codes.Error, map[string]string{"http.response.status_code": "409", "error.type": "409"}},
		{"no answer", failing{}, 0, codes.Error, map[string]string{"error.type": "*errors.errorString"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var c client
			parent := c.ask(t, test.status, test.base, propagation.NewCompositeTextMapPropagator(), true)
			ended := c.spans.Ended()
			if len(ended) != 2 {
				t.Fatalf("%d spans, want one below the parent", len(ended))
			}
			span := ended[0]
			if span.Name() != http.MethodPatch || span.SpanKind() != trace.SpanKindClient || span.Parent().SpanID() != parent.SpanID() {
				t.Errorf("got %s, a %s below %s", span.Name(), span.SpanKind(), span.Parent().SpanID())
			}
			if status := span.Status(); status.Code != test.code || status.Description != "" {
				t.Errorf("status %v, want %s without a word", status, test.code)
			}
			u, err := url.Parse(c.url)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"http.request.method": "PATCH", "url.full": c.url + "/a/path", "server.address": u.Hostname(), "server.port": u.Port(), "network.protocol.version": "1.1",
			}
			maps.Copy(want, test.attributes)
			got := map[string]string{}
			for _, a := range span.Attributes() {
				got[string(a.Key)] = a.Value.String()
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if all := fmt.Sprint(span.Attributes(), span.Events(), span.Status(), span.Links()); strings.Contains(all, secret) {
				t.Errorf("the span holds what is secret: %s", all)
			}
			if c.sent.Get("traceparent") != "" {
				t.Error("the trace travelled along")
			}
		})
	}
}

func TestTheTraceTravelsWhereItMay(t *testing.T) {
	t.Parallel()
	var c client
	c.ask(t, http.StatusOK, &http.Transport{DisableKeepAlives: true}, propagation.TraceContext{}, true)
	sc := c.spans.Ended()[0].SpanContext()
	if got, want := c.sent.Get("traceparent"), fmt.Sprintf("00-%s-%s-01", sc.TraceID(), sc.SpanID()); got != want {
		t.Errorf("traceparent %q, want %q", got, want)
	}
}

func TestWithoutATraceThereIsNoSpan(t *testing.T) {
	t.Parallel()
	var c client
	c.ask(t, http.StatusOK, &http.Transport{DisableKeepAlives: true}, propagation.TraceContext{}, false)
	if c.sent == nil || c.sent.Get("traceparent") != "" || len(c.spans.Started()) != 0 {
		t.Errorf("sent %v, spans %v", c.sent, c.spans.Started())
	}
}

// TestQuiet makes a span as azcore does.
func TestQuiet(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	provider := outbound.Quiet(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
	const id = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
	_, span := provider.Tracer("test").Start(context.Background(), "HTTP POST", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("http.method", "POST"), attribute.String("http.url", "https://user:"+secret+"@login.example:8443/token?x="+secret),
		attribute.String("net.peer.name", "login.example:8443"), attribute.String("http.user_agent", "azsdk-go"),
	))
	span.SetStatus(codes.Error, secret)
	span.RecordError(errors.New(secret))
	span.AddEvent(secret)
	span.SetAttributes(attribute.Int("http.status_code", 400), attribute.String("az.service_request_id", secret))
	span.SetAttributes(attribute.String("az.service_request_id", id), attribute.String("az.namespace", "Microsoft.Entra"))
	span.End()
	ended := spans.Ended()[0]
	got := map[string]string{}
	for _, a := range ended.Attributes() {
		got[string(a.Key)] = a.Value.String()
	}
	want := map[string]string{
		"http.request.method": "POST", "url.full": "https://login.example:8443/token", "server.address": "login.example", "server.port": "8443",
		"user_agent.original": "azsdk-go", "http.response.status_code": "400", "error.type": "400", "az.service_request_id": id, "az.namespace": "Microsoft.Entra",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if ended.SpanKind() != trace.SpanKindClient || ended.Status().Code != codes.Error || ended.Status().Description != "" || len(ended.Events()) != 0 {
		t.Errorf("kind %s, status %v, events %v", ended.SpanKind(), ended.Status(), ended.Events())
	}
}

// TestQuietNamesEachFailure: azcore says of a request without an answer, and of a credential that gives no token, in its own words only what failed.
func TestQuietNamesEachFailure(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	tracer := outbound.Quiet(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))).Tracer("test")
	_, unanswered := tracer.Start(context.Background(), "HTTP POST")
	unanswered.SetStatus(codes.Error, secret)
	unanswered.End()
	_, answered := tracer.Start(context.Background(), "HTTP POST")
	answered.SetAttributes(attribute.Int("http.status_code", 503))
	answered.SetStatus(codes.Error, secret)
	answered.End()
	for i, want := range []string{"_OTHER", "503"} {
		got := map[string]string{}
		for _, a := range spans.Ended()[i].Attributes() {
			got[string(a.Key)] = a.Value.String()
		}
		if got["error.type"] != want {
			t.Errorf("error.type %q, want %q", got["error.type"], want)
		}
	}
}
