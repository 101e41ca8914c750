package refreshtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"flux-token-refresher/refresh"
)

// Source is a refresh.Source in memory. Its fields may be changed while nobody calls it. The zero value issues
// tokens of an hour, at once.
type Source struct {
	// Lifetime of the next token; an hour when nil.
	Lifetime func(refresh.MintKey) time.Duration
	// RefreshIn is the issuer's wish for the next token, counted from its mint; 0 when it has none.
	RefreshIn time.Duration
	// Latency of a mint.
	Latency time.Duration
	// Sticky lets the issuer insist on a token until its end, whoever asks, as managed-identity endpoints do.
	Sticky bool
	// Fail decides whether a mint fails, after Latency; never when nil. Its calls never overlap.
	Fail func(refresh.MintKey) error

	mu      sync.Mutex
	mints   []Mint
	issued  map[refresh.MintKey]refresh.Token // by the issuer, last
	held    map[refresh.MintKey]refresh.Token
	flights map[refresh.MintKey]*flight
}

// Mint is one request to the issuer.
type Mint struct {
	At  time.Time
	Key refresh.MintKey
	// Token is what it gave, the same as before for a sticky issuer; zero when it failed.
	Token refresh.Token
}

// flight is a mint under way.
type flight struct {
	done   chan struct{}
	token  refresh.Token
	err    error
	gaveUp bool // its caller did, which is no answer for those who wait with it
}

// Held implements refresh.Source.
func (s *Source) Held(key refresh.MintKey) (refresh.Token, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.held[key]
	return t, ok
}

// Token implements refresh.Source.
func (s *Source) Token(ctx context.Context, key refresh.MintKey, notHash string) (refresh.Token, error) {
	s.mu.Lock()
	if t := s.held[key]; t.Alive(time.Now()) && t.Hash != notHash {
		s.mu.Unlock()
		return t, nil
	}
	if f := s.flights[key]; f != nil {
		s.mu.Unlock()
		select {
		case <-f.done:
			if f.gaveUp {
				return s.Token(ctx, key, notHash)
			}
			return f.token, f.err
		case <-ctx.Done():
			return refresh.Token{}, ctx.Err()
		}
	}
	if s.flights == nil {
		s.issued, s.held, s.flights = map[refresh.MintKey]refresh.Token{}, map[refresh.MintKey]refresh.Token{}, map[refresh.MintKey]*flight{}
	}
	f := &flight{done: make(chan struct{})}
	s.flights[key] = f
	s.mu.Unlock()

	sent := time.Now()
	if s.Latency > 0 {
		select {
		case <-time.After(s.Latency):
		case <-ctx.Done():
			f.err, f.gaveUp = ctx.Err(), true
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if f.err == nil {
		f.token, f.err = s.mint(key, sent)
	}
	delete(s.flights, key)
	close(f.done)
	return f.token, f.err
}

// mint is the issuer.
func (s *Source) mint(key refresh.MintKey, sent time.Time) (refresh.Token, error) {
	if s.Fail != nil {
		if err := s.Fail(key); err != nil {
			s.mints = append(s.mints, Mint{At: sent, Key: key})
			return refresh.Token{}, err
		}
	}
	t := s.issued[key]
	switch {
	case !s.Sticky || !t.Alive(time.Now()):
		lifetime := time.Hour
		if s.Lifetime != nil {
			lifetime = s.Lifetime(key)
		}
		var refreshOn time.Time
		if s.RefreshIn > 0 {
			refreshOn = sent.Add(s.RefreshIn)
		}
		t = refresh.NewToken(fmt.Sprintf("token %d of %s at %d", len(s.mints)+1, key, sent.UnixNano()), sent, sent.Add(lifetime), refreshOn)
		s.issued[key] = t
	case s.held[key].Hash == t.Hash:
		t = s.held[key] // the same one again is no newer than it was
	default:
		t = refresh.NewToken(t.Reveal(), sent, t.Expires, t.RefreshOn)
	}
	s.held[key] = t
	s.mints = append(s.mints, Mint{At: sent, Key: key, Token: t})
	return t, nil
}

// Forget drops what is held: a process that takes over knows nothing.
func (s *Source) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.held)
}

// Mints gives all requests to the issuer so far, those that failed too.
func (s *Source) Mints() []Mint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mints)
}
