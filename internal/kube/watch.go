// Package kube is what our clients of the Kubernetes API share: a watch that comes back, and failures in our own words.
package kube

import (
	"context"
	"errors"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// RequestTimeout bounds each request that is not a watch.
const RequestTimeout = 10 * time.Second

// refusedPause is added after each request that RBAC refuses: somebody has to change a Role first.
const refusedPause = 3 * time.Second

// reconnect is how a lost watch comes back: within two seconds of the API server, and no more than one try a second.
var reconnect = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: time.Second}

// State is how a Watch fares.
type State int

// A Watch is Watching until one of its requests fails.
const (
	Watching State = iota
	// Refused: the API server knows no right to it, or not who asks. Only a person can change that.
	Refused
	// Absent: what is watched is not served.
	Absent
	// Failing: anything else, which shows in everything else as well.
	Failing
)

// Watch tells a Store what a list and the watch after it bring, again from a list when the watch is lost.
type Watch struct {
	// Name is for cache.Reflector, Kind an empty object of what is watched.
	Name  string
	Kind  runtime.Object
	Store cache.ReflectorStore
	// List and Watch are a client's. A list is given RequestTimeout, a watch is not.
	List  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	Watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
	// Changed is told each State that is not the one before. err is what the API server said, to the request that verb names.
	Changed func(ctx context.Context, state State, verb string, err error)

	state State // a Reflector makes one request after the other
}

// Run watches until ctx ends. The loop is that of Reflector.Run, which would hand each failing try to the process's global error
// handlers and log; Changed says the same once.
func (w *Watch) Run(ctx context.Context) {
	quiet := logr.Discard()
	reflector := cache.NewReflectorWithOptions(
		&cache.ListWatch{ListWithContextFunc: w.list, WatchFuncWithContext: w.watch}, w.Kind, w.Store,
		cache.ReflectorOptions{Name: w.Name, Backoff: &reconnect, Logger: &quiet},
	)
	delay := reconnect.DelayWithReset(clock.RealClock{}, time.Minute)
	_ = delay.Until(klog.NewContext(ctx, quiet), true, true, func(ctx context.Context) (bool, error) {
		_ = reflector.ListAndWatchWithContext(ctx) // list and watch have told of it
		return false, nil
	})
}

func (w *Watch) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	bounded, cancel := context.WithTimeout(ctx, RequestTimeout)
	defer cancel()
	list, err := w.List(bounded, options)
	if err != nil {
		w.tell(ctx, "list", err)
		return nil, err
	}
	return list, nil
}

func (w *Watch) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	events, err := w.Watch(ctx, options)
	w.tell(ctx, "watch", err)
	if utilnet.IsConnectionRefused(err) || apierrors.IsTooManyRequests(err) {
		// Of these two the Reflector knows that they pass, and waits for it with its eyes shut, beyond the end of ctx.
		return nil, errors.New("the API server is away or busy")
	}
	return events, err
}

func (w *Watch) tell(ctx context.Context, verb string, err error) {
	if ctx.Err() != nil {
		return
	}
	state := stateOf(err)
	if state != w.state {
		w.state = state
		w.Changed(ctx, state, verb, err)
	}
	if state == Refused {
		select {
		case <-time.After(refusedPause):
		case <-ctx.Done():
		}
	}
}

func stateOf(err error) State {
	switch {
	case err == nil:
		return Watching
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return Refused
	case apierrors.IsNotFound(err):
		return Absent
	}
	return Failing
}
