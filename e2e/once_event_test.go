package e2e

// once --event: what a job does about the event that it was started with.

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/election"
	"flux-token-refresher/events"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

// onceWith runs "once --event" with a file that holds the event, as Knative mounts it, and gives its exit code and what it wrote.
func onceWith(t *testing.T, i *installation.Installation, name, event string) (int, *process.Output) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "event")
	if err := os.WriteFile(file, []byte(event), 0o600); err != nil {
		t.Fatal(err)
	}
	return once(t, i, name, "--event="+file)
}

// requestEvent is a CloudEvent as sdk-go writes it into a JobSink's file, which asks for a refresh of a Secret.
func requestEvent(id, namespace, name string) string {
	event, err := json.Marshal(map[string]string{
		"specversion": "1.0", "id": id, "source": "/a/pipeline", "type": events.TypeRefreshRequested, "subject": namespace + "/" + name,
		"time": time.Now().UTC().Format(time.RFC3339Nano), "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	})
	if err != nil {
		panic(err) // it always marshals
	}
	return string(event)
}

// handled tells whether a Secret holds a good token, which came with the answer to the request of an event.
func handled(i *installation.Installation, id string) func(*corev1.Secret) bool {
	return func(s *corev1.Secret) bool {
		return sound(i)(s) && s.Annotations[secret.HandledRequest] == refresh.Hash(refresh.LongHash("file", "/a/pipeline", id)) &&
			s.Annotations[secret.HandledOutcome] == string(refresh.Refreshed)
	}
}

func leaderIsAtWork(r process.Record) bool { return r["msg"] == "a leader is at work already" }

func TestOnceEvent(t *testing.T) {
	t.Parallel()
	const name = "flux-system"
	receiver := newReceiver(t)
	i := install(t, func(s *installation.Spec) { s.Env = receiver.Env() })
	expect := func(what string, code int, output *process.Output, requests int) {
		t.Helper()
		if code != 0 || i.Entra.Requests() != requests {
			t.Errorf("%s: exit code %d after %d token requests in all, want 0 and %d:\n%s", what, code, i.Entra.Requests(), requests, output)
		}
	}

	// What the event asks for and what is due are one.
	code, output := onceWith(t, i, "missing", requestEvent("1", i.Namespace, name))
	expect("a Secret that is missing", code, output, 1)
	awaitSecret(t, i, name, sound(i))

	code, output = onceWith(t, i, "file", requestEvent("2", i.Namespace, name))
	expect("a request", code, output, 2)
	awaitSecret(t, i, name, handled(i, "2"))
	awaitLeader(t, i, func(holder string) bool { return holder == "" })

	spec := replicaSpec(t, i, "stdin", "")
	spec.Command, spec.Flags, spec.Stdin = "once", []string{"--event=-"}, strings.NewReader(requestEvent("3", i.Namespace, name))
	job := launch(t, i, spec)
	code, err := job.Wait(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	expect("stdin", code, job.Output, 3)
	awaitSecret(t, i, name, handled(i, "3"))

	// It came before, and is answered: a job that is tried again does nothing.
	code, output = onceWith(t, i, "again", requestEvent("3", i.Namespace, name))
	expect("again", code, output, 3)

	mark, err := controlPlane.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for what, event := range map[string]string{
		"not-a-target": requestEvent("4", i.Namespace, "another"),
		"not-ours":     strings.Replace(requestEvent("5", i.Namespace, name), events.TypeRefreshRequested, "com.example.other", 1),
		"unrelated": `{"involvedObject":{"apiVersion":"source.toolkit.fluxcd.io/v1","kind":"GitRepository","namespace":"` + i.Namespace + `","name":"source"},` +
			`"severity":"error","reason":"GitOperationFailed","message":"dial tcp: i/o timeout","timestamp":"` + time.Now().UTC().Format(time.RFC3339) + `"}`,
	} {
		code, output = onceWith(t, i, what, event)
		expect(what, code, output, 3)
		if said := output.Records(func(r process.Record) bool { return r["msg"] == "the event concerns no target: nothing is done" }); len(said) != 1 {
			t.Errorf("%s: it does not say so:\n%s", what, output)
		}
	}
	end, err := controlPlane.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if made := controlPlane.Audit.Between(mark, end, func(r cluster.Request) bool { return isProduct(i, r) }); len(made) > 0 {
		t.Errorf("what concerns no target made requests: %v", made)
	}

	leader := startReplica(t, i, "leader", "")
	awaitLeader(t, i, func(holder string) bool { return holder == leader.Name() })
	code, output = onceWith(t, i, "follower", requestEvent("6", i.Namespace, name))
	expect("beside a leader", code, output, 4)
	awaitSecret(t, i, name, handled(i, "6"))
	if said := output.Records(leaderIsAtWork); len(said) != 1 {
		t.Errorf("it does not say that somebody leads:\n%s", output)
	}

	// One trace runs from the event to the refresh, on whatever pod; the event's own is linked.
	for _, pods := range [][2]string{{"file", "file"}, {"follower", "leader"}} {
		event, err := receiver.Wait(patient(t), func(s otlp.Span) bool { return s.Name == "event" && s.Resource["k8s.pod.name"] == pods[0] })
		if err != nil {
			t.Fatal(err)
		}
		if event.Kind != tracepb.Span_SPAN_KIND_CONSUMER || event.Parent != "" || !slices.Equal(event.Links, []string{"0af7651916cd43dd8448eb211c80319c"}) {
			t.Errorf("the event's span: %+v", event)
		}
		if _, err := receiver.Wait(patient(t), func(s otlp.Span) bool {
			return s.Name == "refresh" && s.TraceID == event.TraceID && s.Resource["k8s.pod.name"] == pods[1]
		}); err != nil {
			t.Errorf("no refresh by %s in the trace of the event at %s: %v", pods[1], pods[0], err)
		}
	}
}

// TestOnceEventOfFlux: with no replica running, the event that Flux sends repairs what it is about.
func TestOnceEventOfFlux(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	if code, output := once(t, l.Installation, "first"); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, output)
	}
	hook := l.sources.webhook(t)
	l.read(t, "source")
	minted, token := l.minted(), l.revoke(t)
	asked := l.sources.ask(t, "source")
	body := string(hook.next(t).body)
	l.sources.await(t, "source", isFailed)

	began := time.Now()
	if code, output := onceWith(t, l.Installation, "job", body); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, output)
	}
	t.Logf("the job took %s", time.Since(began).Round(time.Millisecond))
	got := awaitSecret(t, l.Installation, credential, l.renewed(token))
	if outcome := got.Annotations[secret.HandledOutcome]; outcome != string(refresh.Refreshed) || l.minted() != minted+1 {
		t.Errorf("the request ended with %s, and %d tokens were minted, want 1", outcome, l.minted()-minted)
	}
	l.sources.await(t, "source", func(o *unstructured.Unstructured) bool { return isReady(o) && flux.Handled(o) != asked })
	t.Logf("the source is Ready %s after the job began", time.Since(began).Round(time.Millisecond))
}

// TestOnceEventAfterAnotherJob: a leader that goes without having seen the request is followed.
func TestOnceEventAfterAnotherJob(t *testing.T) {
	t.Parallel()
	i := install(t, func(s *installation.Spec) { s.Config = shortTerms })
	if code, output := once(t, i, "first"); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, output)
	}
	leading, leave := context.WithCancel(t.Context())
	defer leave()
	leads, left := make(chan struct{}), make(chan error, 1)
	go func() {
		left <- election.Run(leading, election.Config{
			Client: i.Client.CoordinationV1(), Lease: types.NamespacedName{Namespace: i.Namespace, Name: installation.Account}, Identity: "blind_1",
			LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 400 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		}, func(ctx context.Context, _ func() bool) error {
			close(leads)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	select {
	case <-leads:
	case <-patient(t).Done():
		t.Fatal("nobody leads")
	}
	file := filepath.Join(t.TempDir(), "event")
	if err := os.WriteFile(file, []byte(requestEvent("1", i.Namespace, "flux-system")), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := replicaSpec(t, i, "job", "")
	spec.Command, spec.Flags = "once", []string{"--event=" + file}
	job := launch(t, i, spec)
	if _, err := job.Output.Wait(patient(t), leaderIsAtWork); err != nil {
		t.Fatal(err)
	}
	leave()
	if err := <-left; err != nil {
		t.Error(err)
	}
	if code, err := job.Wait(patient(t)); err != nil || code != 0 {
		t.Errorf("it ended with %d, %v", code, err)
	}
	awaitSecret(t, i, "flux-system", handled(i, "1"))
}

// TestOnceEventDoesNotCome: a job waits for its event no longer than for anything else.
func TestOnceEventDoesNotCome(t *testing.T) {
	t.Parallel()
	i := install(t, nil)
	nothing, keepOpen, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(nothing.Close(), keepOpen.Close()); err != nil {
			t.Error(err)
		}
	})
	spec := replicaSpec(t, i, "job", "")
	spec.Command, spec.Flags, spec.Stdin = "once", []string{"--event=-", "--timeout=100ms"}, nothing
	timed := launch(t, i, spec)
	if code, err := timed.Wait(patient(t)); err != nil || code != 1 || !strings.Contains(timed.Output.String(), "read -: gave up after 100ms (--timeout)") {
		t.Errorf("after its time it ended with %d, %v:\n%s", code, err, timed.Output)
	}
}
