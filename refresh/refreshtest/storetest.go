package refreshtest

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/utils/ptr"

	"flux-token-refresher/refresh"
)

// Hands are somebody else's on the Secrets of a Store. The Store in memory has them itself.
type Hands interface {
	// Create creates a Secret as a field manager.
	Create(ctx context.Context, manager string, object *corev1.Secret) error
	// Edit changes a Secret as a field manager.
	Edit(ctx context.Context, manager string, name refresh.Name, change func(*corev1.Secret)) error
	// Delete deletes a Secret.
	Delete(ctx context.Context, name refresh.Name) error
	// Get reads a Secret; nil when it does not exist.
	Get(ctx context.Context, name refresh.Name) (*corev1.Secret, error)
}

// Env is what StoreTest tests: a Store, somebody else's Hands on the same Secrets, and a namespace without Secrets.
type Env struct {
	Store     refresh.Store
	Hands     Hands
	Namespace string
}

// StoreTest checks that a refresh.Store keeps its contract. newEnv is called once for each clause, in parallel.
func StoreTest(t *testing.T, newEnv func(t *testing.T) Env) {
	for _, clause := range []struct {
		name string
		run  func(*storeTest)
	}{
		{"an absent Secret is told, then created", absentIsCreated},
		{"what nobody gave us survives", foreignContentSurvives},
		{"a key that we drop vanishes", droppedKeyVanishes},
		{"a credential of somebody else is told and replaced", foreignCredential},
		{"somebody who overwrites us is named", overwriterIsNamed},
		{"labels are kept on what we created only", labels},
		{"a request opens, and closes with the token or without", requests},
		{"no write goes to another Secret than the observed one", fences},
		{"a deleted Secret is told and created again", deletedIsCreatedAgain},
		{"what cannot take a token is told", refusals},
		{"observations never go back and never overlap", order},
		{"a Watch that ended tells nothing more", watchEnds},
	} {
		t.Run(clause.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			t.Cleanup(cancel)
			env := newEnv(t)
			clause.run(&storeTest{T: t, Env: env, ctx: ctx, target: refresh.Target{
				Name:       refresh.Name{Namespace: env.Namespace, Name: "target"},
				ConfigHash: refresh.Hash("configuration"),
				Create:     true,
				Labels:     map[string]string{"team": "blue"},
				Format:     refresh.BearerToken(),
			}})
		})
	}
}

// storeTest is one clause under test.
type storeTest struct {
	*testing.T
	Env
	ctx    context.Context
	target refresh.Target

	mu     sync.Mutex
	last   refresh.Observed
	told   chan struct{} // closed and renewed at each observation
	inside bool
}

// watch starts the Watch and waits for its first word. The Watch is over when the test is.
func (s *storeTest) watch() {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	s.told = make(chan struct{})
	first := s.told
	done := make(chan error, 1)
	go func() { done <- s.Store.Watch(ctx, s.target, s.observe) }()
	s.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			s.Errorf("Watch ended with %v, want the context's error", err)
		}
	})
	select {
	case <-first:
	case <-s.ctx.Done():
		s.Fatal("the Watch told nothing")
	}
}

func (s *storeTest) observe(o refresh.Observed) {
	s.mu.Lock()
	if s.inside {
		s.Error("observe is called while it runs")
	}
	s.inside = true
	before := s.last.Version
	s.mu.Unlock()

	if order, err := resourceversion.CompareResourceVersion(o.Version, before); err == nil && order <= 0 {
		s.Errorf("observed version %s after %s", o.Version, before)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside = false
	s.last = o
	close(s.told)
	s.told = make(chan struct{})
}

// now is the last observation.
func (s *storeTest) now() refresh.Observed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// until waits for an observation.
func (s *storeTest) until(what string, is func(refresh.Observed) bool) refresh.Observed {
	s.Helper()
	for {
		s.mu.Lock()
		last, told := s.last, s.told
		s.mu.Unlock()
		if is(last) {
			return last
		}
		select {
		case <-told:
		case <-s.ctx.Done():
			s.Fatalf("never observed: %s; last: %+v", what, last)
		}
	}
}

// mint makes a token that ends in an hour.
func mint(value string) refresh.Token {
	now := time.Now().Truncate(time.Second)
	return refresh.NewToken(value, now, now.Add(time.Hour), time.Time{})
}

// record is the plain Record of a token that was written now.
func record(reason refresh.Reason) refresh.Record {
	now := time.Now().Truncate(time.Second)
	return refresh.Record{Reason: reason, RefreshAt: now.Add(45 * time.Minute), RefreshedAt: now}
}

// apply writes a token and gives what is observed as soon as that returns.
func (s *storeTest) apply(token refresh.Token, r refresh.Record) refresh.Observed {
	s.Helper()
	if err := s.Store.Apply(s.ctx, s.target, s.now(), token, r); err != nil {
		s.Fatalf("Apply: %v", err)
	}
	return s.now()
}

func (s *storeTest) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *storeTest) get() *corev1.Secret {
	s.Helper()
	object, err := s.Hands.Get(s.ctx, s.target.Name)
	s.must(err)
	return object
}

func (s *storeTest) create(object *corev1.Secret) {
	s.Helper()
	object.Namespace, object.Name = s.target.Name.Namespace, s.target.Name.Name
	s.must(s.Hands.Create(s.ctx, "somebody", object))
}

func (s *storeTest) edit(change func(*corev1.Secret)) {
	s.Helper()
	s.must(s.Hands.Edit(s.ctx, "somebody", s.target.Name, change))
}

func (s *storeTest) annotate(pairs ...string) {
	s.Helper()
	s.edit(func(object *corev1.Secret) {
		for i := 0; i < len(pairs); i += 2 {
			metav1.SetMetaDataAnnotation(&object.ObjectMeta, pairs[i], pairs[i+1])
		}
	})
}

func (s *storeTest) same(what string, got, want any) {
	s.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		s.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func absentIsCreated(s *storeTest) {
	s.watch()
	if o := s.now(); o.Exists {
		s.Fatalf("observed %+v in an empty namespace", o)
	}
	token, r := mint("first"), record(refresh.SecretMissing)
	o := s.apply(token, r)
	object := s.get()
	s.same("data", object.Data, map[string][]byte{"bearerToken": []byte("first")})
	s.same("labels", object.Labels, map[string]string{"team": "blue", "app.kubernetes.io/managed-by": "flux-token-refresher"})
	s.same("type", object.Type, corev1.SecretTypeOpaque)
	content := s.target.Format.ContentHash(object.Data)
	s.same("annotations", object.Annotations, map[string]string{
		"flux-token-refresher/expires-at":   token.Expires.UTC().Format(time.RFC3339),
		"flux-token-refresher/refresh-at":   r.RefreshAt.UTC().Format(time.RFC3339),
		"flux-token-refresher/refreshed-at": r.RefreshedAt.UTC().Format(time.RFC3339),
		"flux-token-refresher/reason":       "SecretMissing",
		"flux-token-refresher/token-hash":   token.Hash,
		"flux-token-refresher/content-hash": content,
		"flux-token-refresher/config-hash":  s.target.ConfigHash,
	})
	s.same("observed when Apply returned", o, refresh.Observed{
		Exists: true, UID: string(object.UID), Version: object.ResourceVersion, Created: true,
		TokenHash: token.Hash, WrittenHash: content, ContentHash: content, ConfigHash: s.target.ConfigHash,
		ExpiresAt: token.Expires.UTC(), RefreshAt: r.RefreshAt.UTC(), RefreshedAt: r.RefreshedAt.UTC(),
	})
}

func foreignContentSurvives(s *storeTest) {
	foreign := map[string][]byte{"ca.crt": {0, 1, 0xfe, 0xff, '\n'}, "known_hosts": []byte("line\r\n\tline ")}
	labels := map[string]string{"kustomize.toolkit.fluxcd.io/name": "flux-system", "app.kubernetes.io/managed-by": "somebody"}
	annotations := map[string]string{"note": "  ü\n\"quoted\" ", "flux-token-refresher/unknown": "kept"}
	s.create(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Labels: maps.Clone(labels), Annotations: maps.Clone(annotations)},
		Data:       maps.Clone(foreign),
	})
	s.watch()
	s.apply(mint("first"), record(refresh.TokenMissing))
	s.apply(mint("second"), record(refresh.RefreshDue))
	object := s.get()
	for key, value := range foreign {
		s.same("key "+key, object.Data[key], value)
	}
	s.same("our key", string(object.Data["bearerToken"]), "second")
	s.same("labels", object.Labels, labels)
	for key, value := range annotations {
		s.same("annotation "+key, object.Annotations[key], value)
	}
}

func droppedKeyVanishes(s *storeTest) {
	bearer := s.target
	s.target.Format = refresh.BasicAuth("git")
	s.watch()
	o := s.apply(mint("first"), record(refresh.SecretMissing))
	s.must(s.Store.Apply(s.ctx, bearer, o, mint("second"), record(refresh.ConfigChanged)))
	s.same("data", s.get().Data, map[string][]byte{"bearerToken": []byte("second")})
	s.same("content hash by the watched format", s.now().ContentHash, "")
}

func foreignCredential(s *storeTest) {
	s.create(&corev1.Secret{Data: map[string][]byte{"bearerToken": []byte("a personal access token")}})
	s.watch()
	if o := s.now(); !o.Foreign || o.OtherManager != "somebody" || o.TokenHash != "" || o.Created || !o.RefreshAt.IsZero() {
		s.Errorf("observed %+v, want somebody's credential", o)
	}
	if o := s.apply(mint("first"), record(refresh.Adopted)); o.Foreign || o.OtherManager != "" || o.Created {
		s.Errorf("observed %+v, want ours on somebody's Secret", o)
	}
	s.same("data", s.get().Data, map[string][]byte{"bearerToken": []byte("first")})
}

func overwriterIsNamed(s *storeTest) {
	s.watch()
	written := s.apply(mint("first"), record(refresh.SecretMissing))
	s.edit(func(object *corev1.Secret) { object.Data["bearerToken"] = []byte("theirs") })
	o := s.until("the overwritten token", func(o refresh.Observed) bool { return o.ContentHash != written.ContentHash })
	if o.OtherManager != "somebody" || o.Foreign || o.TokenHash != written.TokenHash || o.ContentHash == o.WrittenHash {
		s.Errorf("observed %+v, want a token of ours that somebody altered", o)
	}
	s.edit(func(object *corev1.Secret) { object.Data["bearerToken"] = nil })
	o = s.until("the emptied key", func(o refresh.Observed) bool { return o.ContentHash == "" })
	s.same("manager of the emptied key", o.OtherManager, "somebody")
	s.edit(func(object *corev1.Secret) { delete(object.Data, "bearerToken") })
	s.until("the removed key", func(o refresh.Observed) bool { return o.ContentHash == "" && o.OtherManager == "" })
	o = s.apply(mint("first"), record(refresh.TokenMissing))
	s.same("content after the repair", o.ContentHash, written.ContentHash)
}

func labels(s *storeTest) {
	s.watch()
	s.apply(mint("first"), record(refresh.SecretMissing))
	s.edit(func(object *corev1.Secret) { object.Labels["team"], object.Labels["theirs"] = "red", "kept" })
	s.until("the edit", func(o refresh.Observed) bool { return o.Version == s.get().ResourceVersion })
	s.apply(mint("second"), record(refresh.RefreshDue))
	s.same("labels of a Secret that we created", s.get().Labels,
		map[string]string{"team": "blue", "theirs": "kept", "app.kubernetes.io/managed-by": "flux-token-refresher"})

	s.must(s.Hands.Delete(s.ctx, s.target.Name))
	s.create(&corev1.Secret{})
	s.until("somebody's Secret", func(o refresh.Observed) bool { return o.Exists && o.TokenHash == "" })
	s.apply(mint("third"), record(refresh.TokenMissing))
	s.same("labels of somebody's Secret", len(s.get().Labels), 0)
}

func requests(s *storeTest) {
	s.watch()
	first := s.apply(mint("first"), record(refresh.SecretMissing))
	open := func(o refresh.Observed) bool { return o.Request.Open() }

	s.annotate("flux-token-refresher/request", "1")
	o := s.until("a person's request", open)
	s.same("a person's request", o.Request, refresh.Request{ID: refresh.Hash("1")})
	r := record(refresh.RefreshRequested)
	r.Handled = refresh.Handled{Request: o.Request.ID, Outcome: refresh.Refreshed}
	o = s.apply(mint("second"), r)
	s.same("the request after its token", o.Request, refresh.Request{})
	s.same("handled", o.Handled, r.Handled)

	// A token that is written for another reason repeats what was handled, or the request would open again.
	o = s.apply(mint("third"), record(refresh.RefreshDue))
	s.same("handled after the next token", o.Handled, r.Handled)
	s.same("the request after the next token", o.Request, refresh.Request{})

	const traceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	s.annotate("flux-token-refresher/request", "2", "flux-token-refresher/request-context",
		`{"request":"2","about":"`+first.TokenHash+`","verdict":"auth-failure","sender":"flux","source":"/x","traceparent":"`+traceParent+`"}`)
	o = s.until("an event's request", open)
	s.same("an event's request", o.Request, refresh.Request{ID: refresh.Hash("2"), About: first.TokenHash, TraceParent: traceParent})
	handled := refresh.Handled{Request: o.Request.ID, Outcome: refresh.Superseded}
	s.must(s.Store.Settle(s.ctx, s.target, o, handled, time.Time{}))
	settled := s.now()
	s.same("the request when Settle returned", settled.Request, refresh.Request{})
	s.same("handled", settled.Handled, handled)
	s.same("refresh-at", settled.RefreshAt, o.RefreshAt)
	s.same("token", string(s.get().Data["bearerToken"]), "third")

	s.annotate("flux-token-refresher/request", "3")
	o = s.until("a request beside the context of another", open)
	s.same("its context", o.Request, refresh.Request{ID: refresh.Hash("3")})
	handled.Request, handled.Outcome = o.Request.ID, refresh.Unchanged
	later := o.RefreshAt.Add(time.Minute)
	s.must(s.Store.Settle(s.ctx, s.target, o, handled, later))
	s.same("refresh-at", s.now().RefreshAt, later)

	o = s.apply(mint("fourth"), record(refresh.RefreshDue))
	s.same("handled, settled, after the next token", o.Handled, handled)
	s.same("the settled request after the next token", o.Request, refresh.Request{})
}

func fences(s *storeTest) {
	s.watch()
	absent := s.now()
	stale := s.apply(mint("first"), record(refresh.SecretMissing))
	fresh := s.apply(mint("second"), record(refresh.RefreshDue))
	refuses := func(what string, observed refresh.Observed) {
		s.Helper()
		before := s.get()
		if err := s.Store.Apply(s.ctx, s.target, observed, mint("third"), record(refresh.RefreshDue)); !errors.Is(err, refresh.ErrConflict) {
			s.Errorf("Apply to %s: %v, want ErrConflict", what, err)
		}
		if observed.Exists {
			err := s.Store.Settle(s.ctx, s.target, observed, refresh.Handled{Request: "r", Outcome: refresh.Unchanged}, time.Now())
			if !errors.Is(err, refresh.ErrConflict) {
				s.Errorf("Settle on %s: %v, want ErrConflict", what, err)
			}
		}
		s.same("the Secret after writes to "+what, s.get(), before)
	}
	refuses("an older version", stale)
	refuses("an absent Secret that is there", absent)
	s.must(s.Hands.Delete(s.ctx, s.target.Name))
	refuses("a deleted Secret", fresh)
	s.create(&corev1.Secret{Data: map[string][]byte{"bearerToken": []byte("theirs")}})
	refuses("a Secret that was created again", fresh)
}

func deletedIsCreatedAgain(s *storeTest) {
	s.watch()
	first := s.apply(mint("first"), record(refresh.SecretMissing))
	s.must(s.Hands.Delete(s.ctx, s.target.Name))
	o := s.until("the deletion", func(o refresh.Observed) bool { return !o.Exists })
	s.same("a Secret that is gone", o, refresh.Observed{Version: o.Version})
	again := s.apply(mint("first"), record(refresh.SecretMissing))
	if !again.Exists || again.UID == first.UID {
		s.Errorf("observed %+v when Apply returned, want another Secret than %s", again, first.UID)
	}
	// The watch brings the deletion's echo, if at all, before the next change.
	s.annotate("note", "x")
	o = s.until("the change after it", func(o refresh.Observed) bool { return o.Version == s.get().ResourceVersion })
	s.same("uid", o.UID, again.UID)
}

func refusals(s *storeTest) {
	s.create(&corev1.Secret{Data: map[string][]byte{"bearerToken": []byte("theirs")}, Immutable: ptr.To(true)})
	s.watch()
	if s.now().Refused == "" {
		s.Error("an immutable Secret is not refused")
	}
	var e *refresh.Error
	if err := s.Store.Apply(s.ctx, s.target, s.now(), mint("first"), record(refresh.Adopted)); !errors.As(err, &e) || e.Class != refresh.Misconfigured {
		s.Errorf("Apply to an immutable Secret: %v, want a *refresh.Error of class %s", err, refresh.Misconfigured)
	}
	s.must(s.Hands.Delete(s.ctx, s.target.Name))
	s.create(&corev1.Secret{Type: "example.com/theirs"})
	s.until("a type of somebody else's", func(o refresh.Observed) bool { return o.Exists && !o.Foreign && o.Refused != "" })
	s.must(s.Hands.Delete(s.ctx, s.target.Name))
	s.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"flux-token-refresher/suspend": "true"}}})
	s.until("a suspended Secret", func(o refresh.Observed) bool { return o.Suspended && o.Refused == "" })
}

func order(s *storeTest) {
	s.watch()
	s.apply(mint("first"), record(refresh.SecretMissing))
	const writes = 50
	var wg sync.WaitGroup
	wg.Go(func() {
		for range writes {
			s.annotate("note", time.Now().String())
		}
	})
	wg.Go(func() {
		for i := range writes {
			err := s.Store.Apply(s.ctx, s.target, s.now(), mint(string(rune('a'+i))), record(refresh.RefreshDue))
			if err != nil && !errors.Is(err, refresh.ErrConflict) {
				s.Errorf("Apply: %v", err)
			}
		}
	})
	wg.Wait()
	s.until("the last state", func(o refresh.Observed) bool { return o.Version == s.get().ResourceVersion })
}

func watchEnds(s *storeTest) {
	ctx, cancel := context.WithCancel(s.ctx)
	told := make(chan refresh.Observed, 10)
	done := make(chan error)
	go func() { done <- s.Store.Watch(ctx, s.target, func(o refresh.Observed) { told <- o }) }()
	absent := <-told
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		s.Errorf("Watch ended with %v, want the context's error", err)
	}
	s.must(s.Store.Apply(s.ctx, s.target, absent, mint("first"), record(refresh.SecretMissing)))
	s.watch() // the next term of leadership
	if !s.now().Exists {
		s.Error("the next Watch does not begin with what is there")
	}
	select {
	case o := <-told:
		s.Errorf("the Watch that ended told %+v", o)
	default:
	}
}
