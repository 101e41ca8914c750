package e2e

// Events that do not arrive, and those that wait for an API server or for a leader.

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/netproxy"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// TestNoEvent: where no event comes, the leader sees by itself that a source fails.
func TestNoEvent(t *testing.T) {
	t.Parallel()
	t.Run("nobody sends any", func(t *testing.T) {
		t.Parallel()
		newLoop(t, controlPlane, fluxOf(t), newNamespace(t)).expectRepairUntold(t, func() {})
	})
	t.Run("notification-controller drops it", func(t *testing.T) {
		t.Parallel()
		c, f := newFlux(t)
		l := newLoop(t, c, f, metav1.NamespaceDefault)
		l.expectRepairUntold(t, func() {
			l.sources.notify(t, l.events)
			// It has read the Alert when it comes back: it would be silent about a failure that no Alert wanted.
			if err := f.Notification.Stop(patient(t)); err != nil {
				t.Fatal(err)
			}
			if err := f.Notification.Start(patient(t)); err != nil {
				t.Fatal(err)
			}
			token, _ := l.event(t)
			awaitSecret(t, l.Installation, credential, l.renewed(token))
			l.sources.await(t, "source", isReady)
			// The same again within five minutes is a repetition to it.
		})
	})
	t.Run("notification-controller is down", func(t *testing.T) {
		t.Parallel()
		c, f := newFlux(t)
		l := newLoop(t, c, f, metav1.NamespaceDefault)
		l.expectRepairUntold(t, func() {
			l.sources.notify(t, l.events)
			if err := f.Notification.Stop(patient(t)); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// expectRepairUntold: after silence no event comes, and a token that Azure DevOps refuses is replaced all the same.
func (l *loop) expectRepairUntold(t *testing.T, silence func()) {
	t.Helper()
	l.start(t, "")
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")
	silence()
	before := len(l.spans.Spans(isRequest))
	minted, token, from := l.minted(), l.revoke(t), len(l.sources.devops.Requests(0))
	asked := l.sources.ask(t, "source")
	refused, err := l.sources.devops.Wait(patient(t), from, 1, func(r devops.Request) bool { return r.Refused != nil })
	if err != nil {
		t.Fatal(err)
	}
	since := func() time.Duration { return time.Since(refused[0].Answered).Round(time.Millisecond) }
	got := awaitSecret(t, l.Installation, credential, l.renewed(token))
	t.Logf("the Secret has another token %s after the refusal", since())
	l.sources.await(t, "source", func(o *unstructured.Unstructured) bool { return isReady(o) && flux.Handled(o) != asked })
	t.Logf("and the source is Ready %s after it", since())
	if outcome := got.Annotations[secret.HandledOutcome]; outcome != string(refresh.Refreshed) || l.minted() != minted+1 {
		t.Errorf("the request ended with %s, and %d tokens were minted, want 1", outcome, l.minted()-minted)
	}
	if events := l.spans.Spans(isRequest); len(events) > before {
		t.Errorf("events came: %v", events[before:])
	}
}

// TestEventWhileTheAPIIsDown: an event whose request cannot be written is not acknowledged, and notification-controller sends it again.
func TestEventWhileTheAPIIsDown(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	network, err := netproxy.Start(strings.TrimPrefix(controlPlane.Config().Host, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	l.start(t, network.Address())
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")
	// The event alone, and not the leader's own eyes.
	if err := l.leader.Pause(); err != nil {
		t.Fatal(err)
	}
	token := l.revoke(t)
	if err := network.Cut(); err != nil {
		t.Fatal(err)
	}
	l.sources.ask(t, "source")
	l.answered(t, "503")
	if err := network.Heal(); err != nil {
		t.Fatal(err)
	}
	if again := l.answered(t, "202"); again.Attributes["event.outcome"] != "requested" {
		t.Errorf("the event that was sent again is %v, want requested", again.Attributes)
	}
	if err := l.leader.Resume(); err != nil {
		t.Fatal(err)
	}
	awaitSecret(t, l.Installation, credential, l.renewed(token))
	l.sources.await(t, "source", isReady)
}

// TestAPIServerStops: the API server ends after an event came and before its request stands. That is not acknowledged;
// notification-controller sends it again, and it is the request of the API server that came back.
func TestAPIServerStops(t *testing.T) {
	t.Parallel()
	c, f := newFlux(t)
	l := newLoop(t, c, f, "restarted", steadfast)
	deniedOnPurpose.Store(l.Namespace, true) // an API server that comes back denies everything until it has read the Roles
	l.start(t, "")
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")

	// The API server ends between notification-controller and the follower; what is sent again waits there until it is back.
	events, err := url.Parse(l.events)
	if err != nil {
		t.Fatal(err)
	}
	var stop sync.Once
	stopped, back := make(chan error, 1), make(chan struct{})
	forward := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL = events },
		Transport: plainHTTP.Transport,
	}
	between := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first := false
		stop.Do(func() {
			first = true
			stopped <- c.StopAPI()
		})
		if !first {
			select {
			case <-back:
			case <-r.Context().Done():
				return
			}
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(between.Close)
	// As long as a slow machine takes to start an API server; Flux's default is 15 seconds.
	l.sources.provide(t, map[string]any{"address": between.URL, "timeout": "1m"})

	// The event alone, and not the leader's own eyes.
	if err := l.leader.Pause(); err != nil {
		t.Fatal(err)
	}
	token := l.revoke(t)
	l.sources.ask(t, "source")
	refused := l.answered(t, "503")
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if err := c.StartAPI(patient(t)); err != nil {
		t.Fatal(err)
	}
	close(back)
	// source-controller reports as well what the API server that came back denied to it.
	again, err := l.spans.Wait(patient(t), func(s otlp.Span) bool {
		return isRequest(s) && s.Attributes["http.response.status_code"] == "202" &&
			s.Attributes["cloudevents.event_id"] == refused.Attributes["cloudevents.event_id"]
	})
	if err != nil {
		t.Fatalf("the event was not taken when it was sent again: %v", err)
	}
	if again.Attributes["event.outcome"] != "requested" {
		t.Errorf("the event that was sent again is %v, want requested", again.Attributes)
	}
	if err := l.leader.Resume(); err != nil {
		t.Fatal(err)
	}
	awaitSecret(t, l.Installation, credential, l.renewed(token))
	l.sources.await(t, "source", isReady)
	t.Logf("the source is Ready %s after the event was acknowledged", time.Since(again.End).Round(time.Millisecond))
}

// TestLeaderDiesWithARequest: what was acknowledged is done by whoever leads next.
func TestLeaderDiesWithARequest(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")
	requests, hang := l.Entra.Requests(), azuretest.Hang()
	l.Entra.Change(func(c *azuretest.Config) { c.Outage = &hang })
	token, request := l.event(t)
	if err := l.Entra.Await(patient(t), requests+1); err != nil {
		t.Fatal(err)
	}
	if err := l.leader.Kill(); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	l.Entra.Change(func(c *azuretest.Config) { c.Outage = nil })

	got := awaitSecret(t, l.Installation, credential, l.renewed(token))
	l.sources.await(t, "source", isReady)
	t.Logf("the source is Ready %s after the leader died", time.Since(died).Round(time.Millisecond))
	if outcome := got.Annotations[secret.HandledOutcome]; outcome != string(refresh.Refreshed) {
		t.Errorf("the request ended with %s", outcome)
	}
	next, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return s.Name == "refresh" && s.TraceID == request.TraceID })
	if err != nil {
		t.Fatalf("no refresh belongs to the event's trace: %v", err)
	}
	if pod := next.Resource["k8s.pod.name"]; pod == l.leader.Name() {
		t.Errorf("the refresh is of %s, who is dead", pod)
	}
}
