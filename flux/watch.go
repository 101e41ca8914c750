// One watch of Flux's objects: of a kind, in a namespace.

package flux

import (
	"context"
	"fmt"
	"log/slog"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"flux-token-refresher/internal/kube"
)

// watch keeps what we need of the objects.
type watch struct {
	sources *Sources
	place   place
	objects dynamic.ResourceInterface
	// gone is called when the resource is not served.
	gone context.CancelFunc
	log  *slog.Logger
}

// run watches until ctx ends.
func (w *watch) run(ctx context.Context) {
	(&kube.Watch{
		Name: w.place.kind.name, Kind: &unstructured.Unstructured{}, Store: w,
		List: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return w.objects.List(ctx, options)
		},
		Watch: w.objects.Watch, Changed: w.changed,
	}).Run(ctx)
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

// changed says what a person has to know.
func (w *watch) changed(ctx context.Context, state kube.State, verb string, err error) {
	switch state {
	case kube.Watching:
		w.sources.refuse(w.place, false)
		w.log.InfoContext(ctx, "Flux's objects are watched again")
	case kube.Absent:
		w.gone()
	case kube.Refused:
		w.log.WarnContext(ctx, "not allowed to watch Flux's objects: grant get, list, watch and patch on them (flux-token-refresher config rbac prints the Role)",
			"verb", verb)
		w.sources.refuse(w.place, true)
	default:
		w.log.DebugContext(ctx, "Flux's objects cannot be watched", "verb", verb, "error", sanitized(ctx, verb, "them", err))
	}
}
