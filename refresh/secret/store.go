// Package secret keeps tokens in Kubernetes Secrets: it is refresh.Store and refresh.Recorder on client-go.
package secret

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
)

// Store is refresh.Store on a Kubernetes API server. It keeps no token: what a watch or an answer brings is turned
// into a refresh.Observed and forgotten.
type Store struct {
	client typedcorev1.CoreV1Interface
	log    *slog.Logger

	mu      sync.Mutex
	watches map[refresh.Name]*watch
}

// New gives a Store. The rest.Config behind client must have QPS -1, because client-go's own limit of 5 requests a
// second would delay a Secret behind the others, and no Timeout, which would end watches.
func New(client typedcorev1.CoreV1Interface, log *slog.Logger) *Store {
	return &Store{client: client, log: log, watches: map[refresh.Name]*watch{}}
}

// Watch implements refresh.Store, with one Watch per Secret at a time. observe must not call the Store. A watch that
// RBAC refuses is said once, with the remedy, and tried again every few seconds.
func (s *Store) Watch(ctx context.Context, target refresh.Target, observe func(refresh.Observed)) error {
	w := &watch{
		target:  target,
		observe: observe,
		secrets: s.client.Secrets(target.Name.Namespace),
		log:     s.log.With("target", target.Name.String()),
	}
	s.mu.Lock()
	if s.watches[target.Name] != nil {
		s.mu.Unlock()
		return &refresh.Error{Class: refresh.Misconfigured, Text: "the Secret is watched already"}
	}
	s.watches[target.Name] = w
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watches, target.Name)
		s.mu.Unlock()
		w.end()
	}()
	w.run(ctx)
	return ctx.Err()
}

// Apply implements refresh.Store.
func (s *Store) Apply(ctx context.Context, target refresh.Target, observed refresh.Observed, token refresh.Token, record refresh.Record) error {
	desired, err := Desired(target, observed, token, record)
	if err != nil {
		return &refresh.Error{Class: refresh.Misconfigured, Text: err.Error()}
	}
	err = s.patch(ctx, target.Name, types.ApplyYAMLPatchType, desired, metav1.PatchOptions{FieldManager: Actor, Force: new(true)})
	if err != nil {
		return failure(ctx, "write", err)
	}
	return nil
}

// Settle implements refresh.Store. The resourceVersion is fence enough: it is unique among all Secrets that ever had
// this name, and a merge patch creates nothing (measured).
func (s *Store) Settle(ctx context.Context, target refresh.Target, observed refresh.Observed, handled refresh.Handled, refreshAt time.Time) error {
	change := map[string]any{"metadata": map[string]any{
		"resourceVersion": observed.Version,
		"annotations":     Settled(handled, refreshAt),
	}}
	err := s.patch(ctx, target.Name, types.MergePatchType, change, metav1.PatchOptions{FieldManager: Actor})
	if apierrors.IsNotFound(err) {
		return refresh.ErrConflict
	}
	if err != nil {
		return failure(ctx, "annotate", err)
	}
	return nil
}

// Read implements refresh.Store. It is the one read of a target: what the watch tells is kept without the token.
func (s *Store) Read(ctx context.Context, target refresh.Target, observed refresh.Observed) (refresh.Token, error) {
	live, err := get(ctx, s.client, target.Name)
	if err != nil {
		return refresh.Token{}, err
	}
	if live == nil || live.ResourceVersion != observed.Version {
		return refresh.Token{}, refresh.ErrConflict
	}
	value := target.Format.Value(live.Data)
	if value == "" {
		return refresh.Token{}, nil
	}
	return refresh.NewToken(value, observed.RefreshedAt, observed.ExpiresAt, time.Time{}), nil
}

// get reads a Secret; nil when it does not exist.
func get(ctx context.Context, client typedcorev1.SecretsGetter, name refresh.Name) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
	defer cancel()
	live, err := client.Secrets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, failure(ctx, "read", err)
	}
	return live, nil
}

// patch changes a Secret and tells its watch what the API server answered. It tries once: when to try again is for
// the caller to decide, who knows how long the token in the Secret still lives.
func (s *Store) patch(ctx context.Context, name refresh.Name, kind types.PatchType, change any, options metav1.PatchOptions) error {
	ctx, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
	defer cancel()
	body, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("encode the change: %w", err)
	}
	answer := &corev1.Secret{}
	err = s.client.RESTClient().Patch(kind).
		Namespace(name.Namespace).Resource("secrets").Name(name.Name).
		VersionedParams(&options, metav1.ParameterCodec).
		Body(body).MaxRetries(0).
		Do(ctx).Into(answer)
	if err != nil {
		return err
	}
	s.mu.Lock()
	w := s.watches[name]
	s.mu.Unlock()
	if w != nil {
		w.present(answer)
	}
	return nil
}
