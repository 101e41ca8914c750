package secret

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"flux-token-refresher/refresh"
)

// reconnect is how a lost watch comes back: within two seconds of the API server, and no more than one try a second.
var reconnect = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: time.Second}

// refusedPause is added after each request that RBAC refuses: somebody has to change a Role first.
const refusedPause = 3 * time.Second

// watch is one Secret's watch: a cache.Reflector that keeps nothing, and the order of what it and the answers to
// writes tell. It is the Reflector's store.
type watch struct {
	target  refresh.Target
	secrets typedcorev1.SecretInterface
	log     *slog.Logger
	trouble string // what was said of the requests that fail; a Reflector makes one after the other

	mu      sync.Mutex // held while observe is called, so that calls never overlap
	observe func(refresh.Observed)
	version string // of what was told last; "" before the first
	ended   bool
}

// run watches until ctx ends. The loop is that of Reflector.Run, which would hand each failing try to the process's
// global error handlers and log; report says the same once.
func (w *watch) run(ctx context.Context) {
	quiet := logr.Discard()
	reflector := cache.NewReflectorWithOptions(
		&cache.ListWatch{ListWithContextFunc: w.list, WatchFuncWithContext: w.watch},
		&corev1.Secret{}, w,
		cache.ReflectorOptions{Name: w.target.Name.String(), Backoff: &reconnect, Logger: &quiet},
	)
	delay := reconnect.DelayWithReset(clock.RealClock{}, time.Minute)
	_ = delay.Until(klog.NewContext(ctx, quiet), true, true, func(ctx context.Context) (bool, error) {
		_ = reflector.ListAndWatchWithContext(ctx) // list and watch have reported it
		return false, nil
	})
}

// end makes sure that observe is not called any more.
func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
}

// tell hands on what is newer than all that was told before. resourceVersions of one kind can be compared, a deletion's
// and a list's too (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions); where one does not
// compare, the API server's word is taken. An etcd that was restored counts from an older version again: Kubernetes
// asks to restart its clients then, and a new Watch begins anew.
func (w *watch) tell(version string, observed refresh.Observed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if order, err := resourceversion.CompareResourceVersion(version, w.version); w.ended || (err == nil && order <= 0) {
		return
	}
	w.version = version
	w.observe(observed)
}

func (w *watch) present(s *corev1.Secret) { w.tell(s.ResourceVersion, Observe(w.target, s)) }

func (w *watch) absent(version string) { w.tell(version, refresh.Observed{Version: version}) }

// Add implements cache.ReflectorStore.
func (w *watch) Add(object any) error {
	s, ok := object.(*corev1.Secret)
	if !ok {
		return fmt.Errorf("the watch of %s brought a %T", w.target.Name, object)
	}
	w.present(s)
	return nil
}

// Update implements cache.ReflectorStore.
func (w *watch) Update(object any) error { return w.Add(object) }

// Delete implements cache.ReflectorStore. The object carries the resourceVersion of its deletion.
func (w *watch) Delete(object any) error {
	s, ok := object.(*corev1.Secret)
	if !ok {
		return fmt.Errorf("the watch of %s brought a %T", w.target.Name, object)
	}
	w.absent(s.ResourceVersion)
	return nil
}

// Replace implements cache.ReflectorStore: it brings what is there when a watch starts, which may be nothing.
func (w *watch) Replace(objects []any, version string) error {
	if len(objects) == 0 {
		w.absent(version)
	}
	for _, object := range objects {
		if err := w.Add(object); err != nil {
			return err
		}
	}
	return nil
}

// Resync implements cache.ReflectorStore.
func (w *watch) Resync() error { return nil }

func (w *watch) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	options.FieldSelector = w.selector()
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list, err := w.secrets.List(bounded, options)
	if err != nil {
		w.report(ctx, "list", err)
		return nil, err
	}
	return list, nil
}

func (w *watch) watch(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error) {
	options.FieldSelector = w.selector()
	events, err := w.secrets.Watch(ctx, options)
	w.report(ctx, "watch", err)
	if utilnet.IsConnectionRefused(err) || apierrors.IsTooManyRequests(err) {
		// Of these two the Reflector knows that they pass, and waits for it with its eyes shut, beyond the end of ctx.
		return nil, errors.New("the API server is away or busy")
	}
	return events, err
}

// selector is what RBAC by resourceNames and kube-apiserver's index go by.
func (w *watch) selector() string {
	return fields.OneTermEqualSelector(metav1.ObjectNameField, w.target.Name.Name).String()
}

// report says once that requests fail, and once that they no longer do. A refusal needs a person; an outage shows in
// everything else already.
func (w *watch) report(ctx context.Context, verb string, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if w.trouble != "" {
			w.log.InfoContext(ctx, "the Secret is watched again")
		}
		w.trouble = ""
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		if w.trouble != "refused" {
			w.log.WarnContext(ctx, "not allowed to watch the Secret: grant list, watch and patch on it by name (flux-token-refresher config rbac prints the Role), and check the ServiceAccount's token",
				"verb", verb)
		}
		w.trouble = "refused"
		select {
		case <-time.After(refusedPause):
		case <-ctx.Done():
		}
	default:
		if w.trouble == "" {
			w.trouble = "failing"
			w.log.DebugContext(ctx, "the Secret cannot be watched", "verb", verb, "error", failure(ctx, verb, err))
		}
	}
}
