package main

// What stands in the Secret.

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// wrote tells what is wrong with a write of the product, and with the number of requests that Entra has got by then.
func (d *demo) wrote(s *corev1.Secret, reason refresh.Reason, minted int) error {
	if got := s.Annotations[secret.Reason]; got != string(reason) {
		return fmt.Errorf("the token was written for %s, want %s", got, reason)
	}
	return d.stillAt(minted)
}

func (d *demo) stillAt(minted int) error {
	if got := d.installed.Entra.Requests(); got != minted {
		return fmt.Errorf("by now Entra has got %d token requests, want %d", got, minted)
	}
	return nil
}

func (d *demo) secrets() typedcorev1.SecretInterface {
	return d.installed.Client.CoreV1().Secrets(namespace)
}

// good tells whether a Secret holds a token that Entra takes now, with the annotations that are about it.
func (d *demo) good(s *corev1.Secret) bool {
	if s == nil {
		return false
	}
	token := string(s.Data["bearerToken"])
	_, err := d.installed.Entra.Validate(token, azuretest.AzureDevOps)
	return err == nil && hash(s) == refresh.Hash(token)
}

// other tells of a good token that is another one.
func (d *demo) other(than *corev1.Secret) func(*corev1.Secret) bool {
	return func(s *corev1.Secret) bool { return d.good(s) && hash(s) != hash(than) }
}

func hash(s *corev1.Secret) string { return s.Annotations[secret.TokenHash] }

func expiry(s *corev1.Secret) time.Time { return moment(s, secret.ExpiresAt) }

// moment reads an annotation; what is no time is zero, which nothing that is awaited here agrees with.
func moment(s *corev1.Secret, annotation string) time.Time {
	t, _ := time.Parse(time.RFC3339, s.Annotations[annotation])
	return t
}

// left says how much time is left, in whole seconds, as the annotations are.
func left(until, from time.Time) string { return fmt.Sprintf("%.0f s", until.Sub(from).Seconds()) }
