// Who gets which token: the one that is held, the one that is on its way, or a new one.

package azure

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"flux-token-refresher/refresh"
)

// Source implements refresh.Source. It belongs to one term of leadership, and needs no closing: it runs nothing
// while nobody waits for it.
type Source struct {
	minter     minter
	metrics    metrics
	identities map[string]Identity

	mu      sync.Mutex // guards what follows, and flight.waiters
	held    map[refresh.MintKey]refresh.Token
	flights map[refresh.MintKey]*flight
}

var _ refresh.Source = (*Source)(nil)

// flight is one mint and all who wait for it. It is not tied to the context of the caller who started it, so
// that no other caller fails when that one leaves; the last to leave cancels it and waits for its end.
// (x/sync/singleflight cannot tell when nobody waits any more.)
type flight struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{} // closed when token and err stand
	token   refresh.Token
	err     error
}

// Held implements refresh.Source.
func (s *Source) Held(key refresh.MintKey) (refresh.Token, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.held[key]
	return t, ok
}

// Token implements refresh.Source. The spans of a mint are children of the span in the ctx that started it.
func (s *Source) Token(ctx context.Context, key refresh.MintKey, notHash string) (refresh.Token, error) {
	id, ok := s.identities[key.Identity]
	if !ok {
		return refresh.Token{}, &refresh.Error{
			Class: refresh.Misconfigured,
			Text:  fmt.Sprintf("identity %s: there is none of this name; add it to identities", key.Identity),
		}
	}
	s.mu.Lock()
	if t := s.held[key]; t.Alive(time.Now()) && t.Hash != notHash {
		s.mu.Unlock()
		return t, nil
	}
	if err := ctx.Err(); err != nil { // who has lost the leadership starts no mint
		s.mu.Unlock()
		return refresh.Token{}, err
	}
	f := s.flights[key]
	if f == nil {
		f = s.start(ctx, key, id)
	}
	f.waiters++
	s.mu.Unlock()

	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		s.leave(key, f)
		return refresh.Token{}, ctx.Err()
	}
}

// start needs s.mu.
func (s *Source) start(ctx context.Context, key refresh.MintKey, id Identity) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{cancel: cancel, done: make(chan struct{})}
	if s.flights == nil {
		s.flights, s.held = map[refresh.MintKey]*flight{}, map[refresh.MintKey]refresh.Token{}
	}
	s.flights[key] = f
	go s.fly(ctx, key, id, f)
	return f
}

func (s *Source) fly(ctx context.Context, key refresh.MintKey, id Identity, f *flight) {
	defer close(f.done)
	defer f.cancel()
	started := time.Now()
	f.token, f.err = s.minter.mint(ctx, id, key.Scope)
	if errors.Is(ctx.Err(), context.Canceled) {
		return // everybody has left: it has no outcome
	}
	s.metrics.record(ctx, id.Name, time.Since(started), f.err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights[key] != f {
		return // another one has started since everybody left this
	}
	delete(s.flights, key)
	if f.err != nil {
		return
	}
	if held := s.held[key]; held.Hash == f.token.Hash {
		f.token = held // the same one again is no newer than it was: its time does not start anew
	}
	s.held[key] = f.token
}

func (s *Source) leave(key refresh.MintKey, f *flight) {
	s.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last && s.flights[key] == f {
		delete(s.flights, key) // who comes now starts anew
	}
	s.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}
