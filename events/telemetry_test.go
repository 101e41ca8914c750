package events_test

// Spans, traces and logs: what they say, and what they never do.

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"flux-token-refresher/events"
)

const (
	httpTrace  = "0af7651916cd43dd8448eb211c80319c"
	httpParent = "00-" + httpTrace + "-b7ad6b7169203331-01"
	linkTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	linkParent = "00-" + linkTrace + "-00f067aa0ba902b7-01"
)

func (b *bench) span(t *testing.T, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	var found []sdktrace.ReadOnlySpan
	for _, s := range b.spans.Ended() {
		if s.Name() == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %q", len(found), name)
	}
	return found[0]
}

func attributesOf(s sdktrace.ReadOnlySpan) map[string]string {
	attributes := map[string]string{}
	for _, a := range s.Attributes() {
		attributes[string(a.Key)] = a.Value.String()
	}
	return attributes
}

func TestSpans(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	wantStatus(t, b.send(t, cloudEvent(nil), signed(fluxKey)), http.StatusAccepted)
	server, producer := b.span(t, "POST /events"), b.span(t, "refresh.request")
	event := map[string]string{
		"cloudevents.event_id": "1", "cloudevents.event_source": "/test", "cloudevents.event_spec_version": "1.0",
		"cloudevents.event_type": events.TypeRefreshRequested, "cloudevents.event_subject": "apps/repos",
		"event.sender": "flux", "event.verdict": "refresh-requested", "event.rule": "request", "event.outcome": "requested",
	}
	with := func(more map[string]string) map[string]string {
		maps.Copy(more, event)
		return more
	}
	want := with(map[string]string{
		"http.request.method": "POST", "http.route": "/events", "http.response.status_code": "202",
		"url.path": "/events", "url.scheme": "http", "network.peer.address": "192.0.2.1", "network.protocol.version": "1.1",
	})
	if diff := cmp.Diff(want, attributesOf(server)); diff != "" {
		t.Error(diff)
	}
	want = with(map[string]string{
		"refresh.target": "apps/repos", "messaging.system": "kubernetes", "messaging.destination.name": "apps/repos",
		"messaging.operation.type": "send", "messaging.operation.name": "refresh.request",
	})
	if diff := cmp.Diff(want, attributesOf(producer)); diff != "" {
		t.Error(diff)
	}
	if server.SpanKind() != trace.SpanKindServer || producer.SpanKind() != trace.SpanKindProducer {
		t.Errorf("kinds %s and %s", server.SpanKind(), producer.SpanKind())
	}
	if producer.Parent().SpanID() != server.SpanContext().SpanID() {
		t.Error("the producer is not below the server")
	}
	sc := producer.SpanContext()
	if got, want := b.requester.made()[0].TraceParent, fmt.Sprintf("00-%s-%s-01", sc.TraceID(), sc.SpanID()); got != want {
		t.Errorf("traceparent %s, want %s", got, want)
	}
}

// TestLongNames: what a sender chooses is whole in the answer and for the Requester, and cut in spans and logs.
func TestLongNames(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := strings.Repeat("ü", 1000)
	if got := answerOf(t, b.send(t, cloudEvent(map[string]any{"id": id}), signed(fluxKey))).ID; got != id || b.requester.made()[0].ID != id {
		t.Errorf("the id is not whole: %s", got)
	}
	for _, s := range b.spans.Ended() {
		if got, want := attributesOf(s)["cloudevents.event_id"], id[:256]+"…"; got != want {
			t.Errorf("%s: id %s, want %s", s.Name(), got, want)
		}
	}
	if strings.Contains(b.log.String(), id[:258]) {
		t.Error("the id is whole in the log")
	}
}

func TestSpansOfABatch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	body := batchOf(cloudEvent(nil), cloudEvent(map[string]any{"id": "2", "subject": "apps/two", "traceparent": linkParent}))
	wantStatus(t, b.send(t, body, signed(fluxKey)), http.StatusAccepted)
	server := b.span(t, "POST /events")
	want := map[string]string{
		"event.sender": "flux", "messaging.batch.message_count": "2", "http.request.method": "POST", "http.route": "/events", "http.response.status_code": "202",
		"url.path": "/events", "url.scheme": "http", "network.peer.address": "192.0.2.1", "network.protocol.version": "1.1",
	}
	if diff := cmp.Diff(want, attributesOf(server)); diff != "" {
		t.Error(diff)
	}
	if len(server.Links()) != 1 || len(b.spans.Ended()) != 4 {
		t.Errorf("%d links, %d spans", len(server.Links()), len(b.spans.Ended()))
	}
}

// TestTraceParent: headers count only under a token; the extension is a part of the event.
func TestTraceParent(t *testing.T) {
	t.Parallel()
	extended := cloudEvent(map[string]any{"traceparent": linkParent})
	binary := []with{
		bearer(tokenKey), header("ce-specversion", "1.0"), header("ce-id", "1"), header("ce-source", "/test"), header("ce-type", events.TypeRefreshRequested),
		header("ce-subject", "apps/repos"), header("ce-time", time.Now().UTC().Format(time.RFC3339)), header("ce-traceparent", linkParent),
	}
	for _, test := range []struct {
		name   string
		body   string
		with   []with
		parent bool
		link   bool
	}{
		{"signed", cloudEvent(nil), []with{signed(fluxKey)}, false, false},
		{"signed, by its extension", extended, []with{signed(fluxKey)}, false, true},
		{"with a token", cloudEvent(nil), []with{bearer(tokenKey)}, true, false},
		{"with a token, by its extension", extended, []with{bearer(tokenKey)}, true, true},
		{"binary", "", binary, true, true},
		{"a broken extension", cloudEvent(map[string]any{"traceparent": "00-1"}), []with{bearer(tokenKey)}, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			wantStatus(t, b.send(t, test.body, append([]with{header("traceparent", httpParent)}, test.with...)...), http.StatusAccepted)
			server := b.span(t, "POST /events")
			if got := server.SpanContext().TraceID().String() == httpTrace && server.Parent().IsRemote(); got != test.parent {
				t.Errorf("below the header's trace: %t, want %t", got, test.parent)
			}
			if got := len(server.Links()) == 1 && server.Links()[0].SpanContext.TraceID().String() == linkTrace; got != test.link {
				t.Errorf("linked to the extension's trace: %t, want %t", got, test.link)
			}
			if got := strings.Contains(b.requester.made()[0].TraceParent, httpTrace); got != test.parent {
				t.Errorf("the request carries the header's trace: %t, want %t", got, test.parent)
			}
		})
	}
}

// TestTraceState: what a span keeps of it until it is exported has bounds.
func TestTraceState(t *testing.T) {
	t.Parallel()
	for length, kept := range map[int]bool{512: true, 513: false} {
		b := newBench(t)
		state := "vendor=" + strings.Repeat("v", 250) + ",other="
		state += strings.Repeat("o", length-len(state))
		body := cloudEvent(map[string]any{"traceparent": linkParent, "tracestate": "vendor=v"})
		wantStatus(t, b.send(t, body, bearer(tokenKey), header("traceparent", httpParent), header("tracestate", state)), http.StatusAccepted)
		server := b.span(t, "POST /events")
		if got := server.SpanContext().TraceState().String(); (got == state) != kept || !kept && got != "" {
			t.Errorf("of %d characters the span keeps %q", length, got)
		}
		if server.SpanContext().TraceID().String() != httpTrace {
			t.Errorf("with a tracestate of %d characters it is no part of the trace", length)
		}
		if links := server.Links(); len(links) != 1 || links[0].SpanContext.TraceState().Len() > 0 {
			t.Errorf("links %v", links)
		}
	}
}

// TestUnsampledParent: what a sender does not sample is not recorded here, nor where its request is answered.
func TestUnsampledParent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	wantStatus(t, b.send(t, cloudEvent(nil), bearer(tokenKey), header("traceparent", strings.TrimSuffix(httpParent, "01")+"00")), http.StatusAccepted)
	if ended := b.spans.Ended(); len(ended) > 0 {
		t.Errorf("%d spans", len(ended))
	}
	if got := b.requester.made()[0].TraceParent; !strings.Contains(got, httpTrace) || !strings.HasSuffix(got, "-00") {
		t.Errorf("the request carries %s", got)
	}
}

func TestSpanStatus(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.requester.set("apps/repos", down)
	wantStatus(t, b.send(t, cloudEvent(nil), signed(fluxKey)), http.StatusServiceUnavailable)
	for name, errorType := range map[string]string{"POST /events": "503", "refresh.request": "unavailable"} {
		s := b.span(t, name)
		if s.Status().Code != codes.Error || attributesOf(s)["error.type"] != errorType {
			t.Errorf("%s: status %v, %v", name, s.Status(), attributesOf(s))
		}
		if len(s.Events()) != 1 || s.Events()[0].Name != "exception" {
			t.Errorf("%s: events %v, want the exception", name, s.Events())
		}
	}
	b = newBench(t)
	wantStatus(t, b.send(t, cloudEvent(map[string]any{"id": nil}), signed(fluxKey)), http.StatusBadRequest)
	if s := b.span(t, "POST /events"); s.Status().Code != codes.Unset || attributesOf(s)["http.response.status_code"] != "400" || attributesOf(s)["event.outcome"] != "invalid" {
		t.Errorf("status %v, %v", s.Status(), attributesOf(s))
	}
}

// TestComplaintsOfOthers: what many complain of hides no sender who is refused for the same reason.
func TestComplaintsOfOthers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	large := func(r *http.Request, _ string) { r.ContentLength = events.MaxSize + 1 }
	for range 3 {
		b.send(t, "x", signed(otherKey), large) // nobody knows yet whose it is
		b.send(t, "x", bearer(tokenKey), large)
		b.send(t, "x", bearer(tenantKey), large)
	}
	var senders []string
	for line := range strings.SplitSeq(strings.TrimSpace(b.log.String()), "\n") {
		var l struct{ Outcome, Sender string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		senders = append(senders, l.Outcome+" "+l.Sender)
	}
	if diff := cmp.Diff([]string{"too-large none", "too-large broker", "too-large tenant"}, senders); diff != "" {
		t.Error(diff)
	}
}

// TestComplaints: of each reason one a minute, however many come.
func TestComplaints(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		lines := func() (lines []string) {
			for line := range strings.SplitSeq(strings.TrimSpace(b.log.String()), "\n") {
				var l struct {
					Level, Outcome string
					Unsaid         int
				}
				if err := json.Unmarshal([]byte(line), &l); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				lines = append(lines, fmt.Sprintf("%s %s %d", l.Level, l.Outcome, l.Unsaid))
			}
			return lines
		}
		for range 5 {
			b.send(t, "x")
			b.send(t, "x", signed(fluxKey))
		}
		time.Sleep(time.Minute)
		b.send(t, "x")
		b.send(t, "x")
		time.Sleep(time.Minute)
		b.send(t, "x")
		want := []string{"WARN unauthenticated 0", "WARN invalid 0", "WARN unauthenticated 4", "WARN unauthenticated 1"}
		if diff := cmp.Diff(want, lines()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestNothingSecret reads everything that is emitted, after requests of all kinds.
func TestNothingSecret(t *testing.T) {
	t.Parallel()
	const message, stranger = "the-message-of-an-event", "of-a-stranger"
	b := newBench(t)
	flux := fluxEvent("repos", message, time.Now())
	foreign := fluxEvent("repos", stranger, time.Now())
	b.requester.set("apps/down", down)
	var answers strings.Builder
	for _, w := range []struct {
		body string
		with []with
	}{
		{flux, []with{signed(fluxKey)}},
		{flux, []with{bearer(tokenKey), media("application/cloudevents+json")}},
		{flux, []with{bearer(tokenKey), media("text/plain")}},
		{flux[:len(flux)-1], []with{bearer(tokenKey)}},
		{cloudEvent(map[string]any{"type": events.TypeFlux, "data": message}), []with{signed(fluxKey)}},
		{cloudEvent(map[string]any{"id": "7", "data": message}), []with{bearer(tokenKey)}},
		{cloudEvent(map[string]any{"subject": "apps/down", "data": message}), []with{bearer(tokenKey)}},
		{foreign, []with{bearer(tokenKey + stranger), header("traceparent", httpParent)}},
		{foreign, []with{signed(stranger), header("traceparent", httpParent)}},
		{foreign, []with{signed(fluxKey), header("ce-id", stranger), header("traceparent", httpParent)}},
		{"", []with{method(http.MethodOptions), bearer(stranger), header("WebHook-Request-Callback", "https://"+stranger)}},
	} {
		answers.Write(b.send(t, w.body, w.with...).Body.Bytes())
	}
	var spans strings.Builder
	for _, s := range b.spans.Ended() {
		fmt.Fprintln(&spans, s.Name(), s.SpanContext().TraceID(), s.Parent().TraceID(), s.Attributes(), s.Status(), s.Events(), s.Links())
	}
	everything := map[string]string{"logs": b.log.String(), "spans": spans.String(), "metrics": fmt.Sprint(b.counts(t)), "answers": answers.String()}
	for where, text := range everything {
		if text == "" {
			t.Errorf("no %s", where)
		}
		for _, secret := range []string{fluxKey, otherKey, tokenKey, tenantKey, macOf(fluxKey, flux)[7:], message, stranger, httpTrace} {
			if strings.Contains(text, secret) {
				t.Errorf("%s hold %q:\n%s", where, secret, text)
			}
		}
	}
}
