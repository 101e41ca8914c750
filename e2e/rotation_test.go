package e2e

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/refresh/azure/azuretest"
)

// TestSteadyRotation counts, in the API server's audit log and at Entra, what keeping tokens fresh costs while nothing else happens: one write
// per Secret and rotation, no read at all, and one token request per identity and rotation.
func TestSteadyRotation(t *testing.T) {
	t.Parallel()
	const secrets, rotations = 50, 3
	names := make([]string, secrets)
	for n := range names {
		names[n] = fmt.Sprintf("target-%02d", n)
	}
	i := install(t, func(s *installation.Spec) {
		s.Targets = names
		s.Entra = azuretest.Config{MinLifetime: 12 * time.Second, MaxLifetime: 12 * time.Second}
	})
	startReplica(t, i, "refresher-0", "")
	startReplica(t, i, "refresher-1", "")

	// rotated waits until every Secret holds the same token, another one than before, and gives it.
	rotated := func(before string) string {
		token := func(s *corev1.Secret) string { return string(s.Data["bearerToken"]) }
		first := awaitSecret(t, i, names[0], func(s *corev1.Secret) bool { return s != nil && token(s) != before })
		for _, name := range names[1:] {
			awaitSecret(t, i, name, func(s *corev1.Secret) bool { return s != nil && token(s) == token(first) })
		}
		return token(first)
	}
	account := "system:serviceaccount:" + i.Namespace + ":" + installation.Account
	mark := func() cluster.Position {
		position, err := controlPlane.Audit.Mark(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return position
	}

	token := rotated("")
	from, asked := mark(), i.Entra.Requests()
	for range rotations {
		token = rotated(token)
	}
	to := mark()

	if got := i.Entra.Requests() - asked; got != rotations {
		t.Errorf("%d token requests for %d rotations of one identity", got, rotations)
	}
	cost := map[string]int{}
	for _, request := range controlPlane.Audit.Between(from, to, func(r cluster.Request) bool { return r.User == account }) {
		cost[request.Verb+" "+request.Resource]++
		if request.Code >= 300 {
			t.Errorf("a request in vain: %v", request)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(cost)) {
		t.Logf("%d × %s for %d rotations of %d Secrets", cost[what], what, rotations, secrets)
		switch what {
		case "patch secrets":
			if cost[what] != rotations*secrets {
				t.Errorf("%d writes, want one per Secret and rotation: %d", cost[what], rotations*secrets)
			}
		case "update leases":
		default:
			t.Errorf("%s is no part of a rotation", what)
		}
	}
}
