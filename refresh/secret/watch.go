package secret

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
)

// watch is one Secret's watch, which keeps nothing, and the order of what it and the answers to writes tell.
type watch struct {
	target  refresh.Target
	secrets typedcorev1.SecretInterface
	log     *slog.Logger

	mu      sync.Mutex // held while observe is called, so that calls never overlap
	observe func(refresh.Observed)
	version string // of what was told last; "" before the first
	ended   bool
}

// run watches until ctx ends.
func (w *watch) run(ctx context.Context) {
	(&kube.Watch{
		Name: w.target.Name.String(), Kind: &corev1.Secret{}, Store: w, List: w.list, Watch: w.watch, Changed: w.changed,
	}).Run(ctx)
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
	return w.secrets.List(ctx, options)
}

func (w *watch) watch(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error) {
	options.FieldSelector = w.selector()
	return w.secrets.Watch(ctx, options)
}

// selector is what RBAC by resourceNames and kube-apiserver's index go by.
func (w *watch) selector() string {
	return fields.OneTermEqualSelector(metav1.ObjectNameField, w.target.Name.Name).String()
}

// changed says what a person has to know. A refusal needs one; an outage shows in everything else already.
func (w *watch) changed(ctx context.Context, state kube.State, verb string, err error) {
	switch state {
	case kube.Watching:
		w.log.InfoContext(ctx, "the Secret is watched again")
	case kube.Refused:
		w.log.WarnContext(ctx, "not allowed to watch the Secret: grant list, watch and patch on it by name (flux-token-refresher config rbac prints the Role), and check the ServiceAccount's token",
			"verb", verb)
	default:
		w.log.DebugContext(ctx, "the Secret cannot be watched", "verb", verb, "error", failure(ctx, verb, err))
	}
}
