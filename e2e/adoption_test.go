package e2e

// What "flux bootstrap" leaves in the Secret, taken over while Flux reads it: a developer's bearer token, and what stays of it.

import (
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// TestDevelopersToken gives way to ours. In another format it stays, and Flux uses it, until somebody runs the command that the Event has.
func TestDevelopersToken(t *testing.T) {
	t.Parallel()
	for name, format := range map[string]shape{"bearerToken": bearer, "basicAuth": basic} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t), func(_ *loop, spec *installation.Spec) {
				spec.Edit = func(config string) string {
					return strings.Replace(config, "create: true", "create: true, "+format.fields, 1)
				}
			})
			l.Entra.Change(func(c *azuretest.Config) {
				c.Applications = append(c.Applications, azuretest.Application{TenantID: "tenant", ClientID: sourceClient})
			})
			theirs, err := l.Entra.Issue(sourceClient, azuretest.AzureDevOps)
			if err != nil {
				t.Fatal(err)
			}
			l.put(t, map[string]string{"bearerToken": theirs, "ca.crt": string(l.sources.devops.CA())})
			l.read(t, "source")
			startReplica(t, l.Installation, "refresher-0", "")
			adopted := awaitSecret(t, l.Installation, credential, func(s *corev1.Secret) bool {
				return s != nil && s.Annotations[secret.Reason] == string(refresh.Adopted)
			})
			ours := string(adopted.Data[format.token])
			if issued, err := l.Entra.Validate(ours, azuretest.AzureDevOps); err != nil || issued.ClientID != l.ClientID() {
				t.Fatalf("%s is no token of ours: %v", format.token, err)
			}
			told := l.told(t, string(refresh.Adopted))
			_, command, left := strings.Cut(told.Message, ": kubectl ")

			// uses waits until Flux was let in with a token.
			uses := func(scheme, token string) {
				t.Helper()
				from := len(l.sources.devops.Requests(0))
				l.sources.ask(t, "source")
				found, err := l.sources.devops.Wait(patient(t), from, 1, func(devops.Request) bool { return true })
				if err != nil {
					t.Fatal(err)
				}
				if r := found[0]; r.Scheme != scheme || r.TokenHash != refresh.Hash(token) || r.Refused != nil {
					t.Errorf("Flux asks with %v, want the %s token %s", r, scheme, refresh.Hash(token))
				}
			}
			if name == "bearerToken" {
				if left {
					t.Errorf("the Event says that something is left: %s", told.Message)
				}
				uses("Bearer", ours)
			} else {
				if string(adopted.Data["bearerToken"]) != theirs || !strings.Contains(told.Message, "Left beside it: bearerToken, which Flux uses instead of") {
					t.Fatalf("the Event says: %s", told.Message)
				}
				uses("Bearer", theirs)
				newReader(t, l.Cluster, "migration.md").run(t, "kubectl "+command)
				uses("Basic", ours)
			}
			want := append([]string{"ca.crt"}, format.keys...)
			slices.Sort(want)
			last := awaitSecret(t, l.Installation, credential, func(s *corev1.Secret) bool { return s != nil })
			if got := slices.Sorted(maps.Keys(last.Data)); !slices.Equal(got, want) {
				t.Errorf("in the end it has the keys %q, want %q", got, want)
			}
		})
	}
}
