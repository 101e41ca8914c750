package events_test

// What comes again.

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"flux-token-refresher/events"
)

// TestReplays: what a sender's event asked for, it does not ask for again, whatever stands on the Secret by then and in whatever company it comes.
func TestReplays(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	event := func(id string) string { return cloudEvent(map[string]any{"id": id}) }
	first, second := event("first"), event("second")
	expect := func(body string, key with, outcomes string, asked ...string) {
		t.Helper()
		w := b.send(t, body, key)
		wantStatus(t, w, 202)
		var answers []answer
		if err := json.Unmarshal([]byte("["+strings.Trim(w.Body.String(), "[]\n")+"]"), &answers); err != nil {
			t.Fatal(err)
		}
		var got, made []string
		for _, a := range answers {
			got = append(got, a.Outcome)
		}
		for _, r := range b.requester.made() {
			made = append(made, r.Sender+" "+r.ID)
		}
		if diff := cmp.Diff(strings.Fields(outcomes), got); diff != "" {
			t.Errorf("outcomes -want +got\n%s", diff)
		}
		if diff := cmp.Diff(asked, made); diff != "" {
			t.Errorf("asked for -want +got\n%s", diff)
		}
		b.requester.requests = nil // all were handled, and others after them
	}
	expect(first, signed(fluxKey), "requested", "flux first")
	expect(second, signed(fluxKey), "requested", "flux second")
	routed := b.router.seen()
	expect(first, signed(fluxKey), "coalesced")
	if seen := b.router.seen(); seen != routed {
		t.Error("the API was asked again whose Secret it is about")
	}
	var spans []sdktrace.ReadOnlySpan
	for _, span := range b.spans.Ended() {
		if span.Name() == "POST /events" {
			spans = append(spans, span)
		}
	}
	if links := spans[2].Links(); len(links) != 1 || !links[0].SpanContext.Equal(spans[0].SpanContext()) {
		t.Errorf("its span links to %v, want that of the first time", links)
	}
	for name, other := range map[string]string{"source": "/other", "type": events.TypeFlux} {
		other := cloudEvent(map[string]any{"id": "first", name: other, "data": json.RawMessage(fluxEvent("repos", "", time.Now()))})
		if outcome := answerOf(t, b.send(t, other, signed(fluxKey))).Outcome; outcome != "requested" {
			t.Errorf("with another %s: %s", name, outcome)
		}
		b.requester.requests = nil
	}
	expect(first, bearer(tenantKey), "requested", "tenant first")
	// All that a request asks of one target is one wish: the others of a batch are answered with the first.
	expect(batchOf(event("third"), event("fourth"), second), signed(fluxKey), "requested coalesced coalesced", "flux third")
	expect(event("fourth"), signed(fluxKey), "coalesced")
	// What is replayed does not stand for what is new.
	expect(batchOf(event("fourth"), event("fifth")), signed(fluxKey), "coalesced requested", "flux fifth")
	expect(strings.Replace(first, "apps/repos", "apps/others", 1), signed(fluxKey), "requested", "flux first")
	// Without a target there was a call to the API, too.
	none := fluxEvent("nowhere", "", time.Now())
	expect(none, signed(fluxKey), "ignored")
	routed = b.router.seen()
	expect(none, signed(fluxKey), "ignored")
	if seen := b.router.seen(); seen != routed {
		t.Error("the API was asked again about an event that concerns no target")
	}
}

// TestReplaysEnd: an event is remembered until it is too old to be taken, and of its trace no more than its ids.
func TestReplaysEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		event := cloudEvent(nil)
		send := func() string {
			b.requester.requests = nil
			return answerOf(t, b.send(t, event, bearer(tokenKey), header("traceparent", httpParent), header("tracestate", "vendor=v"))).Outcome
		}
		if outcome := send(); outcome != "requested" {
			t.Errorf("at first: %s", outcome)
		}
		time.Sleep(events.DefaultMaxAge - time.Second)
		if outcome := send(); outcome != "coalesced" || len(b.requester.made()) > 0 {
			t.Errorf("at last: %s, and asked for: %v", outcome, b.requester.made())
		}
		ended := b.spans.Ended()
		if links := ended[len(ended)-1].Links(); len(links) != 1 || links[0].SpanContext.TraceState().Len() > 0 {
			t.Errorf("links %v", links)
		}
	})
}
