package e2e

// What a replica says of itself, as those who read it do.

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/wait"

	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/jaeger"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/e2e/internal/toolchain"
	"flux-token-refresher/refresh/azure/azuretest"
)

// TestMetricsAreWellFormed: what the replica that took an event and the one that answered it serve passes promtool's check, and each of the
// latter's histograms leads to a trace.
func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	promtool, err := toolchain.Promtool.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t), steadfast)
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")
	token, _ := l.event(t)
	awaitSecret(t, l.Installation, credential, l.renewed(token))

	ctx := patient(t)
	for name, r := range map[string]*replica.Replica{"token_refresher_event_to_secret_seconds_count": l.leader, "token_refresher_events_total": l.follower} {
		awaitNothing(t, "the series of "+r.Name(), func(ctx context.Context) (string, error) {
			metrics, err := r.Get(ctx, "/metrics")
			return missing(bytes.Count(metrics, []byte("\n"+name)), name), err
		})
		metrics, err := r.Get(ctx, "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		check := exec.CommandContext(ctx, promtool, "check", "metrics")
		check.Stdin = bytes.NewReader(metrics)
		if out, err := check.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	}

	open, err := l.leader.OpenMetrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, histogram := range []string{"token_refresher_refresh_duration_seconds", "token_refresher_token_request_duration_seconds", "token_refresher_event_to_secret_seconds"} {
		exemplar := false
		for line := range strings.Lines(string(open)) {
			exemplar = exemplar || strings.HasPrefix(line, histogram+"_bucket") && strings.Contains(line, ` # {`) && strings.Contains(line, `trace_id="`)
		}
		if !exemplar {
			t.Errorf("no bucket of %s leads to a trace", histogram)
		}
	}
	if t.Failed() {
		t.Log(string(open))
	}
}

// eventTrace is the trace of an event: from its receipt by a follower over the API server, Entra and the Git server to the leader's word to Flux.
const eventTrace = `
POST /events (follower, SERVER)
  GET /apis/source.toolkit.fluxcd.io/v1/namespaces/{namespace}/gitrepositories/{name} (follower, CLIENT)
  refresh.request (follower, PRODUCER)
    GET /api/v1/namespaces/{namespace}/secrets/{name} (follower, CLIENT)
    PATCH /api/v1/namespaces/{namespace}/secrets/{name} (follower, CLIENT)
    refresh (leader, CONSUMER)
      token.verify (leader, INTERNAL)
        GET (leader, CLIENT)
      token.acquire (leader, INTERNAL)
        ClientAssertionCredential.GetToken (leader, INTERNAL)
          HTTP GET (leader, CLIENT)
          HTTP POST (leader, CLIENT)
      secret.apply (leader, INTERNAL)
        PATCH /api/v1/namespaces/{namespace}/secrets/{name} (leader, CLIENT)
      flux.wake (leader, INTERNAL)
        PATCH /apis/source.toolkit.fluxcd.io/v1/namespaces/{namespace}/gitrepositories/{name} (leader, CLIENT)
      token.verify (leader, INTERNAL)
        GET (leader, CLIENT)
`

// TestOneTrace: one trace runs from the event at a follower to the word to Flux from the leader.
func TestOneTrace(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")
	release := l.hold(t)
	_, request := l.event(t)
	release()
	inTrace := func(s otlp.Span) bool { return s.TraceID == request.TraceID }
	if _, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return inTrace(s) && s.Name == "refresh" }); err != nil {
		t.Fatalf("no refresh belongs to the event's trace: %v", err)
	}
	spans := l.spans.Spans(inTrace)
	if diff := cmp.Diff(strings.TrimPrefix(eventTrace, "\n"), l.outline(spans)); diff != "" {
		t.Errorf("the trace (-want +got):\n%s", diff)
	}
	var tree strings.Builder
	if err := otlp.WriteTree(&tree, spans); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + tree.String())
}

// TestTraceInABackend: from a line of the log, whoever is on call finds that trace in Jaeger.
func TestTraceInABackend(t *testing.T) {
	t.Parallel()
	binary, err := toolchain.Jaeger.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	backend, err := jaeger.Start(patient(t), binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := backend.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t), func(_ *loop, spec *installation.Spec) {
		spec.Env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = backend.Endpoint()
	})
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")

	l.revoke(t)
	release := l.hold(t)
	// The leader stands still until the event has come: it would otherwise see by itself that the source fails.
	if err := l.leader.Pause(); err != nil {
		t.Fatal(err)
	}
	l.sources.ask(t, "source")
	received, err := l.follower.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == "an event asks for a refresh" })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.leader.Resume(); err != nil {
		t.Fatal(err)
	}
	release()
	id, _ := received["trace_id"].(string)
	if _, err := l.leader.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == "wrote a new token" && r["trace_id"] == id }); err != nil {
		t.Fatalf("no refresh in the event's trace %s: %v", id, err)
	}
	// Jaeger cannot be watched.
	var spans []otlp.Span
	if err := wait.PollUntilContextCancel(patient(t), 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		spans, err = backend.Trace(ctx, id)
		ends := func(s otlp.Span) bool { return s.Name == "refresh" || s.Name == "POST /events" }
		return len(slices.DeleteFunc(slices.Clone(spans), func(s otlp.Span) bool { return !ends(s) })) == 2, err
	}); err != nil {
		t.Fatalf("trace %s did not arrive whole: %v", id, err)
	}
	if diff := cmp.Diff(strings.TrimPrefix(eventTrace, "\n"), l.outline(spans)); diff != "" {
		t.Errorf("the trace (-want +got):\n%s", diff)
	}
}

// hold has Entra keep the leader waiting until release, which waits until the leader has seen the source fail: else it may write the token
// before there is anybody to wake.
func (l *loop) hold(t *testing.T) (release func()) {
	t.Helper()
	gate := make(chan struct{})
	l.Entra.Change(func(c *azuretest.Config) { c.Gate = gate })
	return func() {
		t.Helper()
		defer close(gate)
		if _, err := l.leader.Output.Wait(patient(t), func(r process.Record) bool {
			return r["name"] == "source" && strings.HasPrefix(fmt.Sprint(r["msg"]), "the object fails to authenticate")
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// outline writes a trace with one span a line, below its parent and in the order of their starts. It leaves out what depends on the moment: the
// discovery of Flux's kinds, which is remembered.
func (l *loop) outline(spans []otlp.Span) string {
	roles := map[string]string{l.leader.Name(): "leader", l.follower.Name(): "follower"}
	ids := map[string]bool{}
	for _, s := range spans {
		ids[s.ID] = true
	}
	slices.SortFunc(spans, func(a, b otlp.Span) int { return a.Start.Compare(b.Start) })
	var out strings.Builder
	var write func(parent otlp.Span, indent string)
	write = func(parent otlp.Span, indent string) {
		for _, s := range spans {
			switch {
			case s.Parent != parent.ID && (parent.ID != "" || ids[s.Parent]):
			case s.Name == "GET /apis/source.toolkit.fluxcd.io" || s.Name == "GET /apis/source.toolkit.fluxcd.io/v1":
			default:
				kind := strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_")
				out.WriteString(indent + s.Name + " (" + roles[s.Resource["k8s.pod.name"]] + ", " + kind + ")\n")
				write(s, indent+"  ")
			}
		}
	}
	write(otlp.Span{}, "")
	return out.String()
}
