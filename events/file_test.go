package events_test

// Events that come in no request.

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"flux-token-refresher/events"
)

// handle gives content to Handle, with all that a bench has but its senders.
func (b *bench) handle(t *testing.T, content string) ([]events.Answer, error) {
	t.Helper()
	config := b.config
	config.Senders = nil
	return events.Handle(t.Context(), config, b.router, b.requester, []byte(content))
}

func TestHandle(t *testing.T) {
	t.Parallel()
	now := time.Now()
	flux := fluxEvent("repos", "authentication required", now)
	for _, test := range []struct {
		name    string
		content string
		want    []events.Answer // without their ids
		refused string          // holds this; of ErrInvalid
	}{
		{"a CloudEvent", cloudEvent(nil), []events.Answer{
			{Verdict: events.RefreshRequested, Rule: "request", Targets: []string{"apps/repos"}, Outcome: events.Requested},
		}, ""},
		{"an event of Flux", flux, []events.Answer{
			{Verdict: events.AuthFailure, Rule: "401", Targets: []string{"apps/repos"}, Outcome: events.Requested},
		}, ""},
		{"an event of Flux in a CloudEvent", cloudEvent(map[string]any{
			"type": events.TypeFlux, "datacontenttype": "application/json", "data": map[string]any{
				"involvedObject": map[string]any{"namespace": "apps", "name": "repos"}, "timestamp": now.UTC().Format(time.RFC3339)},
		}), []events.Answer{
			{Verdict: events.AuthFailure, Rule: "401", Targets: []string{"apps/repos"}, Outcome: events.Requested},
		}, ""},
		{"two events", batchOf(cloudEvent(nil), cloudEvent(map[string]any{"id": "2", "type": "com.example.other"})), []events.Answer{
			{Verdict: events.RefreshRequested, Rule: "request", Targets: []string{"apps/repos"}, Outcome: events.Requested},
			{Verdict: events.Unrelated, Rule: "type", Targets: []string{}, Outcome: events.Ignored},
		}, ""},
		{"an unrelated one", fluxEvent("unrelated", "i/o timeout", now), []events.Answer{
			{Verdict: events.Unrelated, Rule: "timeout", Targets: []string{}, Outcome: events.Ignored},
		}, ""},
		{"as long as it may be", flux + strings.Repeat(" ", events.MaxSize-len(flux)), []events.Answer{
			{Verdict: events.AuthFailure, Rule: "401", Targets: []string{"apps/repos"}, Outcome: events.Requested},
		}, ""},
		{"too long", flux + strings.Repeat(" ", events.MaxSize-len(flux)+1), nil, "262144 bytes"},
		{"nothing", "", nil, "not a JSON object"},
		{"half of it", flux[:len(flux)/2], nil, "not a JSON object"},
		{"an event of nobody", `{"hello":"world"}`, nil, "neither a CloudEvent nor an event of Flux"},
		{"without a time", cloudEvent(map[string]any{"time": nil}), nil, "time is missing"},
		{"too old", fluxEvent("repos", "", now.Add(-11*time.Minute)), nil, "more than 10m0s ago"},
		{"one of two is too old", batchOf(cloudEvent(nil), cloudEvent(map[string]any{"time": "2026-01-01T00:00:00Z"})), nil, "event 2: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			got, err := b.handle(t, test.content)
			for i := range got {
				if got[i].ID == "" {
					t.Error("an answer has no id")
				}
				got[i].ID = ""
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if test.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, events.ErrInvalid) || !strings.Contains(err.Error(), test.refused) {
				t.Errorf("got %v, want ErrInvalid with %q", err, test.refused)
			}
			if made := b.requester.made(); len(made) > 0 {
				t.Errorf("it asked for %v", made)
			}
			if span := b.span(t, "event"); span.Status().Code != codes.Error {
				t.Errorf("the span's status is %v", span.Status())
			}
		})
	}
}

// TestHandleMayBeRepeated: what may pass is not ErrInvalid, and names its cause: there is no sender to keep that from.
func TestHandleMayBeRepeated(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.requester.set("apps/repos", down)
	if _, err := b.handle(t, cloudEvent(nil)); !errors.Is(err, errDown) || errors.Is(err, events.ErrInvalid) {
		t.Errorf("got %v, want %v", err, errDown)
	}
	b.requester.set("", nil)
	for _, want := range []events.Outcome{events.Requested, events.Coalesced} {
		if got, err := b.handle(t, cloudEvent(nil)); err != nil || got[0].Outcome != want {
			t.Errorf("got %v, %v; want %s", got, err, want)
		}
	}
	want := map[string]int64{
		"none other none unavailable":                                          1,
		"file " + events.TypeRefreshRequested + " refresh-requested requested": 1,
		"file " + events.TypeRefreshRequested + " refresh-requested coalesced": 1,
	}
	if diff := cmp.Diff(want, b.counts(t)); diff != "" {
		t.Errorf("counted (-want +got)\n%s", diff)
	}
}

// TestHandleTrace: the trace begins here; the one that the event belongs to is linked, as it is for a request.
func TestHandleTrace(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if _, err := b.handle(t, cloudEvent(map[string]any{"traceparent": linkParent})); err != nil {
		t.Fatal(err)
	}
	consumer, producer := b.span(t, "event"), b.span(t, "refresh.request")
	if consumer.SpanKind() != trace.SpanKindConsumer || consumer.Parent().IsValid() {
		t.Errorf("the span is a %s below %s", consumer.SpanKind(), consumer.Parent().SpanID())
	}
	if links := consumer.Links(); len(links) != 1 || links[0].SpanContext.TraceID().String() != linkTrace {
		t.Errorf("links %v", links)
	}
	if producer.Parent().SpanID() != consumer.SpanContext().SpanID() {
		t.Error("the request is not below it")
	}
	want := map[string]string{
		"cloudevents.event_id": "1", "cloudevents.event_source": "/test", "cloudevents.event_spec_version": "1.0",
		"cloudevents.event_type": events.TypeRefreshRequested, "cloudevents.event_subject": "apps/repos",
		"event.sender": "file", "event.verdict": "refresh-requested", "event.rule": "request", "event.outcome": "requested",
	}
	if diff := cmp.Diff(want, attributesOf(consumer)); diff != "" {
		t.Errorf("attributes (-want +got)\n%s", diff)
	}
	ask := b.requester.made()[0]
	if ask.Sender != "file" || ask.TraceParent == "" || !strings.Contains(ask.TraceParent, producer.SpanContext().SpanID().String()) {
		t.Errorf("asked with %+v", ask)
	}
}

// TestHandleNeedsNoSender, though Handler does.
func TestHandleNeedsNoSender(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config := b.config
	config.Senders = nil
	if _, err := events.Handler(config, b.router, b.requester); err == nil {
		t.Error("a handler without senders")
	}
	config.Decoder = nil
	if _, err := events.Handle(t.Context(), config, b.router, b.requester, []byte(cloudEvent(nil))); err == nil || errors.Is(err, events.ErrInvalid) {
		t.Errorf("without a decoder: %v", err)
	}
}
