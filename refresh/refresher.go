// Package refresh keeps tokens alive in Secrets. Every trigger becomes one key in one queue, and one function, Decide,
// says what to do about it from what is there; nothing here knows Kubernetes, Azure or Flux.
//
//	observe ─► Decide ─► acquire ─► apply ─► verify ─► wake ─► look again
//
// The Secret is the state: what a Refresher remembers beside it is lost with its term, and costs one mint at most.
package refresh

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/util/workqueue"
)

const (
	// writers reconcile at the same time, beside one worker for each identity and scope, which may wait for its issuer. A
	// thousand server-side applies were no faster with more (measured).
	writers = 8
	// longestSleep bounds how long a target goes unlooked at: the queue sleeps by the monotonic clock, which stands still
	// while a machine is suspended, and tokens end by the wall clock. A look costs no request.
	longestSleep = 10 * time.Minute
	// freshAgain is when to look again at a lease that is not known to be ours; most often the term ends first.
	freshAgain = time.Second
)

// Refresher keeps its targets' tokens fresh while it leads. All fields are required but Fresh.
type Refresher struct {
	Targets  []Target
	Policy   Policy
	Source   Source
	Store    Store
	Readers  Readers
	Recorder Recorder
	// Fresh tells whether leadership is certain at this moment. It is asked before each mint and each write; nil
	// means always.
	Fresh func() bool

	Logger         *slog.Logger
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
}

// Run serves one term of leadership: until ctx ends (nil), or a watch ends for another reason (its error).
func (r *Refresher) Run(ctx context.Context) error {
	return r.serve(ctx, nil)
}

// Once brings every target to a good end and returns: when each is good (Policy.Within can make more of them due)
// or was refreshed, or when it failed or only waits, which is part of the error.
func (r *Refresher) Once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	ended := make(map[Name]error, len(r.Targets))
	if err := r.serve(ctx, func(name Name, err error) {
		mu.Lock()
		defer mu.Unlock()
		if ended[name] = err; len(ended) == len(r.Targets) {
			cancel()
		}
	}); err != nil {
		return err
	}
	var errs []error
	for _, target := range r.Targets {
		err, ok := ended[target.Name]
		if !ok {
			err = errUnobserved
		}
		if err != nil {
			errs = append(errs, &targetError{target.Name, err})
		}
	}
	return errors.Join(errs...)
}

var errUnobserved = errors.New("the time ended before its Secret was seen to be good")

type targetError struct {
	name Name
	err  error
}

func (e *targetError) Error() string { return "Secret " + e.name.String() + ": " + e.err.Error() }
func (e *targetError) Unwrap() error { return e.err }

// term is one Run: everything that is forgotten when it ends.
type term struct {
	*Refresher
	queue       workqueue.TypedDelayingInterface[Name]
	entries     map[Name]*entry
	mints       map[MintKey]*mint
	instruments *instruments
	// ended is told once of each target: nil when it is good or was refreshed; nil itself for a service, whose
	// targets never end.
	ended func(Name, error)
}

func (r *Refresher) serve(ctx context.Context, ended func(Name, error)) error {
	t := &term{
		Refresher: r,
		queue:     workqueue.NewTypedDelayingQueue[Name](),
		entries:   make(map[Name]*entry, len(r.Targets)),
		mints:     make(map[MintKey]*mint),
		ended:     ended,
	}
	for _, target := range r.Targets {
		if t.mints[target.Mint] == nil {
			t.mints[target.Mint] = &mint{}
		}
		t.entries[target.Name] = &entry{target: target, counts: make(map[count]int64)}
	}
	var err error
	if t.instruments, err = newInstruments(r.MeterProvider, r.TracerProvider, t.entries); err != nil {
		return err
	}
	defer t.instruments.close()

	group, ctx := errgroup.WithContext(ctx)
	for _, e := range t.entries {
		group.Go(func() error {
			err := r.Store.Watch(ctx, e.target, func(o Observed) {
				e.observe(o)
				t.queue.Add(e.target.Name)
			})
			if ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	for range writers + len(t.mints) {
		group.Go(func() error {
			for {
				name, shutdown := t.queue.Get()
				if shutdown {
					return nil
				}
				if ctx.Err() == nil {
					t.reconcile(ctx, t.entries[name])
				}
				t.queue.Done(name)
			}
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		t.queue.ShutDown()
		return nil
	})
	return group.Wait()
}
