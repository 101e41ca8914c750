package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

// TestRequester: the receiver's side of the request protocol, from any replica, on a real API server with the rights of a replica.
func TestRequester(t *testing.T) {
	t.Parallel()
	now := time.Now()
	stamp := func(at time.Time) string { return at.UTC().Format(time.RFC3339) }
	ask := func(id string) secret.Ask {
		return secret.Ask{
			Sender: "flux", Source: "/a/git/repository", ID: id, Verdict: "auth-failure", Time: now, Received: now,
			TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		}
	}
	raw := refresh.LongHash("flux", "/a/git/repository", "1")
	written, coalesced := secret.Answer{Written: true}, secret.Answer{}
	demand := ask("1")
	demand.Demand = true
	long := ask("1")
	long.Source = "/" + strings.Repeat("long/", 400)
	for name, test := range map[string]struct {
		// seed is what stands there, beside the token; nil: no Secret.
		seed  map[string]string
		token string
		ask   secret.Ask
		want  secret.Answer
	}{
		"the first of its kind":              {map[string]string{}, "token", ask("1"), written},
		"there is no Secret":                 {nil, "", ask("1"), coalesced},
		"there is no token":                  {map[string]string{}, "", ask("1"), coalesced},
		"the event is of the token's second": {map[string]string{secret.RefreshedAt: stamp(now)}, "token", ask("1"), written},
		"the event is older than the token":  {map[string]string{secret.RefreshedAt: stamp(now.Add(2 * time.Second))}, "token", ask("1"), secret.Answer{Overtaken: true}},
		"it was asked and handled":           {map[string]string{secret.Request: raw, secret.HandledRequest: refresh.Hash(raw)}, "token", ask("1"), coalesced},
		"it was handled, then another was":   {map[string]string{secret.Request: raw, secret.HandledRequest: refresh.Hash(raw)}, "token", ask("2"), written},
		"a person asks":                      {map[string]string{secret.Request: "now"}, "token", ask("1"), coalesced},
		"a person's request was handled":     {map[string]string{secret.Request: "now", secret.HandledRequest: refresh.Hash("now")}, "token", ask("1"), written},
		"one about this token is open": {map[string]string{
			secret.Request:        "open",
			secret.RequestContext: `{"request":"open","about":"` + refresh.Hash("token") + `","traceparent":"` + ask("").TraceParent + `"}`,
		}, "token", ask("1"), secret.Answer{OpenTrace: ask("").TraceParent}},
		"one about another token is open": {map[string]string{
			secret.Request:        "open",
			secret.RequestContext: `{"request":"open","about":"` + refresh.Hash("another") + `"}`,
		}, "token", ask("1"), written},
		"a token is wanted, while a complaint is open": {map[string]string{
			secret.Request:        "open",
			secret.RequestContext: `{"request":"open","about":"` + refresh.Hash("token") + `"}`,
		}, "token", demand, written},
		"hands off":         {map[string]string{secret.Suspend: "true"}, "token", ask("1"), coalesced},
		"a token is wanted": {map[string]string{}, "token", demand, written},
		"of a source that does not fit the context": {map[string]string{}, "token", long, written},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := newNamespace(t)
			target := secretTarget(namespace)
			config := secretAccount(t, namespace)
			allowSecret(t, config, namespace)
			if test.seed != nil {
				object := &corev1.Secret{
					ObjectMeta: metav1.ObjectMeta{Name: target.Name.Name, Annotations: test.seed},
					Data:       map[string][]byte{"bearerToken": []byte(test.token)},
				}
				if _, err := newClient(t).CoreV1().Secrets(namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			answer, err := secret.NewRequester(coreClient(t, config)).Request(t.Context(), target, test.ask)
			if err != nil || answer != test.want {
				t.Fatalf("%+v, error %v; want %+v", answer, err, test.want)
			}
			if !answer.Written {
				return
			}
			live, err := hands{newClient(t)}.Get(t.Context(), target.Name)
			if err != nil {
				t.Fatal(err)
			}
			got := secret.Observe(target, live).Request
			want := refresh.Request{
				ID: refresh.Hash(refresh.LongHash(test.ask.Sender, test.ask.Source, test.ask.ID)), About: refresh.Hash(test.token),
				Received: now.UTC(), TraceParent: test.ask.TraceParent,
			}
			if test.ask.Demand {
				want.About = ""
			}
			if !got.Received.Equal(want.Received) {
				t.Errorf("received %s, want %s", got.Received, want.Received)
			}
			got.Received = want.Received
			if got != want {
				t.Errorf("the leader sees %+v, want %+v", got, want)
			}
			if context := live.Annotations[secret.RequestContext]; !strings.Contains(context, `"sender":"flux"`) {
				t.Errorf("the sender's name is not in %s", context)
			}
		})
	}
}

// TestRequesterStorm: a hundred events about one token, at three replicas at once, while somebody else changes the Secret, are one request.
func TestRequesterStorm(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	target := secretTarget(namespace)
	config := secretAccount(t, namespace)
	allowSecret(t, config, namespace)
	object := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: target.Name.Name}, Data: map[string][]byte{"bearerToken": []byte("token")}}
	if _, err := newClient(t).CoreV1().Secrets(namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	replicas := [3]*secret.Requester{}
	for i := range replicas {
		replicas[i] = secret.NewRequester(coreClient(t, config))
	}
	var requests sync.WaitGroup
	var made atomic.Int32
	for n := range 100 {
		requests.Go(func() {
			ask := secret.Ask{Sender: "flux", Source: fmt.Sprint("repository-", n), ID: fmt.Sprint(n), Time: time.Now(), Received: time.Now()}
			answer, err := replicas[n%3].Request(t.Context(), target, ask)
			if err != nil {
				t.Error(err)
			}
			if answer.Written {
				made.Add(1)
			}
		})
	}
	requests.Wait()
	if got := made.Load(); got != 1 {
		t.Errorf("%d requests were written for a hundred events about one token, want 1", got)
	}
}
