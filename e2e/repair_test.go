package e2e

// What others do to the Secret while a source reads it, and URLs with which no Secret helps.

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/refresh"
)

// ownCA has the product write the CA of Azure DevOps beside the token: a Secret that was deleted then comes back with all that its source
// needs.
func ownCA(l *loop, spec *installation.Spec) {
	spec.Edit = func(config string) string {
		return strings.Replace(config, "create: true",
			fmt.Sprintf(`create: true, format: template, template: {bearerToken: "{{ .Token }}", ca.crt: %q}`, l.sources.devops.CA()), 1)
	}
}

// TestDamagedSecret: a token that was deleted or overwritten by hand is back before its source notices; a source that did notice is Ready
// again as soon as it is back. Nothing is minted.
func TestDamagedSecret(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(*testing.T, *loop){
		"deleted": func(t *testing.T, l *loop) {
			t.Helper()
			if err := l.Client.CoreV1().Secrets(l.Namespace).Delete(t.Context(), credential, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		},
		"overwritten": func(t *testing.T, l *loop) {
			t.Helper()
			l.put(t, map[string]string{"bearerToken": "theirs"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t), steadfast, ownCA)
			l.start(t, "")
			l.sources.notify(t, l.events)
			held := awaitSecret(t, l.Installation, credential, sound(l.Installation))
			l.read(t, "source")
			minted := l.minted()
			back := func(before *corev1.Secret) *corev1.Secret {
				return awaitSecret(t, l.Installation, credential, func(s *corev1.Secret) bool {
					return sound(l.Installation)(s) && s.ResourceVersion != before.ResourceVersion
				})
			}

			began := time.Now()
			damage(t, l)
			repaired := back(held)
			t.Logf("the Secret is back %s after it was %s", time.Since(began).Round(time.Millisecond), name)
			asked := l.sources.ask(t, "source")
			l.sources.await(t, "source", func(o *unstructured.Unstructured) bool { return isReady(o) && flux.Handled(o) == asked })

			// The leader looks away until the source has failed, and the event about it was taken.
			if err := l.leader.Pause(); err != nil {
				t.Fatal(err)
			}
			damage(t, l)
			asked = l.sources.ask(t, "source")
			l.sources.await(t, "source", isFailed)
			event := l.answered(t, "202")
			if event.Attributes["event.verdict"] != "auth-failure" {
				t.Errorf("the event was taken for %v", event.Attributes)
			}
			if err := l.leader.Resume(); err != nil {
				t.Fatal(err)
			}
			began = time.Now()
			again := back(repaired)
			t.Logf("the Secret is back %s after the leader looked", time.Since(began).Round(time.Millisecond))
			l.sources.await(t, "source", func(o *unstructured.Unstructured) bool { return isReady(o) && flux.Handled(o) != asked })
			t.Logf("the source that failed is Ready %s after the leader looked", time.Since(began).Round(time.Millisecond))

			if n := l.minted() - minted; n != 0 {
				t.Errorf("%d tokens were minted", n)
			}
			for _, s := range []*corev1.Secret{repaired, again} {
				if string(s.Data["bearerToken"]) != string(held.Data["bearerToken"]) {
					t.Error("another token came back than the one that was held")
				}
			}
		})
	}
}

// TestContention: somebody who overwrites the Secret every second waits longer each time for it to be put right, and is named in an Event.
// Nothing is minted for it, whatever the source says meanwhile.
func TestContention(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")
	minted := l.minted()
	from, err := l.Cluster.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// repairs are server-side applies; requests and their outcomes are merge patches.
	repairs := func() []cluster.Request {
		to, err := l.Cluster.Audit.Mark(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return l.Cluster.Audit.Between(from, to, func(r cluster.Request) bool {
			return r.User == "system:serviceaccount:"+l.Namespace+":"+installation.Account && r.Resource == "secrets" && strings.Contains(r.URI, "force=true")
		})
	}

	// As it stands in Git most often.
	theirs := applycorev1.Secret(credential, l.Namespace).WithStringData(map[string]string{"bearerToken": "theirs"})
	second := time.NewTicker(time.Second)
	defer second.Stop()
	overwritten, end := 0, patient(t)
	for len(repairs()) < 4 {
		_, err := l.Client.CoreV1().Secrets(l.Namespace).Apply(end, theirs, metav1.ApplyOptions{FieldManager: "kustomize-controller", Force: true})
		if err != nil {
			t.Fatal(err)
		}
		overwritten++
		l.sources.ask(t, "source") // which tells of what it meets
		select {
		case <-second.C:
		case <-end.Done():
			t.Fatal("it was not repaired four times")
		}
	}
	if told := l.told(t, "Contended"); !strings.Contains(told.Message, "kustomize-controller") || told.Type != corev1.EventTypeWarning {
		t.Errorf("%s Event %q, want that it names kustomize-controller", told.Type, told.Message)
	}
	began := time.Now()
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	t.Logf("sound %s after it was overwritten last, the %d. time; %d events came", time.Since(began).Round(time.Millisecond), overwritten, len(l.spans.Spans(isRequest)))
	l.sources.await(t, "source", isReady)

	all := repairs()
	for n := 1; n < len(all); n++ {
		if pause, want := all[n].Received.Sub(all[n-1].Received), refresh.RepairDelay(n); pause < want {
			t.Errorf("repair %d came %s after the one before, want at least %s", n+1, pause, want)
		}
	}
	if n := l.minted() - minted; n != 0 {
		t.Errorf("%d tokens were minted", n)
	}
}

// TestCloneButton: the URL that Azure DevOps' clone button gives, with a user, never works beside a bearer token. Whoever reads the log
// learns what to do; the Secret is left alone.
func TestCloneButton(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	before := awaitSecret(t, l.Installation, credential, sound(l.Installation))
	minted := l.minted()
	repository := l.sources.repository(t, "source")
	repository.URL = strings.Replace(repository.URL, "https://", "https://org@", 1)
	l.sources.read(t, "source", repository)

	event := l.answered(t, "202")
	for attribute, want := range map[string]string{"event.verdict": "unrelated", "event.rule": "url-user", "event.outcome": "ignored"} {
		if got := event.Attributes[attribute]; got != want {
			t.Errorf("%s is %s, want %s", attribute, got, want)
		}
	}
	warned, err := l.leader.Output.Wait(patient(t), func(r process.Record) bool {
		message, _ := r["msg"].(string)
		return r["level"] == "WARN" && strings.Contains(message, "remove the user (org@) from spec.url")
	})
	if err != nil {
		t.Fatal(err)
	}
	if warned["name"] != "source" || warned["kind"] != "GitRepository" {
		t.Errorf("the warning is about %v", warned)
	}
	after := awaitSecret(t, l.Installation, credential, func(s *corev1.Secret) bool { return s != nil })
	if after.ResourceVersion != before.ResourceVersion {
		t.Errorf("the Secret was changed: %v", after.Annotations)
	}
	if n := l.minted() - minted; n != 0 {
		t.Errorf("%d tokens were minted", n)
	}
	if requests := l.sources.devops.Requests(0); len(requests) > 0 {
		t.Errorf("Azure DevOps was asked: %v", requests)
	}
}
