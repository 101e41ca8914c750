package refreshtest

import (
	"context"
	"slices"
	"sync"

	"flux-token-refresher/refresh"
)

// Readers is a refresh.Readers in memory. The zero value has nobody to ask and nobody to wake.
type Readers struct {
	mu     sync.Mutex
	answer func(refresh.Token) refresh.Trial
	trials []refresh.Token
	woken  []refresh.Name
}

// Answer decides what the Git servers say from now on; nil: there are none. Its calls never overlap.
func (r *Readers) Answer(answer func(refresh.Token) refresh.Trial) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// Try implements refresh.Readers.
func (r *Readers) Try(_ context.Context, _ refresh.Target, token refresh.Token, _ bool) (refresh.Trial, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trials = append(r.trials, token)
	if r.answer == nil {
		return refresh.Trial{}, nil
	}
	return r.answer(token), nil
}

// Wake implements refresh.Readers.
func (r *Readers) Wake(_ context.Context, target refresh.Target) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.woken = append(r.woken, target.Name)
	return 1, nil
}

// Trials gives the tokens that were tried so far, in their order.
func (r *Readers) Trials() []refresh.Token {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.trials)
}

// Woken gives the targets whose readers were woken so far, in their order.
func (r *Readers) Woken() []refresh.Name {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.woken)
}
