package installation

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

func named(name string) fields.Selector { return fields.OneTermEqualSelector("metadata.name", name) }

// await watches one object until match holds, from what is there now on. match gets nil (of its type) where there is none.
func await[T runtime.Object](ctx context.Context, kind T, what string, match func(T) bool, lw cache.ListerWatcher) (T, error) {
	var last, none T
	met := func(object T) bool {
		last = object
		return match(object)
	}
	_, err := watchtools.UntilWithSync(ctx, lw, kind, func(store cache.Store) (bool, error) {
		if objects := store.List(); len(objects) > 0 {
			return met(objects[0].(T)), nil
		}
		return met(none), nil
	}, func(e watch.Event) (bool, error) {
		if e.Type == watch.Deleted {
			return met(none), nil
		}
		return met(e.Object.(T)), nil
	})
	if err != nil {
		return none, fmt.Errorf("%s did not become as awaited: %w; it is %v", what, err, last)
	}
	return last, nil
}
