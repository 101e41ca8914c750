// One watch of Flux's objects: of a kind, in a namespace.

package flux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

const (
	// listTimeout bounds a list.
	listTimeout = 10 * time.Second
	// refusedPause is added after each request that RBAC refuses: somebody has to change a Role first.
	refusedPause = 3 * time.Second
)

// reconnect is how a lost watch comes back: no more than one try a second.
var reconnect = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: time.Second}

// watch is a cache.Reflector whose store keeps what we need of the objects, and its store.
type watch struct {
	sources *Sources
	place   place
	objects dynamic.ResourceInterface
	// gone is called when the resource is not served.
	gone    context.CancelFunc
	log     *slog.Logger
	trouble string // what was said of the requests that fail; a Reflector makes one after the other
}

// run watches until ctx ends. The loop is that of Reflector.Run, which would hand each failing try to the process's global error
// handlers and log; report says the same once.
func (w *watch) run(ctx context.Context) {
	quiet := logr.Discard()
	reflector := cache.NewReflectorWithOptions(
		&cache.ListWatch{ListWithContextFunc: w.list, WatchFuncWithContext: w.watch},
		&unstructured.Unstructured{}, w,
		cache.ReflectorOptions{Name: w.place.kind.name, Backoff: &reconnect, Logger: &quiet},
	)
	delay := reconnect.DelayWithReset(clock.RealClock{}, time.Minute)
	_ = delay.Until(klog.NewContext(ctx, quiet), true, true, func(ctx context.Context) (bool, error) {
		_ = reflector.ListAndWatchWithContext(ctx) // list and watch have reported it
		return false, nil
	})
}

var _ cache.TransformingStore = (*watch)(nil)

// Transformer implements cache.TransformingStore: what a watch begins with is trimmed one by one.
func (w *watch) Transformer() cache.TransformFunc {
	return func(read any) (any, error) { return w.trim(read) }
}

// trim is given what was read, or what it made of that.
func (w *watch) trim(read any) (*object, error) {
	switch o := read.(type) {
	case *object:
		return o, nil
	case *unstructured.Unstructured:
		return objectOf(w.place.kind, o), nil
	default:
		return nil, fmt.Errorf("the watch of %s brought a %T", w.place.kind.name, read)
	}
}

// Add implements cache.ReflectorStore.
func (w *watch) Add(read any) error {
	o, err := w.trim(read)
	if err != nil {
		return err
	}
	w.sources.put(w.place, o)
	return nil
}

// Update implements cache.ReflectorStore.
func (w *watch) Update(read any) error { return w.Add(read) }

// Delete implements cache.ReflectorStore.
func (w *watch) Delete(read any) error {
	o, err := w.trim(read)
	if err != nil {
		return err
	}
	w.sources.remove(w.place, o.name)
	return nil
}

// Replace implements cache.ReflectorStore.
func (w *watch) Replace(read []any, _ string) error {
	objects := make(map[string]*object, len(read))
	for _, r := range read {
		o, err := w.trim(r)
		if err != nil {
			return err
		}
		objects[o.name] = o
	}
	w.sources.replace(w.place, objects)
	return nil
}

// Resync implements cache.ReflectorStore.
func (w *watch) Resync() error { return nil }

func (w *watch) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	bounded, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list, err := w.objects.List(bounded, options)
	if err != nil {
		w.report(ctx, "list", err)
		return nil, err
	}
	return list, nil
}

func (w *watch) watch(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error) {
	events, err := w.objects.Watch(ctx, options)
	w.report(ctx, "watch", err)
	if utilnet.IsConnectionRefused(err) || apierrors.IsTooManyRequests(err) {
		// Of these two the Reflector knows that they pass, and waits for it with its eyes shut, beyond the end of ctx.
		return nil, errors.New("the API server is away or busy")
	}
	return events, err
}

// report says once that requests fail, and once that they no longer do.
func (w *watch) report(ctx context.Context, verb string, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if w.trouble != "" {
			w.log.InfoContext(ctx, "Flux's objects are watched again")
			w.sources.refuse(w.place, false)
		}
		w.trouble = ""
	case apierrors.IsNotFound(err):
		w.gone()
	case apierrors.IsForbidden(err):
		if w.trouble != "refused" {
			w.log.WarnContext(ctx, "not allowed to watch Flux's objects: grant get, list, watch and patch on them (flux-token-refresher config rbac prints the Role)",
				"verb", verb)
			w.sources.refuse(w.place, true)
		}
		w.trouble = "refused"
		select {
		case <-time.After(refusedPause):
		case <-ctx.Done():
		}
	default:
		if w.trouble == "" {
			w.trouble = "failing"
			w.log.DebugContext(ctx, "Flux's objects cannot be watched", "verb", verb, "error", sanitized(ctx, verb, "them", err))
		}
	}
}
