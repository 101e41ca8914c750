package e2e

// The way of an event, with the real Flux: from a token that Azure DevOps refuses to a source that is Ready again.

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// loop is an installation that keeps the Secret of sources on an Azure DevOps, whose tokens come from the same Entra.
type loop struct {
	*installation.Installation
	sources *sources
	spans   *otlp.Receiver
	// leader leads; events come to follower, at the URL events.
	leader, follower *replica.Replica
	events           string
}

// newLoop installs it. The Secret holds the CA of Azure DevOps and no token yet; no replica runs.
func newLoop(t *testing.T, c *cluster.Cluster, f *flux.Flux, namespace string) *loop {
	t.Helper()
	spans, err := otlp.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := spans.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &loop{spans: spans}
	l.Installation = install(t, func(spec *installation.Spec) {
		spec.Cluster, spec.Namespace, spec.Targets, spec.Env = c, namespace, []string{credential}, spans.Env()
		spec.Peers = func(entra *azuretest.Entra) string {
			l.sources = newSources(t, c, f, namespace, entra)
			key, ca := filepath.Join(spec.Dir, "hmac"), filepath.Join(spec.Dir, "devops-ca.pem")
			for file, content := range map[string][]byte{key: []byte(webhookKey), ca: l.sources.devops.CA()} {
				if err := os.WriteFile(file, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			return fmt.Sprintf(`
refresh: {cooldown: 100ms, verifyHosts: [%q], verifyCAFile: %q}
events: {address: "127.0.0.1:0", senders: [{name: flux, hmacKeyFile: %q, namespaces: ["*"]}]}
`, strings.TrimPrefix(l.sources.devops.URL(), "https://"), ca, key)
		}
	})
	l.put(t, map[string]string{"ca.crt": string(l.sources.devops.CA())})
	return l
}

// put writes to the Secret, as its owner does.
func (l *loop) put(t *testing.T, data map[string]string) {
	t.Helper()
	with := applycorev1.Secret(credential, l.Namespace).WithStringData(data)
	if _, err := l.Client.CoreV1().Secrets(l.Namespace).Apply(t.Context(), with, metav1.ApplyOptions{FieldManager: "owner", Force: true}); err != nil {
		t.Fatal(err)
	}
}

// start starts the three replicas, and waits for their first token. api is as startReplica has it, for the one that gets the events.
func (l *loop) start(t *testing.T, api string) {
	t.Helper()
	l.leader = startReplica(t, l.Installation, "refresher-0", "")
	awaitLeader(t, l.Installation, func(holder string) bool { return holder == l.leader.Name() })
	l.follower = startReplica(t, l.Installation, "refresher-1", api)
	startReplica(t, l.Installation, "refresher-2", "")
	receiving, err := l.follower.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == "receiving events" })
	if err != nil {
		t.Fatal(err)
	}
	l.events = fmt.Sprintf("http://%s/events", receiving["address"])
}

// read creates a GitRepository on a repository of its own, and waits until it is Ready.
func (l *loop) read(t *testing.T, name string) *devops.Repository {
	t.Helper()
	repository := l.sources.repository(t, name)
	l.sources.read(t, name, repository)
	l.sources.await(t, name, isReady)
	return repository
}

// revoke ends the Secret's token at Azure DevOps, and gives it.
func (l *loop) revoke(t *testing.T) string {
	t.Helper()
	token := string(awaitSecret(t, l.Installation, credential, sound(l.Installation)).Data["bearerToken"])
	l.sources.devops.Revoke(token)
	return token
}

// renewed tells whether another token stands in the Secret than that one, beside what its owner put there.
func (l *loop) renewed(token string) func(*corev1.Secret) bool {
	return func(s *corev1.Secret) bool {
		return sound(l.Installation)(s) && string(s.Data["bearerToken"]) != token
	}
}

func (l *loop) minted() int { return l.Entra.Minted(l.ClientID(), azuretest.AzureDevOpsScope) }

// TestEventLoop: a token that Azure DevOps refuses, in each of its ways, is replaced on the word of source-controller, which comes in at a
// follower; one mint does, one trace tells of it, and the source is Ready again.
func TestEventLoop(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")
	var written, ready []time.Duration
	for name, refusal := range map[string]devops.Answer{
		"302 to the sign-in page": devops.SignIn(),
		"203 with HTML":           devops.SignInPage(203),
		"200 with HTML":           devops.SignInPage(200),
		"401":                     devops.Unauthorized(),
	} {
		l.sources.devops.Change(func(c *devops.Config) { c.Refusal = refusal })
		minted, known := l.minted(), map[string]bool{}
		for _, s := range l.spans.Spans(isRequest) {
			known[s.TraceID] = true
		}
		token := l.revoke(t)
		asked := l.sources.ask(t, "source")
		got := awaitSecret(t, l.Installation, credential, l.renewed(token))
		l.sources.await(t, "source", func(o *unstructured.Unstructured) bool { return isReady(o) && flux.Handled(o) != asked })
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
		request, refreshed := l.trace(t, func(s otlp.Span) bool { return !known[s.TraceID] })
		written = append(written, refreshed.apply.End.Sub(request.Start))
		ready = append(ready, readyAt.Sub(request.Start))
		t.Logf("%s: from the event to the Secret %s, to Ready %s", name, written[len(written)-1].Round(time.Millisecond), ready[len(ready)-1].Round(time.Millisecond))
	}
	slices.Sort(written)
	slices.Sort(ready)
	t.Logf("at the median: from the event to the Secret %s, to Ready %s; to reach: 2s",
		written[len(written)/2].Round(time.Millisecond), ready[len(ready)/2].Round(time.Millisecond))
}

func isRequest(s otlp.Span) bool { return s.Name == "POST /events" }

type refreshed struct{ refresh, apply otlp.Span }

// trace gives the spans of the event that made the leader refresh, of those that match: they are one trace from the follower to the leader.
func (l *loop) trace(t *testing.T, match func(otlp.Span) bool) (request otlp.Span, on refreshed) {
	t.Helper()
	find := func(what string, match func(otlp.Span) bool) otlp.Span {
		span, err := l.spans.Wait(patient(t), match)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return span
	}
	on.refresh = find("refresh", func(s otlp.Span) bool {
		return s.Name == "refresh" && s.Parent != "" && s.Attributes["refresh.outcome"] == string(refresh.Refreshed) && match(s)
	})
	request = find("POST /events", func(s otlp.Span) bool { return isRequest(s) && s.TraceID == on.refresh.TraceID })
	on.apply = find("secret.apply", func(s otlp.Span) bool { return s.Name == "secret.apply" && s.TraceID == on.refresh.TraceID })
	for span, pod := range map[*otlp.Span]*replica.Replica{&request: l.follower, &on.refresh: l.leader} {
		if got := span.Resource["k8s.pod.name"]; got != pod.Name() {
			t.Errorf("%s is of %s, want %s", span.Name, got, pod.Name())
		}
	}
	if request.Kind != tracepb.Span_SPAN_KIND_SERVER || on.refresh.Kind != tracepb.Span_SPAN_KIND_CONSUMER {
		t.Errorf("the spans are of kind %s and %s", request.Kind, on.refresh.Kind)
	}
	return request, on
}
