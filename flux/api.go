// Access to Flux's objects, in whatever version they are served.

package flux

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"flux-token-refresher/internal/kube"
)

// fieldManager is the name that the API server records beside what we wrote.
const fieldManager = "flux-token-refresher"

// API reads and wakes Flux's objects. It remembers which version of a kind is served. Safe for concurrent use.
type API struct {
	objects dynamic.Interface
	groups  *discovery.DiscoveryClient

	mu     sync.Mutex
	served map[*kind]schema.GroupVersionResource
}

// NewAPI gives access with the rights of config, which must have QPS -1 (kube-apiserver's own fairness decides) and no Timeout, which
// would end watches.
func NewAPI(config *rest.Config) (*API, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("access to Flux's objects: %w", err)
	}
	objects, err := dynamic.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("access to Flux's objects: %w", err)
	}
	groups, err := discovery.NewDiscoveryClientForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("access to Flux's objects: %w", err)
	}
	return &API{objects: objects, groups: groups, served: map[*kind]schema.GroupVersionResource{}}, nil
}

// resource says how a kind is served: in the API server's preferred version that has it. ok is false when it is not installed. That is
// not remembered: it may come at any time.
func (a *API) resource(ctx context.Context, k *kind) (resource schema.GroupVersionResource, ok bool, err error) {
	a.mu.Lock()
	resource, ok = a.served[k]
	a.mu.Unlock()
	if ok {
		return resource, true, nil
	}
	bounded, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
	defer cancel()
	// Only this group: what is known of all the groups of a cluster is megabytes.
	var group metav1.APIGroup
	err = a.groups.RESTClient().Get().AbsPath("/apis", k.group).Do(bounded).Into(&group)
	if apierrors.IsNotFound(err) {
		return resource, false, nil
	}
	if err != nil {
		return resource, false, sanitized(ctx, "discover", k.group, err)
	}
	for _, version := range group.Versions { // the preferred one stands first
		list, err := a.groups.ServerResourcesForGroupVersionWithContext(bounded, version.GroupVersion)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return resource, false, sanitized(ctx, "discover", version.GroupVersion, err)
		}
		for _, r := range list.APIResources {
			if r.Kind != k.name || strings.Contains(r.Name, "/") {
				continue
			}
			resource = schema.GroupVersionResource{Group: k.group, Version: version.Version, Resource: r.Name}
			a.mu.Lock()
			a.served[k] = resource
			a.mu.Unlock()
			return resource, true, nil
		}
	}
	return resource, false, nil
}

// forget makes the next look at a kind discover it anew: its objects were not found where they were served.
func (a *API) forget(k *kind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.served, k)
}

// get reads one object; nil when it does not exist. Errors are *refresh.Error, or the context's.
func (a *API) get(ctx context.Context, at key) (*object, error) {
	var before schema.GroupVersionResource
	for {
		resource, ok, err := a.resource(ctx, at.kind)
		if err != nil {
			return nil, err
		}
		if !ok || resource == before {
			return nil, nil
		}
		bounded, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
		u, err := a.objects.Resource(resource).Namespace(at.namespace).Get(bounded, at.name, metav1.GetOptions{})
		cancel()
		switch {
		case err == nil:
			return objectOf(at.kind, u), nil
		case !apierrors.IsNotFound(err):
			return nil, sanitized(ctx, "get", at.String(), err)
		}
		// The object, or the version: in another one it may be there.
		a.forget(at.kind)
		before = resource
	}
}

// wake asks the object's controller to reconcile it at once; ok is false when the object is gone. Errors are *refresh.Error, or the
// context's.
func (a *API) wake(ctx context.Context, at key, now time.Time) (ok bool, err error) {
	resource, ok, err := a.resource(ctx, at.kind)
	if err != nil || !ok {
		return false, err
	}
	change, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{requestedAt: now.UTC().Format(time.RFC3339Nano)},
	}})
	if err != nil {
		return false, fmt.Errorf("encode the change: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
	defer cancel()
	_, err = a.objects.Resource(resource).Namespace(at.namespace).
		Patch(bounded, at.name, types.MergePatchType, change, metav1.PatchOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, sanitized(ctx, "annotate", at.String(), err)
	}
	return true, nil
}

// sanitized is what may be told of a failed request about what.
func sanitized(ctx context.Context, verb, what string, err error) error {
	return kube.Object{Name: what, Rights: "get, list, watch and patch on it"}.Failure(ctx, verb, err)
}
