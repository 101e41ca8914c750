package e2e

// Two hundred Secrets of one identity, on a real API server.

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// TestManySecrets: those that are due at once take one request to Entra and one write each, some of them at the same time. While Entra is away
// each keeps its token.
func TestManySecrets(t *testing.T) {
	t.Parallel()
	const n = 200
	i := install(t, func(s *installation.Spec) {
		for k := range n {
			s.Targets = append(s.Targets, fmt.Sprintf("many-%d", k))
		}
	})
	// run runs "once", and gives its exit code, the requests that it took, and the Secrets.
	run := func(name string, flags ...string) (code, asked int, writes []cluster.Request, held map[string]corev1.Secret) {
		t.Helper()
		from, err := i.Cluster.Audit.Mark(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		asked = i.Entra.Requests()
		code, _ = once(t, i, name, flags...)
		asked = i.Entra.Requests() - asked
		to, err := i.Cluster.Audit.Mark(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		writes = i.Cluster.Audit.Between(from, to, func(r cluster.Request) bool {
			return isProduct(i, r) && r.Resource == "secrets" && r.Verb == "patch"
		})
		list, err := i.Client.CoreV1().Secrets(i.Namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		held = map[string]corev1.Secret{}
		for _, s := range list.Items {
			held[s.Name] = s
		}
		return code, asked, writes, held
	}

	var hash string
	for _, step := range []struct {
		name, flag string
		reason     refresh.Reason
	}{
		{"missing", "--within=0s", refresh.SecretMissing},
		{"due", "--within=2h", refresh.RefreshDue},
	} {
		code, asked, writes, held := run(step.name, step.flag)
		if code != 0 || asked != 1 || len(writes) != n || len(held) != n {
			t.Fatalf("%s: exit code %d after %d token requests and %d writes, want 0, 1 and %d; there are %d Secrets", step.name, code, asked, len(writes), n, len(held))
		}
		before := hash
		hash = held["many-0"].Annotations[secret.TokenHash]
		for name, s := range held {
			if !sound(i)(&s) || s.Annotations[secret.TokenHash] != hash || s.Annotations[secret.Reason] != string(step.reason) {
				t.Fatalf("%s: %s has %v", step.name, name, s.Annotations)
			}
		}
		if hash == before {
			t.Errorf("%s: they hold the old token", step.name)
		}
		most, first, last := overlap(writes)
		if most < 2 {
			t.Errorf("%s: one write after the other", step.name)
		}
		t.Logf("%s: %d Secrets by one token request, %s from the first write to the last, up to %d at the same time", step.name, n, last.Sub(first).Round(time.Millisecond), most)
	}

	away := azuretest.Broken(503)
	i.Entra.Change(func(c *azuretest.Config) { c.Outage = &away })
	code, asked, writes, held := run("away", "--within=2h")
	if code != 1 || asked > 10 || len(writes) != 0 {
		t.Errorf("while Entra is away: exit code %d after %d token requests and %d writes, want 1, a few and 0", code, asked, len(writes))
	}
	for name, s := range held {
		if !sound(i)(&s) || s.Annotations[secret.TokenHash] != hash {
			t.Fatalf("%s lost its token: %v", name, s.Annotations)
		}
	}
	t.Logf("away: every Secret keeps its token, after %d token requests", asked)
}

// overlap gives how many requests were under way at the same time at the most, and when the first began and the last ended.
func overlap(requests []cluster.Request) (most int, first, last time.Time) {
	for _, r := range requests {
		if first.IsZero() || r.Received.Before(first) {
			first = r.Received
		}
		if r.Answered.After(last) {
			last = r.Answered
		}
		beside := 0
		for _, other := range requests {
			if !other.Received.After(r.Received) && other.Answered.After(r.Received) {
				beside++
			}
		}
		most = max(most, beside)
	}
	return most, first, last
}
