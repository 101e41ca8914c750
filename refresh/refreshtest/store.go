// Package refreshtest has the ports of package refresh in memory, for simulations, and the conformance tests that
// the ones in memory share with the real ones. Nothing here starts a goroutine or waits for a real clock, so it all
// runs inside testing/synctest.
package refreshtest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

// Store is a refresh.Store in memory: one API server's Secrets, with its own server-side apply, field managers,
// resourceVersions and uids, and without its network. What a Secret says and what is written to it are
// secret.Observe and secret.Desired, as in the real Store. Create one with NewStore.
type Store struct {
	mu       sync.Mutex // held while observe is called, which therefore must not call back
	version  int
	secrets  map[refresh.Name]*corev1.Secret
	watchers map[refresh.Name]*watcher
	writes   []Write
	failure  func(refresh.Name) error
}

type watcher struct {
	target  refresh.Target
	observe func(refresh.Observed)
}

// Write is one change of a Secret, by the Store or by somebody else.
type Write struct {
	At   time.Time
	Name refresh.Name
	// Manager is the field manager; "" for a deletion.
	Manager string
	// Secret is what the write left; nil after a deletion.
	Secret *corev1.Secret
}

// NewStore gives a Store without Secrets.
func NewStore() *Store {
	return &Store{
		version:  1, // which fences a creation, so that no Secret has it
		secrets:  map[refresh.Name]*corev1.Secret{},
		watchers: map[refresh.Name]*watcher{},
	}
}

// Watch implements refresh.Store. One Watch per Secret at a time.
func (s *Store) Watch(ctx context.Context, target refresh.Target, observe func(refresh.Observed)) error {
	s.mu.Lock()
	if s.watchers[target.Name] != nil {
		s.mu.Unlock()
		return &refresh.Error{Class: refresh.Misconfigured, Text: "the Secret is watched already"}
	}
	s.watchers[target.Name] = &watcher{target: target, observe: observe}
	s.tell(target.Name)
	s.mu.Unlock()

	<-ctx.Done()

	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, target.Name)
	return ctx.Err()
}

// Apply implements refresh.Store.
func (s *Store) Apply(ctx context.Context, target refresh.Target, observed refresh.Observed, token refresh.Token, record refresh.Record) error {
	desired, err := secret.Desired(target, observed, token, record)
	if err != nil {
		return &refresh.Error{Class: refresh.Misconfigured, Text: err.Error()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fails(ctx, target.Name); err != nil {
		return err
	}
	live := s.secrets[target.Name]
	if live == nil && desired.UID != nil ||
		live != nil && (desired.UID == nil || *desired.UID != live.UID || *desired.ResourceVersion != live.ResourceVersion) {
		return refresh.ErrConflict
	}
	if live == nil {
		live = blank(target.Name)
	}
	return s.put(target.Name, secret.Actor, apply(live, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Labels: desired.Labels, Annotations: desired.Annotations},
		Data:       desired.Data,
	}, secret.Actor))
}

// Settle implements refresh.Store.
func (s *Store) Settle(ctx context.Context, target refresh.Target, observed refresh.Observed, handled refresh.Handled, refreshAt time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fails(ctx, target.Name); err != nil {
		return err
	}
	live := s.secrets[target.Name]
	if live == nil || observed.Version != live.ResourceVersion {
		return refresh.ErrConflict
	}
	return s.edit(target.Name, secret.Actor, func(live *corev1.Secret) {
		for key, value := range secret.Settled(handled, refreshAt) {
			metav1.SetMetaDataAnnotation(&live.ObjectMeta, key, value)
		}
	})
}

// Read implements refresh.Store.
func (s *Store) Read(_ context.Context, target refresh.Target, observed refresh.Observed) (refresh.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := s.secrets[target.Name]
	if live == nil || live.ResourceVersion != observed.Version {
		return refresh.Token{}, refresh.ErrConflict
	}
	value := target.Format.Value(live.Data)
	if value == "" {
		return refresh.Token{}, nil
	}
	return refresh.NewToken(value, observed.RefreshedAt, observed.ExpiresAt, time.Time{}), nil
}

// Create lets somebody else create a Secret. What is left out gets the API server's defaults.
func (s *Store) Create(_ context.Context, manager string, object *corev1.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := refresh.Name{Namespace: object.Namespace, Name: object.Name}
	if s.secrets[name] != nil {
		return fmt.Errorf("create %s: it exists", name)
	}
	created := object.DeepCopy()
	created.ManagedFields = nil
	update(blank(name), created, manager)
	return s.put(name, manager, created)
}

// Edit lets somebody else change a Secret.
func (s *Store) Edit(_ context.Context, manager string, name refresh.Name, change func(*corev1.Secret)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secrets[name] == nil {
		return fmt.Errorf("edit %s: it does not exist", name)
	}
	return s.edit(name, manager, change)
}

// Delete lets somebody else delete a Secret.
func (s *Store) Delete(_ context.Context, name refresh.Name) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secrets[name] == nil {
		return fmt.Errorf("delete %s: it does not exist", name)
	}
	delete(s.secrets, name)
	s.version++
	s.writes = append(s.writes, Write{At: time.Now(), Name: name})
	s.tell(name)
	return nil
}

// Get gives a copy of a Secret; nil when it does not exist.
func (s *Store) Get(_ context.Context, name refresh.Name) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.secrets[name].DeepCopy(), nil
}

// Writes gives all changes of Secrets so far, in their order.
func (s *Store) Writes() []Write {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.writes)
}

// Fail makes each Apply and Settle end with what failure returns for its Secret, unless that is nil; a nil failure
// ends the outage. Its calls never overlap.
func (s *Store) Fail(failure func(refresh.Name) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = failure
}

// Unavailable is what a Store answers while the API server is away.
func Unavailable() error {
	return &refresh.Error{Class: refresh.Unavailable, Text: "the Kubernetes API does not answer"}
}

// Times fails n times with err, then no longer.
func Times(n int, err error) func(refresh.Name) error {
	return func(refresh.Name) error {
		if n == 0 {
			return nil
		}
		n--
		return err
	}
}

func (s *Store) fails(ctx context.Context, name refresh.Name) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.failure == nil {
		return nil
	}
	return s.failure(name)
}

func (s *Store) edit(name refresh.Name, manager string, change func(*corev1.Secret)) error {
	changed := s.secrets[name].DeepCopy()
	change(changed)
	update(s.secrets[name], changed, manager)
	return s.put(name, manager, changed)
}

// put stores what a write left, unless it changed nothing, and tells the watcher.
func (s *Store) put(name refresh.Name, manager string, after *corev1.Secret) error {
	before := s.secrets[name]
	if before != nil {
		if ptr.Deref(before.Immutable, false) && !equality.Semantic.DeepEqual(before.Data, after.Data) || before.Type != after.Type {
			return &refresh.Error{Class: refresh.Misconfigured, Code: "Invalid", Text: "the Secret is immutable, or its type would change"}
		}
		unchanged := after.DeepCopy()
		unchanged.ManagedFields = before.ManagedFields
		if equality.Semantic.DeepEqual(before, unchanged) {
			return nil
		}
	}
	s.version++
	after.ResourceVersion = strconv.Itoa(s.version)
	if before == nil {
		after.UID = types.UID("uid-" + after.ResourceVersion)
		after.Type = cmp.Or(after.Type, corev1.SecretTypeOpaque)
	}
	s.secrets[name] = after
	s.writes = append(s.writes, Write{At: time.Now(), Name: name, Manager: manager, Secret: after.DeepCopy()})
	s.tell(name)
	return nil
}

// tell lets the watcher of a Secret know what is there now.
func (s *Store) tell(name refresh.Name) {
	w := s.watchers[name]
	if w == nil {
		return
	}
	if live := s.secrets[name]; live != nil {
		w.observe(secret.Observe(w.target, live))
	} else {
		w.observe(refresh.Observed{Version: strconv.Itoa(s.version)})
	}
}

// blank is what a Secret that does not exist is merged into.
func blank(name refresh.Name) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
}
