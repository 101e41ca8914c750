package refresh_test

// What is told of a refresh: log lines, metrics, spans.

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

func TestWaitingIsSaidOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		defer w.lead(t)()
		time.Sleep(time.Hour)
		if got := strings.Count(w.logs.String(), `"reason":"SecretMissing"`); got != 1 {
			t.Errorf("said %d times that the Secret is missing", got)
		}
		refused := good()
		refused.Type = corev1.SecretTypeTLS
		if err := w.store.Create(t.Context(), "somebody", refused); err != nil {
			t.Fatal(err)
		}
		w.edit(t, target.Name, func(s *corev1.Secret) { s.Annotations["x"] = "y" })
		synctest.Wait()
		if told := w.recorder.Events(); len(told) != 1 || told[0].Reason != "Refused" {
			t.Errorf("events %v, want one Refused", told)
		}
		series := w.series(t)
		for _, reason := range []string{"SecretMissing", "Refused"} {
			if got := series["token_refresher.refreshes{namespace=flux-system,outcome=Waiting,reason="+reason+",secret=flux-system}"]; got != 1 {
				t.Errorf("%s counted %g times, want once", reason, got)
			}
		}
		if err := w.store.Delete(t.Context(), target.Name); err != nil {
			t.Fatal(err)
		}
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.request(t, target.Name, "1")
		synctest.Wait()
		if got := w.secret(t, target.Name).Annotations[secret.HandledOutcome]; got != "Refreshed" {
			t.Errorf("handled-outcome %q after the wait ended", got)
		}
	})
}

// TestFailing: the gauge is 1 as long as a token is needed and cannot be had or written, and no longer.
func TestFailing(t *testing.T) {
	t.Parallel()
	failing := func(t *testing.T, w *world, when string, want float64) {
		t.Helper()
		synctest.Wait()
		if got := w.series(t)["token_refresher.refresh.failing{namespace=flux-system,secret=flux-system}"]; got != want {
			t.Errorf("%s: failing is %g, want %g", when, got, want)
		}
	}
	t.Run("somebody else mends the Secret", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(target)
			if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
				t.Fatal(err)
			}
			w.fail(func(refresh.MintKey) error { return refreshtest.Unavailable() })
			defer w.lead(t)()
			failing(t, w, "with a good token", 0)
			put := func(token string) {
				w.edit(t, target.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte(token) })
			}
			put("altered")
			failing(t, w, "while no token can be had", 1)
			w.edit(t, target.Name, func(s *corev1.Secret) { delete(s.Data, "bearerToken") })
			failing(t, w, "while there is no token", 1)
			if ends := w.series(t)["token_refresher.token.expiry.timestamp{namespace=flux-system,secret=flux-system}"]; ends != 0 {
				t.Errorf("no token is there, and it ends at %g", ends)
			}
			put("current")
			failing(t, w, "with the good token again", 0)
		})
	})
	t.Run("it waits for a mint that failed for another Secret", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			other := target
			other.Name.Name = "other"
			w := newWorld(target, other)
			for _, name := range []string{target.Name.Name, "other"} {
				s := good()
				s.Name = name
				if err := w.store.Create(t.Context(), "somebody", s); err != nil {
					t.Fatal(err)
				}
			}
			w.fail(func(refresh.MintKey) error {
				return &refresh.Error{Class: refresh.Misconfigured, Text: "no such application"}
			})
			defer w.lead(t)()
			w.edit(t, other.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("altered") })
			failing(t, w, "with a good token", 0)
			w.edit(t, target.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("altered") })
			failing(t, w, "while the next mint is not due", 1)
		})
	})
	t.Run("a Secret that cannot be written", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(target)
			defer w.lead(t)()
			failing(t, w, "without the Secret", 1)
			refused := good()
			refused.Type = corev1.SecretTypeTLS
			if err := w.store.Create(t.Context(), "somebody", refused); err != nil {
				t.Fatal(err)
			}
			failing(t, w, "while it is refused", 1)
			w.edit(t, target.Name, func(s *corev1.Secret) { s.Annotations[secret.Suspend] = "true" })
			failing(t, w, "while it is suspended", 0)
			if err := w.store.Delete(t.Context(), target.Name); err != nil {
				t.Fatal(err)
			}
			failing(t, w, "without the Secret again", 1)
			if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
				t.Fatal(err)
			}
			failing(t, w, "with a good token", 0)
		})
	})
}

// TestFailureIsToldAgain: an Event lives for an hour, and who comes after that wants to find one.
func TestFailureIsToldAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		foreign := good()
		foreign.Annotations = nil
		if err := w.store.Create(t.Context(), "somebody", foreign); err != nil {
			t.Fatal(err)
		}
		w.fail(func(refresh.MintKey) error {
			return &refresh.Error{Class: refresh.Misconfigured, Text: "no such application"}
		})
		defer w.lead(t)()
		time.Sleep(3 * time.Hour)
		if told := len(w.recorder.Events()); told < 4 || told > 6 {
			t.Errorf("%d Events in three hours of one failure, want one in half an hour", told)
		}
		if ends, told := w.series(t)["token_refresher.token.expiry.timestamp{namespace=flux-system,secret=flux-system}"]; told {
			t.Errorf("a credential that is not ours is told to end at %g", ends)
		}
	})
}

func TestMetricsGoWithTheTerm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		created := target
		created.Create = true
		w := newWorld(created)
		start := float64(time.Now().Unix())
		stop := w.lead(t)
		want := map[string]float64{
			"token_refresher.refreshes{namespace=flux-system,outcome=Refreshed,reason=SecretMissing,secret=flux-system}": 1,
			"token_refresher.token.expiry.timestamp{namespace=flux-system,secret=flux-system}":                           start + 3600,
			"token_refresher.next_refresh.timestamp{namespace=flux-system,secret=flux-system}":                           start + 2700,
			"token_refresher.refresh.duration{outcome=Refreshed,reason=SecretMissing}":                                   1,
			"token_refresher.refresh.failing{namespace=flux-system,secret=flux-system}":                                  0,
		}
		if diff := cmp.Diff(want, w.series(t)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		stop()
		for name := range w.series(t) {
			if strings.Contains(name, "secret=") {
				t.Errorf("%s is still there after the term", name)
			}
		}
	})
}

func TestSpans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		seed := good()
		const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
		seed.Annotations[secret.Request] = "r"
		seed.Annotations[secret.RequestContext] = `{"request":"r","traceparent":"00-` + traceID + `-00f067aa0ba902b7-01"}`
		if err := w.store.Create(t.Context(), "somebody", seed); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		spans := map[string]trace.ReadOnlySpan{}
		for _, s := range w.spans.Ended() {
			spans[s.Name()] = s
		}
		root := spans["refresh"]
		if root == nil || len(spans) != 4 {
			t.Fatalf("spans %v", spans)
		}
		if root.SpanKind() != oteltrace.SpanKindConsumer || root.Parent().TraceID().String() != traceID || root.Status().Code != codes.Unset {
			t.Errorf("kind %v, parent %v, status %v", root.SpanKind(), root.Parent(), root.Status())
		}
		attributes := map[string]string{}
		for _, a := range root.Attributes() {
			attributes[string(a.Key)] = a.Value.String()
		}
		if diff := cmp.Diff(map[string]string{
			"refresh.target": "flux-system/flux-system", "refresh.reason": "RefreshRequested", "refresh.outcome": "Refreshed",
			"token.expires_at": w.source.Mints()[0].Token.Expires.UTC().Format(time.RFC3339),
			"messaging.system": "kubernetes", "messaging.destination.name": "flux-system/flux-system",
			"messaging.operation.type": "process", "messaging.operation.name": "refresh",
		}, attributes); diff != "" {
			t.Errorf("attributes of refresh: -want +got:\n%s", diff)
		}
		for _, child := range []string{"token.acquire", "secret.apply", "flux.wake"} {
			if s := spans[child]; s == nil || s.Parent().SpanID() != root.SpanContext().SpanID() {
				t.Errorf("%s is not a child of refresh", child)
			}
		}
	})
}

// TestUnsampledRequest: the trace of a request goes on in the leader as it was decided where it began.
func TestUnsampledRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		seed := good()
		seed.Annotations[secret.Request] = "r"
		seed.Annotations[secret.RequestContext] = `{"request":"r","traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"}`
		if err := w.store.Create(t.Context(), "somebody", seed); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		if len(w.source.Mints()) != 1 || len(w.spans.Ended()) > 0 {
			t.Errorf("%d mints, spans %v", len(w.source.Mints()), w.spans.Ended())
		}
	})
}

// TestLeftoverIsToldAgain: somebody for whom Flux fails with the token that was left there asks for another one, and that does not help. They are told,
// whoever leads by then.
func TestLeftoverIsToldAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		target := target
		target.Format = refresh.BasicAuth("git")
		w := newWorld(target)
		theirs := good()
		theirs.Annotations = nil
		if err := w.store.Create(t.Context(), "somebody", theirs); err != nil {
			t.Fatal(err)
		}
		w.lead(t)()
		defer w.lead(t)()
		w.request(t, target.Name, "1")
		synctest.Wait()
		w.edit(t, target.Name, func(s *corev1.Secret) { delete(s.Data, "bearerToken") })
		time.Sleep(policy.Cooldown)
		w.request(t, target.Name, "2")
		synctest.Wait()
		const left = "Left beside it: bearerToken, which Flux uses instead of what the target's format writes."
		told := w.recorder.Events()
		if len(told) != 3 {
			t.Fatalf("events %v, want Adopted and Refreshed twice", told)
		}
		for i, want := range []struct {
			reason string
			left   bool
		}{{"Adopted", true}, {"Refreshed", true}, {"Refreshed", false}} {
			if told[i].Reason != want.reason || strings.Contains(told[i].Note, left) != want.left {
				t.Errorf("event %d is %+v, want %s, which says what is left: %t", i, told[i], want.reason, want.left)
			}
		}
	})
}

// TestReusedTokenLeadsToItsMint: whoever asks where the token in a Secret comes from finds the trace in which it was minted.
func TestReusedTokenLeadsToItsMint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := target, target
		first.Create, second.Create = true, true
		second.Name.Name = "second"
		w := newWorld(first, second)
		w.lead(t)()
		reused := attribute.Bool("token.reused", true)
		var minted, taken trace.ReadOnlySpan
		for _, s := range w.spans.Ended() {
			switch {
			case s.Name() != "token.acquire":
			case slices.Contains(s.Attributes(), reused):
				taken = s
			default:
				minted = s
			}
		}
		if minted == nil || taken == nil {
			t.Fatal("one target mints, and the other takes its token")
		}
		if links := taken.Links(); len(links) != 1 || !links[0].SpanContext.Equal(minted.SpanContext()) || len(minted.Links()) != 0 {
			t.Errorf("the token that was taken links to %v, and its mint to %v", links, minted.Links())
		}
	})
}

// TestSpansOfFailures: each says what failed in a word, in a sentence and as an event; what nobody asked for consumes nothing.
func TestSpansOfFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		created := target
		created.Create = true
		w := newWorld(created)
		failure := &refresh.Error{Class: refresh.Misconfigured, Code: "AADSTS700016", Text: "the application is not in the tenant"}
		w.fail(func(refresh.MintKey) error { return failure })
		w.lead(t)()
		ended := w.spans.Ended()
		if len(ended) != 2 || ended[0].Name() != "token.acquire" || ended[1].Name() != "refresh" {
			t.Fatalf("spans %v", ended)
		}
		for _, s := range ended {
			if s.Status().Code != codes.Error || s.Status().Description != failure.Error() {
				t.Errorf("%s: status %v", s.Name(), s.Status())
			}
			if !slices.Contains(s.Attributes(), attribute.String("error.type", "misconfigured")) {
				t.Errorf("%s: attributes %v", s.Name(), s.Attributes())
			}
			if len(s.Events()) != 1 || !slices.Contains(s.Events()[0].Attributes, attribute.String("exception.message", failure.Error())) {
				t.Errorf("%s: events %v", s.Name(), s.Events())
			}
			if s.SpanKind() != oteltrace.SpanKindInternal {
				t.Errorf("%s is a %s", s.Name(), s.SpanKind())
			}
		}
	})
}

// TestUnknownErrorsSayNothing: an error that is not ours could quote a server.
func TestUnknownErrorsSayNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.fail(func(refresh.MintKey) error { return errors.New("body: eyJsecret") })
		defer w.lead(t)()
		w.request(t, target.Name, "1")
		synctest.Wait()
		out := w.logs.String() + fmt.Sprint(w.recorder.Events())
		for _, s := range w.spans.Ended() {
			out += fmt.Sprint(s.Attributes(), s.Status(), s.Events())
		}
		if strings.Contains(out, "eyJsecret") || !strings.Contains(out, "not shown") {
			t.Errorf("told: %s", out)
		}
	})
}
