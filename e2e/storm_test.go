package e2e

// Storms of events, at real replicas: what they cost, and that nobody else waits.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

const bystander = "bystander"

// storm sends events to three replicas, each to the next one.
type storm struct {
	*installation.Installation
	urls   []string
	client *http.Client
	next   atomic.Int64
	// answered counts by status and outcome.
	mu       sync.Mutex
	answered map[string]int
}

func newStorm(t *testing.T) *storm {
	t.Helper()
	s := &storm{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}, answered: map[string]int{}}
	t.Cleanup(s.client.CloseIdleConnections)
	s.Installation = install(t, func(spec *installation.Spec) {
		spec.Targets = []string{credential, bystander}
		spec.Peers = func(*azuretest.Entra) string {
			key := filepath.Join(spec.Dir, "hmac")
			if err := os.WriteFile(key, []byte(eventsKey), 0o600); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("events: {address: \"127.0.0.1:0\", senders: [{name: flux, hmacKeyFile: %q, namespaces: [%q]}]}\n"+
				"refresh: {verifyHosts: []}\n", key, spec.Namespace)
		}
	})
	for n := range 3 {
		r := startReplica(t, s.Installation, fmt.Sprintf("refresher-%d", n), "")
		receiving, err := r.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == "receiving events" })
		if err != nil {
			t.Fatal(err)
		}
		s.urls = append(s.urls, fmt.Sprintf("http://%s/events", receiving["address"]))
	}
	return s
}

// post sends an event until it is taken, as Flux does: what comes too fast, or cannot be taken now, is to come again when the answer says.
func (s *storm) post(t *testing.T, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		url := s.urls[int(s.next.Add(1))%len(s.urls)]
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Error(err)
			return
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("X-Signature", signature(eventsKey, []byte(body)))
		response, err := s.client.Do(request)
		if err != nil {
			t.Error(err)
			return
		}
		var answer struct{ Outcome string }
		err = json.NewDecoder(response.Body).Decode(&answer)
		_ = response.Body.Close()
		if err != nil {
			t.Error(err)
			return
		}
		s.mu.Lock()
		s.answered[fmt.Sprint(response.StatusCode, " ", answer.Outcome)]++
		s.mu.Unlock()
		switch response.StatusCode {
		case http.StatusAccepted:
			return
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			after, err := strconv.Atoi(response.Header.Get("Retry-After"))
			if err != nil {
				t.Errorf("%s, and not when to come again: %v", response.Status, err)
				return
			}
			select {
			case <-time.After(time.Duration(after) * time.Second):
			case <-ctx.Done():
				t.Error(ctx.Err())
				return
			}
		default:
			t.Errorf("%s", response.Status)
			return
		}
	}
}

// TestEventStorm: a hundred sources on one Secret that fail together, each told at each replica, and one of those events ten thousand times, are one mint
// and a handful of writes; meanwhile another target is refreshed.
func TestEventStorm(t *testing.T) {
	t.Parallel()
	const sources, repetitions, workers = 100, 10_000, 40
	s := newStorm(t)
	fluxOf(t) // for its definitions
	aged := s.age(t, credential)
	failed := time.Now().Add(-5 * time.Second) // so that the token that follows is newer, to the second
	var events []string
	for n := range sources {
		name := fmt.Sprint("source-", n)
		source := gitRepository.object(name)
		// Suspended, so that Flux itself leaves it alone.
		for field, value := range map[string]any{"suspend": true, "secretRef": map[string]any{"name": credential}} {
			if err := unstructured.SetNestedField(source.Object, value, "spec", field); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := newDynamic(t).Resource(gitRepository.gvr()).Namespace(s.Namespace).Create(t.Context(), source, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		events = append(events, fmt.Sprintf(`{"involvedObject":{"apiVersion":"source.toolkit.fluxcd.io/v1","kind":"GitRepository","namespace":%q,"name":%q},`+
			`"severity":"error","reason":"GitOperationFailed","message":"authentication required","timestamp":%q}`, s.Namespace, name, failed.UTC().Format(time.RFC3339)))
	}
	minted := s.Entra.Minted(s.ClientID(), azuretest.AzureDevOpsScope)
	from, err := s.Cluster.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	s.blow(t, workers, func(n int) (string, bool) { return events[n/3%sources], n < 3*sources })
	awaitSecret(t, s.Installation, credential, func(o *corev1.Secret) bool {
		return sound(s.Installation)(o) && string(o.Data["bearerToken"]) != string(aged.Data["bearerToken"])
	})
	t.Logf("%d sources told %d times: %v in %s", sources, 3*sources, s.answered, time.Since(began).Round(time.Millisecond))

	// The storm blows until the other target, whose request goes in amidst, has its token.
	s.answered = map[string]int{}
	before := awaitSecret(t, s.Installation, bystander, sound(s.Installation))
	var took time.Duration
	over := make(chan struct{})
	ask := sync.OnceFunc(func() {
		defer close(over)
		asked := time.Now()
		s.post(t, requestEvent("1", s.Namespace, bystander))
		if _, err := s.Secret(patient(t), bystander, func(o *corev1.Secret) bool {
			return sound(s.Installation)(o) && string(o.Data["bearerToken"]) != string(before.Data["bearerToken"])
		}); err != nil {
			t.Error(err)
		}
		took = time.Since(asked)
	})
	began = time.Now()
	sent := s.blow(t, workers, func(n int) (string, bool) {
		if n == repetitions/10 {
			ask() // this worker's way of blowing
		}
		select {
		case <-over:
			return events[0], n < repetitions
		default:
			return events[0], true
		}
	})
	t.Logf("the same event %d times: %v in %s; meanwhile another target had its token %s after it was asked for",
		sent, s.answered, time.Since(began).Round(time.Millisecond), took.Round(time.Millisecond))

	to, err := s.Cluster.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]int{}
	for _, r := range s.Cluster.Audit.Between(from, to, func(r cluster.Request) bool { return isProduct(s.Installation, r) }) {
		counted[fmt.Sprintf("%s %s %d", r.Verb, r.Resource, r.Code)]++
		if r.Verb == "patch" && r.Resource == "secrets" && r.Name == credential {
			counted[fmt.Sprintf("written: %d", r.Code)]++
		}
	}
	t.Logf("requests to the API server: %v", counted)
	// A request for a refresh, and the token that answers it.
	if n := counted["written: 200"]; n != 2 {
		t.Errorf("the Secret was written %d times, want 2", n)
	}
	// It is another token than the bystander had, too.
	if n := s.Entra.Minted(s.ClientID(), azuretest.AzureDevOpsScope) - minted; n != 1 {
		t.Errorf("%d tokens were minted, want 1", n)
	}
}

// age makes the token in a Secret ten minutes old, and gives it.
func (s *storm) age(t *testing.T, name string) *corev1.Secret {
	t.Helper()
	awaitSecret(t, s.Installation, name, sound(s.Installation))
	old := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, secret.RefreshedAt, time.Now().Add(-10*time.Minute).UTC().Format(time.RFC3339))
	aged, err := s.Client.CoreV1().Secrets(s.Namespace).Patch(t.Context(), name, "application/merge-patch+json", []byte(old), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return aged
}

// blow sends events, many at once, while there are more, and tells how many they were.
func (s *storm) blow(t *testing.T, workers int, event func(n int) (body string, more bool)) int {
	t.Helper()
	var all sync.WaitGroup
	var next, sent atomic.Int64
	for range workers {
		all.Go(func() {
			for !t.Failed() {
				body, more := event(int(next.Add(1)) - 1)
				if !more {
					return
				}
				s.post(t, body)
				sent.Add(1)
			}
		})
	}
	all.Wait()
	return int(sent.Load())
}
