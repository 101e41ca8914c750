package main

// What was seen of one object, from before the demo touches it on: only so can be told how long something took.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// state is what an object was from a moment on: nil (of its type) while there is none.
type state[T runtime.Object] struct {
	seen   time.Time
	object T
}

// history is every state of one object. Safe for concurrent use.
type history[T runtime.Object] struct {
	what    string
	watch   watch.Interface
	watched sync.WaitGroup

	mu     sync.Mutex
	states []state[T]
	err    error         // why there will be no more
	grown  chan struct{} // closed, and made anew, when states or err change
}

// follow watches one object until close. API servers end a watch after half an hour at the earliest (--min-request-timeout),
// by which time nobody asks any more.
func follow[T runtime.Object](ctx context.Context, name string, open func(context.Context, metav1.ListOptions) (watch.Interface, error)) (*history[T], error) {
	w, err := open(context.WithoutCancel(ctx), metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String(),
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	h := &history[T]{what: fmt.Sprintf("%T %s", *new(T), name), watch: w, grown: make(chan struct{})}
	h.watched.Go(h.read)
	return h, nil
}

func (h *history[T]) close() error {
	h.watch.Stop()
	h.watched.Wait()
	return nil
}

func (h *history[T]) read() {
	for event := range h.watch.ResultChan() {
		switch object, ok := event.Object.(T); {
		case !ok:
			h.end(apierrors.FromObject(event.Object))
			return
		case event.Type == watch.Deleted:
			h.add(*new(T))
		default:
			h.add(object)
		}
	}
	h.end(errors.New("the watch ended"))
}

func (h *history[T]) add(object T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.states = append(h.states, state[T]{seen: time.Now(), object: object})
	close(h.grown)
	h.grown = make(chan struct{})
}

func (h *history[T]) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
	close(h.grown)
	h.grown = make(chan struct{})
}

// all gives what was seen so far.
func (h *history[T]) all() []state[T] {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.states)
}

// last gives what was seen last that matches.
func (h *history[T]) last(match func(T) bool) (found state[T]) {
	for _, s := range h.all() {
		if match(s.object) {
			found = s
		}
	}
	return found
}

// await gives the first state after the first n that matches, as soon as it is seen.
func (h *history[T]) await(ctx context.Context, n int, match func(T) bool) (state[T], error) {
	for {
		h.mu.Lock()
		states, grown, err := h.states[n:], h.grown, h.err
		h.mu.Unlock()
		for _, s := range states {
			if match(s.object) {
				return s, nil
			}
		}
		n += len(states)
		if err != nil {
			return state[T]{}, fmt.Errorf("%s: %w", h.what, err)
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return state[T]{}, fmt.Errorf("%s did not become as awaited: %w", h.what, context.Cause(ctx))
		}
	}
}
