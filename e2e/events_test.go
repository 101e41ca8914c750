package e2e

// The way of an event, with the real Flux: from a token that Azure DevOps refuses to a source that is Ready again.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/tools/cache"

	"flux-token-refresher/e2e/internal/await"
	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/netproxy"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/gitremote"
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

func isRequest(s otlp.Span) bool { return s.Name == "POST /events" }

// answered waits until the follower answered an event with a status.
func (l *loop) answered(t *testing.T, status string) otlp.Span {
	t.Helper()
	span, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return isRequest(s) && s.Attributes["http.response.status_code"] == status })
	if err != nil {
		t.Fatalf("no event was answered with %s: %v", status, err)
	}
	return span
}

// event has Azure DevOps refuse the Secret's token, and waits until the event about it was acknowledged. The leader stands still until
// then: it would otherwise see by itself that the source fails, on a slow machine before the event comes. It gives the token, and the
// event's span.
func (l *loop) event(t *testing.T) (token string, request otlp.Span) {
	t.Helper()
	token = l.revoke(t)
	if err := l.leader.Pause(); err != nil {
		t.Fatal(err)
	}
	l.sources.ask(t, "source")
	request = l.answered(t, "202")
	if err := l.leader.Resume(); err != nil {
		t.Fatal(err)
	}
	return token, request
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

// told gives the Event of a reason about the Secret, as soon as there is one.
func (l *loop) told(t *testing.T, reason string) corev1.Event {
	t.Helper()
	told, err := await.Object(patient(t), &corev1.Event{}, "Event "+reason, func(e *corev1.Event) bool { return e != nil },
		cache.NewListWatchFromClient(l.Client.CoreV1().RESTClient(), "events", l.Namespace, fields.Set{
			"involvedObject.kind": "Secret", "involvedObject.name": credential, "reason": reason,
		}.AsSelector()))
	if err != nil {
		t.Fatal(err)
	}
	return *told
}

// TestTokenRejected: where a new token is refused as well, an Event on the Secret says what it most likely lacks.
func TestTokenRejected(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer devops.Answer
		lacks  string
	}{
		"403": {devops.Forbidden(), "lacks permission"},
		"404": {devops.NotFound(), "licence Stakeholder"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
			l.start(t, "")
			l.sources.notify(t, l.events)
			before := awaitSecret(t, l.Installation, credential, sound(l.Installation))
			repository := l.read(t, "source")
			minted := l.minted()
			repository.Forbid(test.answer)
			l.sources.ask(t, "source")

			after := awaitSecret(t, l.Installation, credential, func(s *corev1.Secret) bool {
				return s != nil && s.Annotations[secret.HandledOutcome] == string(refresh.TokenRejected)
			})
			if string(after.Data["bearerToken"]) == string(before.Data["bearerToken"]) {
				t.Error("no new token was tried")
			}
			told := l.told(t, string(refresh.TokenRejected))
			if !strings.Contains(told.Message, test.lacks) || !strings.Contains(told.Message, "GitRepository") || told.Type != corev1.EventTypeWarning {
				t.Errorf("%s Event %q, want that it %s", told.Type, told.Message, test.lacks)
			}
			t.Logf("%d minted: %s", l.minted()-minted, told.Message)

			repository.Allow()
			l.sources.ask(t, "source")
			l.sources.await(t, "source", isReady)
		})
	}
}

// TestNoEvent: where no event comes, the leader sees by itself that a source fails.
func TestNoEvent(t *testing.T) {
	t.Parallel()
	t.Run("nobody sends any", func(t *testing.T) {
		t.Parallel()
		newLoop(t, controlPlane, fluxOf(t), newNamespace(t)).expectRepairUntold(t, func() {})
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
	if events := l.spans.Spans(isRequest); len(events) > 0 {
		t.Errorf("events came: %v", events)
	}
}

// post sends a body to the follower, as notification-controller does, and gives the status and what was answered.
func (l *loop) post(t *testing.T, body []byte, header map[string]string) (status int, outcome string) {
	t.Helper()
	request, err := http.NewRequestWithContext(patient(t), http.MethodPost, l.events, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Gotk-Component", "source-controller")
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := plainHTTP.Do(request)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer response.Body.Close()
	var answer struct{ Outcome, Error string }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Error(err)
	}
	return response.StatusCode, answer.Outcome
}

// plainHTTP keeps no connection, whose goroutine would outlive the test.
var plainHTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

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

	signed := map[string]string{"X-Signature": signature(body)}
	for name, header := range map[string]map[string]string{
		"ce-* headers were added": {
			"X-Signature": signature(body), "ce-specversion": "1.0", "ce-id": "1", "ce-source": "elsewhere",
			"ce-type": "flux-token-refresher.refresh.requested", "ce-subject": l.Namespace + "/" + credential,
		},
		"unsigned":                {},
		"signed for another body": {"X-Signature": signature([]byte("{}"))},
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

// TestForbiddenReader: a token that one source may use is not replaced because another source may not.
func TestForbiddenReader(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	before := awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "good")
	forbidden := l.read(t, "forbidden")
	minted := l.minted()
	forbidden.Forbid(devops.Forbidden())
	l.sources.ask(t, "forbidden")
	l.sources.await(t, "forbidden", isFailed)
	after := awaitSecret(t, l.Installation, credential, func(s *corev1.Secret) bool {
		return s != nil && s.Annotations[secret.HandledRequest] != ""
	})
	if outcome := after.Annotations[secret.HandledOutcome]; outcome != string(refresh.StillValid) {
		t.Errorf("the request ended with %s, want StillValid", outcome)
	}
	if string(after.Data["bearerToken"]) != string(before.Data["bearerToken"]) || l.minted() != minted {
		t.Errorf("%d tokens were minted", l.minted()-minted)
	}
}

// TestHangingReader: a source whose server never answers does not keep the others waiting.
func TestHangingReader(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	hanging := l.read(t, "hanging")
	l.read(t, "source")
	hanging.Forbid(devops.Hang())
	token := l.revoke(t)
	l.sources.ask(t, "source")
	awaitSecret(t, l.Installation, credential, l.renewed(token))
	refreshed, err := l.spans.Wait(patient(t), func(s otlp.Span) bool {
		return s.Name == "refresh" && s.Attributes["refresh.reason"] == string(refresh.RefreshRequested)
	})
	if err != nil {
		t.Fatal(err)
	}
	// It tells of the wake as well, which comes last.
	if took := refreshed.End.Sub(refreshed.Start); took >= gitremote.DefaultTimeout {
		t.Errorf("the refresh took %s: it waited for the server that hangs", took)
	}
	l.sources.await(t, "source", isReady)
}

// TestAdoption: a personal access token gives way only to a token that Azure DevOps takes.
func TestAdoption(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.Entra.Change(func(c *azuretest.Config) {
		c.Applications = append(c.Applications, azuretest.Application{TenantID: "tenant", ClientID: sourceClient})
	})
	theirs, err := l.Entra.Issue(sourceClient, azuretest.AzureDevOps)
	if err != nil {
		t.Fatal(err)
	}
	l.put(t, map[string]string{"username": "git", "password": theirs, "ca.crt": string(l.sources.devops.CA())})
	l.read(t, "source")
	l.sources.devops.Change(func(c *devops.Config) { c.Outsiders = []string{l.ClientID()} })
	l.start(t, "")
	told := l.told(t, "RefreshFailed")
	if !strings.Contains(told.Message, "is left alone") {
		t.Errorf("the Event says %q, want that the credential is left alone", told.Message)
	}
	kept := awaitSecret(t, l.Installation, credential, func(s *corev1.Secret) bool { return s != nil })
	if len(kept.Data["bearerToken"]) > 0 {
		t.Error("the token that Azure DevOps refuses was written")
	}

	// Another term tries again at once.
	l.sources.devops.Change(func(c *devops.Config) { c.Outsiders = nil })
	from := len(l.sources.devops.Requests(0))
	if err := l.leader.Stop(patient(t)); err != nil {
		t.Fatal(err)
	}
	got := awaitSecret(t, l.Installation, credential, sound(l.Installation))
	if got.Annotations[secret.Reason] != string(refresh.Adopted) || string(got.Data["username"]) != "git" {
		t.Errorf("it was written for %s, with the username %q", got.Annotations[secret.Reason], got.Data["username"])
	}
	wrote, err := controlPlane.Audit.Wait(patient(t), 0, 1, func(r cluster.Request) bool {
		return r.User == "system:serviceaccount:"+l.Namespace+":"+installation.Account && r.Resource == "secrets" && r.Verb == "patch"
	})
	if err != nil {
		t.Fatal(err)
	}
	took := slices.ContainsFunc(l.sources.devops.Requests(from), func(r devops.Request) bool {
		return r.Refused == nil && r.TokenHash == refresh.Hash(string(got.Data["bearerToken"])) && r.Answered.Before(wrote[0].Received)
	})
	if !took {
		t.Error("the new token was written before Azure DevOps took it")
	}
	l.told(t, string(refresh.Adopted))
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
