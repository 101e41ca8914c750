package e2e

// An installation beside the real Flux and an Azure DevOps, for the tests of the way of an event.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/refresh/azure/azuretest"
)

// loop is an installation that keeps the Secret of sources on an Azure DevOps, whose tokens come from the same Entra.
type loop struct {
	*installation.Installation
	sources *sources
	spans   *otlp.Receiver
	// leader leads; events come to follower, at the URL events.
	leader, follower, third *replica.Replica
	events                  string
}

// newLoop installs it, with changes to what is installed. The Secret holds the CA of Azure DevOps and no token yet; no replica runs.
func newLoop(t *testing.T, c *cluster.Cluster, f *flux.Flux, namespace string, changes ...func(*loop, *installation.Spec)) *loop {
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
			for file, content := range map[string][]byte{key: []byte(l.sources.key), ca: l.sources.devops.CA()} {
				if err := os.WriteFile(file, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			return fmt.Sprintf(`
refresh: {cooldown: 100ms, verifyHosts: [%q], verifyCAFile: %q}
events: {address: "127.0.0.1:0", senders: [{name: flux, hmacKeyFile: %q, namespaces: ["*"]}]}
`, strings.TrimPrefix(l.sources.devops.URL(), "https://"), ca, key)
		}
		for _, change := range changes {
			change(l, spec)
		}
	})
	l.put(t, map[string]string{"ca.crt": string(l.sources.devops.CA())})
	return l
}

// steadfast has a leader that stands still for a while stay the leader, so that no other one with empty hands does its work.
func steadfast(_ *loop, spec *installation.Spec) {
	spec.Config = "election: {leaseDuration: 1h, renewDeadline: 50m, retryPeriod: 2s}\n"
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
	l.third = startReplica(t, l.Installation, "refresher-2", "")
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

// told gives the Event of a reason about the Secret, as soon as there is one.
func (l *loop) told(t *testing.T, reason string) corev1.Event {
	t.Helper()
	return awaitEvent(t, l.Installation, credential, reason)
}

// post sends a body to the follower, as notification-controller does, and gives the status and what was answered.
func (l *loop) post(t *testing.T, body []byte, header map[string]string) (status int, outcome string) {
	t.Helper()
	request := l.request(t, body, header)
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

// request is as notification-controller sends it.
func (l *loop) request(t *testing.T, body []byte, header map[string]string) *http.Request {
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
	return request
}

// plainHTTP keeps no connection, whose goroutine would outlive the test.
var plainHTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
