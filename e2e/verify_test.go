package e2e

// What Azure DevOps says of a token decides: before a mint, after it, and before somebody else's credential is replaced.

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/gitremote"
	"flux-token-refresher/refresh/secret"
)

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
			l.expectAlertsSeries(t, "TokenRefresherTokenRejected", `token_refresher_refreshes_total`, `outcome="TokenRejected"`)

			repository.Allow()
			l.sources.ask(t, "source")
			l.sources.await(t, "source", isReady)
		})
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
	if told := l.told(t, string(refresh.Adopted)); !strings.Contains(told.Message, "Left beside it: username, password, which Flux ignores") {
		t.Errorf("the Event says %q, want that it tells what is left", told.Message)
	}
}
