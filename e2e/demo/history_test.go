package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHistory(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	source := watch.NewFake()
	var selector string
	h, err := follow[*corev1.Secret](ctx, "one", func(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
		selector = options.FieldSelector
		return source, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if selector != "metadata.name=one" {
		t.Errorf("watched %s", selector)
	}
	version := func(v string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{ResourceVersion: v}}
	}
	is := func(v string) func(*corev1.Secret) bool {
		return func(s *corev1.Secret) bool { return s != nil && s.ResourceVersion == v }
	}
	source.Add(version("1"))
	source.Modify(version("2"))
	source.Delete(version("3"))
	if _, err := h.await(ctx, 0, func(s *corev1.Secret) bool { return s == nil }); err != nil {
		t.Error(err)
	}
	if s := h.last(is("1")); s.object == nil || s.seen.IsZero() {
		t.Errorf("the first state is gone: %v", h.all())
	}

	// What is past is not awaited again.
	done, stop := context.WithCancelCause(ctx)
	stop(errors.New("enough"))
	if _, err := h.await(done, 2, is("2")); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("got %v, want the context's cause", err)
	}

	source.Error(&metav1.Status{Status: metav1.StatusFailure, Message: "expired"})
	if _, err := h.await(ctx, 0, is("9")); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v, want why the watch ended", err)
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
}
