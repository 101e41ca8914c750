package e2e

// The way of an event, with the real Flux: from a token that Azure DevOps refuses to a source that is Ready again.

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

// TestEventLoop: a token that Azure DevOps refuses, in each of its ways, is replaced on the word of source-controller, which comes in at a
// follower; one mint does, and the source is Ready again.
func TestEventLoop(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	var written, ready []time.Duration
	for name, refusal := range map[string]devops.Answer{
		"sign-in-302":  devops.SignIn(),
		"html-203":     devops.SignInPage(203),
		"html-200":     devops.SignInPage(200),
		"tf400813-401": devops.Unauthorized(),
	} {
		l.read(t, name) // its own, because notification-controller drops the same message about the same object for a while
		l.sources.devops.Change(func(c *devops.Config) { c.Refusal = refusal })
		minted, events := l.minted(), map[string]bool{}
		for _, s := range l.spans.Spans(isRequest) {
			events[s.ID] = true
		}
		token := l.revoke(t)
		asked := l.sources.ask(t, name)
		got := awaitSecret(t, l.Installation, credential, l.renewed(token))
		writtenAt := time.Now()
		l.sources.await(t, name, func(o *unstructured.Unstructured) bool { return isReady(o) && flux.Handled(o) != asked })
		readyAt := time.Now()

		if outcome := got.Annotations[secret.HandledOutcome]; outcome != string(refresh.Refreshed) {
			t.Errorf("%s: the request ended with %s", name, outcome)
		}
		if string(got.Data["ca.crt"]) != string(l.sources.devops.CA()) {
			t.Errorf("%s: the CA beside the token did not survive", name)
		}
		if n := l.minted() - minted; n != 1 {
			t.Errorf("%s: %d tokens were minted, want 1", name, n)
		}
		event, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return isRequest(s) && !events[s.ID] })
		if err != nil {
			t.Fatalf("%s: no event came: %v", name, err)
		}
		written = append(written, writtenAt.Sub(event.Start))
		ready = append(ready, readyAt.Sub(event.Start))
		t.Logf("%s: from the event to the Secret %s, to Ready %s", name, written[len(written)-1].Round(time.Millisecond), ready[len(ready)-1].Round(time.Millisecond))
	}
	slices.Sort(written)
	slices.Sort(ready)
	t.Logf("at the median: from the event to the Secret %s, to Ready %s; to reach: 2s",
		written[len(written)/2].Round(time.Millisecond), ready[len(ready)/2].Round(time.Millisecond))
}

// TestOneTrace: one trace runs from the event at a follower to the word to Flux from the leader.
func TestOneTrace(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")
	_, request := l.event(t)
	if _, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return s.Name == "refresh" && s.TraceID == request.TraceID }); err != nil {
		t.Fatalf("no refresh belongs to the event's trace: %v", err)
	}
	spans := map[string]otlp.Span{}
	all := l.spans.Spans(func(s otlp.Span) bool { return s.TraceID == request.TraceID })
	for _, s := range all {
		spans[s.Name] = s
	}
	for _, want := range []struct {
		name, parent string
		kind         tracepb.Span_SpanKind
		pod          *replica.Replica
	}{
		{"POST /events", "", tracepb.Span_SPAN_KIND_SERVER, l.follower},
		{"refresh.request", "POST /events", tracepb.Span_SPAN_KIND_PRODUCER, l.follower},
		{"refresh", "refresh.request", tracepb.Span_SPAN_KIND_CONSUMER, l.leader},
		{"token.acquire", "refresh", tracepb.Span_SPAN_KIND_INTERNAL, l.leader},
		{"secret.apply", "refresh", tracepb.Span_SPAN_KIND_INTERNAL, l.leader},
		{"token.verify", "refresh", tracepb.Span_SPAN_KIND_INTERNAL, l.leader},
		{"flux.wake", "refresh", tracepb.Span_SPAN_KIND_INTERNAL, l.leader},
	} {
		got := spans[want.name]
		if got.ID == "" || got.Parent != spans[want.parent].ID || got.Kind != want.kind || got.Resource["k8s.pod.name"] != want.pod.Name() {
			t.Errorf("%s is %s of %s below %q, want %s of %s below %s", want.name, got.Kind, got.Resource["k8s.pod.name"], got.Parent,
				want.kind, want.pod.Name(), want.parent)
		}
	}
	var tree strings.Builder
	if err := otlp.WriteTree(&tree, all); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + tree.String())
}

// TestEventsAreProven: of a body that was signed once, only the signature counts: headers that could make another event of it are refused,
// and repetitions ask for nothing more.
func TestEventsAreProven(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	hook := l.sources.webhook(t) // somebody else gets the event, and repeats it here
	l.read(t, "source")
	minted, token := l.minted(), l.revoke(t)
	// The event alone, and not the leader's own eyes: it looks at nothing while it stands still.
	if err := l.leader.Pause(); err != nil {
		t.Fatal(err)
	}
	l.sources.ask(t, "source")
	body := hook.next(t).body

	signed := map[string]string{"X-Signature": l.sources.signature(body)}
	for name, header := range map[string]map[string]string{
		"ce-* headers were added": {
			"X-Signature": l.sources.signature(body), "ce-specversion": "1.0", "ce-id": "1", "ce-source": "elsewhere",
			"ce-type": "flux-token-refresher.refresh.requested", "ce-subject": l.Namespace + "/" + credential,
		},
		"unsigned":                {},
		"signed for another body": {"X-Signature": l.sources.signature([]byte("{}"))},
	} {
		if status, _ := l.post(t, body, header); status != http.StatusUnauthorized {
			t.Errorf("%s: %d, want 401", name, status)
		}
	}

	outcomes := make(chan string, 10)
	var senders sync.WaitGroup
	for range cap(outcomes) {
		senders.Go(func() {
			status, outcome := l.post(t, body, signed)
			if status != http.StatusAccepted {
				t.Errorf("%d, want 202", status)
			}
			outcomes <- outcome
		})
	}
	senders.Wait()
	// Those that ask for nothing more say in whose trace the refresh is.
	coalesced, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return s.Name == "refresh.request" && len(s.Links) > 0 })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.spans.Wait(patient(t), func(s otlp.Span) bool {
		return isRequest(s) && s.TraceID == coalesced.Links[0] && s.TraceID != coalesced.TraceID && s.Attributes["event.outcome"] == "requested"
	}); err != nil {
		t.Errorf("a coalesced event links to %s, where nothing was requested: %v", coalesced.Links[0], err)
	}
	close(outcomes)
	counted := map[string]int{}
	for outcome := range outcomes {
		counted[outcome]++
	}
	if counted["requested"] != 1 || counted["coalesced"] != 9 {
		t.Errorf("the same event ten times was %v, want one requested and nine coalesced", counted)
	}
	if err := l.leader.Resume(); err != nil {
		t.Fatal(err)
	}
	awaitSecret(t, l.Installation, credential, l.renewed(token))
	l.sources.await(t, "source", isReady)
	if status, outcome := l.post(t, body, signed); status != http.StatusAccepted || outcome != "coalesced" {
		t.Errorf("once more, afterwards: %d %s, want 202 coalesced", status, outcome)
	}
	if n := l.minted() - minted; n != 1 {
		t.Errorf("%d tokens were minted, want 1", n)
	}
}
