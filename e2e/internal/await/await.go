// Package await waits for Kubernetes objects to be as a test wants them, by watching them.
package await

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// Named selects the object of that name.
func Named(name string) fields.Selector { return fields.OneTermEqualSelector("metadata.name", name) }

// Dynamic lists and watches the object of that name with a dynamic client.
func Dynamic(client dynamic.ResourceInterface, name string) cache.ListerWatcher {
	only := Named(name).String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = only
			return client.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = only
			return client.Watch(ctx, options)
		},
	}
}

// Object watches one object until match holds, from what is there now on. match gets nil (of its type) where there is none. The
// error tells how the object was last.
func Object[T runtime.Object](ctx context.Context, kind T, what string, match func(T) bool, lw cache.ListerWatcher) (T, error) {
	var last, none T
	met := func(object any) bool {
		last, _ = object.(T) // nil is none
		return match(last)
	}
	_, err := watchtools.UntilWithSync(ctx, lw, kind, func(store cache.Store) (bool, error) {
		if objects := store.List(); len(objects) > 0 {
			return met(objects[0]), nil
		}
		return met(nil), nil
	}, func(e watch.Event) (bool, error) {
		if e.Type == watch.Deleted {
			return met(nil), nil
		}
		return met(e.Object), nil
	})
	if err != nil {
		return none, fmt.Errorf("%s did not become as awaited: %w; it is %v", what, err, last)
	}
	return last, nil
}
