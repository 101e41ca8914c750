package e2e

// What Flux does on its own, which the product builds on.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/refresh"
)

// TestFluxAndAzureDevOps: what source-controller makes of a good token, of each way in which Azure DevOps refuses a bad one, and of a
// new token beside a request to look again.
func TestFluxAndAzureDevOps(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		refusal devops.Answer
		tail    string // of the message
	}{
		"302 to the sign-in page": {devops.SignIn(), `http redirect: target "/_signin" does not end with /info/refs`},
		"203 with HTML":           {devops.SignInPage(http.StatusNonAuthoritativeInfo), "invalid pkt-len found"},
		"200 with HTML":           {devops.SignInPage(http.StatusOK), "invalid pkt-len found"},
		"401":                     {devops.Unauthorized(), "authentication required: <!DOCTYPE html>"},
		"403":                     {devops.Forbidden(), "authorization failed: TF401027: "},
		"404":                     {devops.NotFound(), "repository not found: TF401019: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSources(t, controlPlane, fluxOf(t), newNamespace(t), newEntra(t))
			s.devops.Change(func(c *devops.Config) { c.Refusal = test.refusal })
			repository := s.repository(t, "repo")
			head, err := repository.Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			token := s.write(t)
			s.read(t, "source", repository)
			s.await(t, "source", func(o *unstructured.Unstructured) bool { return isReady(o) && flux.Revision(o) == "main@sha1:"+head })

			s.devops.Revoke(token)
			s.ask(t, "source")
			s.read(t, "new", repository)
			for name, doing := range map[string]string{
				"source": "unable to list remote for", // it has an artifact
				"new":    "unable to clone",
			} {
				failed := flux.Ready(s.await(t, name, isFailed))
				want := fmt.Sprintf("failed to checkout and determine revision: %s '%s': %s", doing, repository.URL, test.tail)
				if !strings.HasPrefix(failed.Message, want) || failed.Reason != "GitOperationFailed" {
					t.Errorf("%s: %.500q, want %q", failed.Reason, failed.Message, want)
				}
				t.Logf("%s, %d bytes: %.250q", failed.Reason, len(failed.Message), failed.Message)
			}

			s.write(t)
			for _, name := range []string{"source", "new"} {
				began := time.Now()
				asked := s.ask(t, name)
				s.await(t, name, func(o *unstructured.Unstructured) bool { return isReady(o) && flux.Handled(o) == asked })
				t.Logf("%s is Ready %s after the request", name, time.Since(began).Round(time.Millisecond))
			}
		})
	}
}

// TestFluxAndTheCloneButton: the URL that Azure DevOps shows people, with the organization as its user, never works beside a bearer token,
// whose fault it is not.
func TestFluxAndTheCloneButton(t *testing.T) {
	t.Parallel()
	s := newSources(t, controlPlane, fluxOf(t), newNamespace(t), newEntra(t))
	repository := s.repository(t, "repo")
	repository.URL = strings.Replace(repository.URL, "https://", "https://org@", 1)
	s.write(t)
	s.read(t, "source", repository)
	failed := flux.Ready(s.await(t, "source", isFailed))
	const want = "basic auth and bearer token cannot be set at the same time"
	if !strings.Contains(failed.Message, want) {
		t.Errorf("%s: %q, want %q", failed.Reason, failed.Message, want)
	}
	t.Logf("%s: %q", failed.Reason, failed.Message)
	if requests := s.devops.Requests(0); len(requests) > 0 {
		t.Errorf("Azure DevOps was asked: %v", requests)
	}
}

// TestFluxNotifies: a failed authentication reaches a webhook, signed, and a message of Azure DevOps of whatever length with it.
func TestFluxNotifies(t *testing.T) {
	t.Parallel()
	s := newSources(t, controlPlane, fluxOf(t), newNamespace(t), newEntra(t))
	hook := s.webhook(t)
	repository := s.repository(t, "fleet")
	token := s.write(t)
	s.read(t, "source", repository)
	s.await(t, "source", isReady)
	s.devops.Revoke(token)
	from := len(s.devops.Requests(0))
	s.ask(t, "source")
	refused, err := s.devops.Wait(patient(t), from, 1, func(r devops.Request) bool { return r.Refused != nil })
	if err != nil {
		t.Fatal(err)
	}
	if refused[0].TokenHash != refresh.Hash(token) || refused[0].Scheme != "Bearer" {
		t.Errorf("refused %v, want the bearer token %s", refused[0], refresh.Hash(token))
	}

	got := hook.next(t)
	t.Logf("the event came %s after the refusal, %d bytes", got.at.Sub(refused[0].Answered).Round(time.Millisecond), len(got.body))
	if !got.signed {
		t.Errorf("X-Signature %q is not that of the body", got.header.Get("X-Signature"))
	}
	if component := got.header.Get("Gotk-Component"); component != "source-controller" {
		t.Errorf("Gotk-Component is %q", component)
	}
	var event struct {
		InvolvedObject corev1.ObjectReference `json:"involvedObject"`
		Severity       string                 `json:"severity"`
		Reason         string                 `json:"reason"`
		Message        string                 `json:"message"`
		Timestamp      metav1.Time            `json:"timestamp"`
	}
	if err := json.Unmarshal(got.body, &event); err != nil {
		t.Fatal(err)
	}
	if o := event.InvolvedObject; o.Kind != "GitRepository" || o.Namespace != s.namespace || o.Name != "source" {
		t.Errorf("the event is about %v", o)
	}
	if event.Severity != "error" || event.Reason != "GitOperationFailed" || event.Timestamp.IsZero() ||
		!strings.Contains(event.Message, "authentication required: ") {
		t.Errorf("got severity %s, reason %s, time %s, message %.200q", event.Severity, event.Reason, event.Timestamp, event.Message)
	}
	if bytes.Contains(got.body, []byte(token)) {
		t.Error("the event holds the token")
	}
}

// TestNotificationControllerDown: source-controller tries for 15 seconds to send an event, before it says in the source's status what failed. It
// sends the next failure to a notification-controller that came back.
func TestNotificationControllerDown(t *testing.T) {
	t.Parallel()
	c, f := newFlux(t)
	s := newSources(t, c, f, metav1.NamespaceDefault, newEntra(t))
	hook := s.webhook(t)
	token := s.write(t)
	s.read(t, "source", s.repository(t, "repo"))
	s.await(t, "source", isReady)

	if err := f.Notification.Stop(patient(t)); err != nil {
		t.Fatal(err)
	}
	s.devops.Revoke(token)
	from := len(s.devops.Requests(0))
	s.ask(t, "source")
	refused, err := s.devops.Wait(patient(t), from, 1, func(r devops.Request) bool { return r.Refused != nil })
	if err != nil {
		t.Fatal(err)
	}
	s.await(t, "source", isFailed)
	t.Logf("Ready is False %s after the refusal", time.Since(refused[0].Answered).Round(time.Millisecond))

	if err := f.Notification.Start(patient(t)); err != nil {
		t.Fatal(err)
	}
	s.ask(t, "source")
	hook.next(t)
}
