package e2e

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"flux-token-refresher/e2e/internal/netproxy"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

// secretTarget is the target of the tests here; mayWrite grants what it needs and no more.
func secretTarget(namespace string) refresh.Target {
	return refresh.Target{
		Name:   refresh.Name{Namespace: namespace, Name: "target"},
		Create: true,
		Format: refresh.BearerToken(),
	}
}

// secretAccount gives a ServiceAccount's access, which may do nothing yet.
func secretAccount(t *testing.T, namespace string) *rest.Config {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "refresher"}}
	if _, err := newClient(t).CoreV1().ServiceAccounts(namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := controlPlane.Token(t.Context(), namespace, account.Name)
	if err != nil {
		t.Fatal(err)
	}
	return controlPlane.TokenConfig(token)
}

// allowSecret grants the account, whose access config is, the one Secret, by name, and Events.
func allowSecret(t *testing.T, config *rest.Config, namespace string) {
	t.Helper()
	client := newClient(t).RbacV1()
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "refresher"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"target"}, Verbs: []string{"create", "get", "list", "patch", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
	}}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "refresher"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: "refresher"}},
	}
	if _, err := client.Roles(namespace).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.RoleBindings(namespace).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitRule(t, config, namespace, role.Rules[0])
}

func coreClient(t *testing.T, config *rest.Config) typedcorev1.CoreV1Interface {
	t.Helper()
	client, err := typedcorev1.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// hands are refreshtest.Hands on the control plane.
type hands struct{ client kubernetes.Interface }

func (h hands) Create(ctx context.Context, manager string, object *corev1.Secret) error {
	_, err := h.client.CoreV1().Secrets(object.Namespace).Create(ctx, object, metav1.CreateOptions{FieldManager: manager})
	return err
}

func (h hands) Edit(ctx context.Context, manager string, name refresh.Name, change func(*corev1.Secret)) error {
	secrets := h.client.CoreV1().Secrets(name.Namespace)
	for {
		object, err := secrets.Get(ctx, name.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(object)
		if _, err = secrets.Update(ctx, object, metav1.UpdateOptions{FieldManager: manager}); !apierrors.IsConflict(err) {
			return err
		}
	}
}

func (h hands) Delete(ctx context.Context, name refresh.Name) error {
	return h.client.CoreV1().Secrets(name.Namespace).Delete(ctx, name.Name, metav1.DeleteOptions{})
}

func (h hands) Get(ctx context.Context, name refresh.Name) (*corev1.Secret, error) {
	object, err := h.client.CoreV1().Secrets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return object, err
}

// The contract holds on a real API server, with no other rights than those by name.
func TestSecretStore(t *testing.T) {
	t.Parallel()
	refreshtest.StoreTest(t, func(t *testing.T) refreshtest.Env {
		namespace := newNamespace(t)
		config := secretAccount(t, namespace)
		allowSecret(t, config, namespace)
		return refreshtest.Env{
			Store:     secret.New(coreClient(t, config), slog.New(slog.DiscardHandler)),
			Hands:     hands{newClient(t)},
			Namespace: namespace,
		}
	})
}

// observations collects what a Watch tells, until the test ends.
func observations(t *testing.T, store *secret.Store, target refresh.Target) <-chan refresh.Observed {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan refresh.Observed, 100)
	done := make(chan error)
	go func() { done <- store.Watch(ctx, target, func(o refresh.Observed) { told <- o }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
	return told
}

// next gives what comes next.
func next[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case it := <-from:
		return it
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came within 20s")
		panic("unreachable")
	}
}

// lines hands on each line that is logged.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// An installation whose Roles come after its Deployment works without a restart.
func TestSecretWatchRefusedUntilAllowed(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	config := secretAccount(t, namespace)
	log := make(lines, 100)
	store := secret.New(coreClient(t, config), slog.New(slog.NewTextHandler(log, nil)))
	target := secretTarget(namespace)
	told := observations(t, store, target)

	token := refresh.NewToken("a-token-that-nobody-may-see", time.Now(), time.Now().Add(time.Hour), time.Time{})
	err := store.Apply(t.Context(), target, refresh.Observed{}, token, refresh.Record{})
	var e *refresh.Error
	if !errors.As(err, &e) || e.Class != refresh.Misconfigured || e.Code != "403" || !strings.Contains(e.Text, "config rbac") {
		t.Errorf("Apply without rights: %v, want 403 with the remedy", err)
	}

	if line := next(t, (<-chan string)(log)); !strings.Contains(line, "level=WARN") || !strings.Contains(line, "config rbac") || !strings.Contains(line, namespace) {
		t.Errorf("logged %s, want a warning that names the Secret and the remedy", line)
	}
	allowSecret(t, config, namespace)
	if o := next(t, told); o.Exists {
		t.Errorf("observed %+v in an empty namespace", o)
	}
}

// What happened while the API server could not be reached is told once it can be again.
func TestSecretWatchOutlivesItsConnection(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	proxy, err := netproxy.Start(controlPlane.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	config := controlPlane.Config()
	config.Host = "https://" + proxy.Address()
	store := secret.New(coreClient(t, config), slog.New(slog.DiscardHandler))
	target := secretTarget(namespace)
	told := observations(t, store, target)
	absent := next(t, told)
	token := refresh.NewToken("token", time.Now(), time.Now().Add(time.Hour), time.Time{})

	for round := range 3 {
		if err := store.Apply(t.Context(), target, absent, token, refresh.Record{}); err != nil {
			t.Fatal(err)
		}
		if o := next(t, told); !o.Exists {
			t.Fatalf("observed %+v after Apply", o)
		}
		if err := proxy.Cut(); err != nil {
			t.Fatal(err)
		}
		err := store.Apply(t.Context(), target, absent, token, refresh.Record{})
		var e *refresh.Error
		if !errors.As(err, &e) || e.Class != refresh.Unavailable {
			t.Errorf("Apply without a connection: %v, want class %s", err, refresh.Unavailable)
		}
		if err := (hands{newClient(t)}).Delete(t.Context(), target.Name); err != nil {
			t.Fatal(err)
		}
		healed := time.Now()
		if err := proxy.Heal(); err != nil {
			t.Fatal(err)
		}
		if absent = next(t, told); absent.Exists {
			t.Fatalf("observed %+v after a deletion", absent)
		}
		t.Logf("round %d: the deletion was observed %s after the connection was back", round, time.Since(healed).Round(time.Millisecond))
	}
}

// A namespace that is missing is said as such.
func TestSecretInAMissingNamespace(t *testing.T) {
	t.Parallel()
	store := secret.New(coreClient(t, controlPlane.Config()), slog.New(slog.DiscardHandler))
	target := secretTarget("e2e-no-such-namespace")
	absent := next(t, observations(t, store, target))
	token := refresh.NewToken("token", time.Now(), time.Now().Add(time.Hour), time.Time{})
	err := store.Apply(t.Context(), target, absent, token, refresh.Record{})
	var e *refresh.Error
	if !errors.As(err, &e) || e.Code != "404" || !strings.Contains(e.Text, "namespace") {
		t.Errorf("Apply: %v, want 404 about the namespace", err)
	}
}

// Events arrive, repeated ones as a count, and those that wait when the work ends too.
func TestSecretEvents(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	config := secretAccount(t, namespace)
	allowSecret(t, config, namespace)
	recorder := secret.NewRecorder(coreClient(t, config), "replica-1", slog.New(slog.DiscardHandler))
	name := secretTarget(namespace).Name
	for range 3 {
		recorder.Event(name, "a-uid", true, "RefreshFailed", "the first reason")
	}
	recorder.Event(name, "a-uid", true, "RefreshFailed", "the second reason")
	recorder.Event(name, "a-uid", false, "Adopted", "another credential was replaced")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := recorder.Run(ended); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}

	list, err := newClient(t).CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=target"})
	if err != nil {
		t.Fatal(err)
	}
	type seen struct {
		kind, reason, note string
		count              int32
	}
	got := map[seen]bool{}
	for _, event := range list.Items {
		got[seen{event.Type, event.Reason, event.Message, event.Count}] = true
		if event.ReportingController != secret.Actor || event.ReportingInstance != "replica-1" || event.InvolvedObject.UID != "a-uid" || event.InvolvedObject.Kind != "Secret" {
			t.Errorf("an Event by %s of %s about %+v", event.ReportingInstance, event.ReportingController, event.InvolvedObject)
		}
	}
	for _, want := range []seen{
		{"Warning", "RefreshFailed", "the first reason", 3},
		{"Warning", "RefreshFailed", "the second reason", 1},
		{"Normal", "Adopted", "another credential was replaced", 1},
	} {
		if !got[want] {
			t.Errorf("no Event %+v among %+v", want, got)
		}
	}
}
