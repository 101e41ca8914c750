package secret_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"flux-token-refresher/refresh/secret"
)

func (a *api) recorder(t *testing.T, log io.Writer) *secret.Recorder {
	t.Helper()
	client, err := typedcorev1.NewForConfigAndClient(&rest.Config{Host: "https://api.example.com", QPS: -1}, &http.Client{Transport: a})
	if err != nil {
		t.Fatal(err)
	}
	return secret.NewRecorder(client, "replica-1", slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

// Whatever the API server does, Event returns at once, and Run soon after its context ends.
func TestRecorderDoesNotBlock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var a api
		a.set(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		recorder := a.recorder(t, io.Discard)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- recorder.Run(ctx) }()

		began := time.Now()
		for range 1000 {
			recorder.Event(target.Name, "uid", true, "RefreshFailed", "a note")
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("Event blocked for %s", took)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("Run took %s to end", took)
		}
	})
}

// An Event that cannot be written is a word at debug, no more.
func TestRecorderRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var a api
		a.set(func(*http.Request) (*http.Response, error) {
			return answer(http.StatusForbidden, status(http.StatusForbidden, metav1.StatusReasonForbidden))
		})
		var log bytes.Buffer
		recorder := a.recorder(t, &log)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- recorder.Run(ctx) }()
		recorder.Event(target.Name, "uid", false, "Refreshed", "a note")
		synctest.Wait()
		cancel()
		<-done
		if a.count() != 1 || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "level=DEBUG") || strings.Contains(log.String(), "whatever-a-server-says") {
			t.Errorf("%d requests, want one; logged:\n%s", a.count(), log.String())
		}
	})
}
