package e2e

// What `config rbac` grants, against a real API server: it is enough, nothing of it can be left out, and it is not
// enough for anything else.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
)

// rightsConfig has one of everything that leads to a right, in one namespace.
const rightsConfig = `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities:
  - {name: repos, type: workloadIdentity}
  - {name: other, type: clientSecret, credentialSecret: NAMESPACE/credential}
targets:
  - {secret: NAMESPACE/kept, identity: repos}
  - {secret: NAMESPACE/made, identity: other, create: true}
election: {lease: NAMESPACE/leader}
`

// rights is a namespace in which a ServiceAccount has what the configuration gives it.
type rights struct {
	namespace string
	// account has the namespace's name, as cluster-wide objects carry it too.
	account types.NamespacedName
	admin   kubernetes.Interface
	client  kubernetes.Interface
}

// newRights makes the objects of the configuration after change had a look at the Role's rules, and waits until they
// are in force.
func newRights(ctx context.Context, t *testing.T, change func([]rbacv1.PolicyRule)) *rights {
	t.Helper()
	admin, namespace := newClient(t), newNamespace(t)
	r := &rights{namespace: namespace, account: types.NamespacedName{Namespace: namespace, Name: namespace}, admin: admin}
	c, err := config.Parse("config.yaml", []byte(strings.ReplaceAll(rightsConfig, "NAMESPACE", namespace)), nil)
	if err != nil {
		t.Fatal(err)
	}
	objects := rbac.Objects(c, r.account)
	var role *rbacv1.Role
	for _, object := range objects {
		if found, ok := object.(*rbacv1.Role); ok {
			role = found
			change(role.Rules)
		}
	}
	_, err = admin.CoreV1().ServiceAccounts(namespace).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: r.account.Name}}, metav1.CreateOptions{})
	for _, name := range []string{"kept", "credential", "somebody-elses"} {
		_, e := admin.CoreV1().Secrets(namespace).Create(ctx,
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		err = errors.Join(err, e)
	}
	for _, object := range objects {
		err = errors.Join(err, create(ctx, admin, object))
	}
	_, e := admin.CoreV1().Events(namespace).Create(ctx, r.event("told"), metav1.CreateOptions{})
	if err := errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	token, err := controlPlane.Token(ctx, r.account.Namespace, r.account.Name)
	if err != nil {
		t.Fatal(err)
	}
	if r.client, err = kubernetes.NewForConfig(controlPlane.TokenConfig(token)); err != nil {
		t.Fatal(err)
	}
	r.waitForRole(ctx, t, role.Rules)
	return r
}

// create makes one of the objects that rbac.Objects gives.
func create(ctx context.Context, admin kubernetes.Interface, object runtime.Object) (err error) {
	options := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	switch o := object.(type) {
	case *rbacv1.Role:
		_, err = admin.RbacV1().Roles(o.Namespace).Create(ctx, o, options)
	case *rbacv1.RoleBinding:
		_, err = admin.RbacV1().RoleBindings(o.Namespace).Create(ctx, o, options)
	case *admissionv1.ValidatingAdmissionPolicy:
		_, err = admin.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(ctx, o, options)
	case *admissionv1.ValidatingAdmissionPolicyBinding:
		_, err = admin.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(ctx, o, options)
	default:
		err = fmt.Errorf("no way to create a %T", o)
	}
	return err
}

// waitForRole waits until the API server's authorizer has seen the Role and its binding, which come from
// its caches.
func (r *rights) waitForRole(ctx context.Context, t *testing.T, rules []rbacv1.PolicyRule) {
	t.Helper()
	rule := rules[slices.IndexFunc(rules, func(r rbacv1.PolicyRule) bool { return len(r.Verbs) > 0 })]
	attributes := &authorizationv1.ResourceAttributes{
		Namespace: r.namespace, Group: rule.APIGroups[0], Resource: rule.Resources[0], Verb: rule.Verbs[0],
	}
	if len(rule.ResourceNames) > 0 {
		attributes.Name = rule.ResourceNames[0]
	}
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: attributes}}
	until(ctx, t, "the Role is in force", func(ctx context.Context) (bool, error) {
		answer, err := r.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		return err == nil && answer.Status.Allowed, err
	})
}

// until asks the API server again and again: what is waited for here shows in its answers only.
func until(ctx context.Context, t *testing.T, what string, done func(context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, 30*time.Second, true, done); err != nil {
		t.Fatalf("waiting until %s: %v", what, err)
	}
}

// operation is something that is done to the API server.
type operation struct {
	name string
	do   func(context.Context, *rights) error
}

// operations are everything that the product does.
var operations = []operation{
	{"watch a Secret, beginning with what is there", func(ctx context.Context, r *rights) error {
		return r.watchSecret(ctx, "kept")
	}},
	{"list a Secret, where a watch cannot begin so", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoreV1().Secrets(r.namespace).List(ctx, only("kept"))
		return err
	}},
	{"write a Secret by apply", func(ctx context.Context, r *rights) error {
		return r.apply(ctx, "kept", secretOf("kept", "Opaque", ""))
	}},
	{"create a Secret by apply", func(ctx context.Context, r *rights) error {
		return r.apply(ctx, "made", secretOf("made", "Opaque", "1"))
	}},
	{"annotate a Secret by merge patch", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoreV1().Secrets(r.namespace).Patch(ctx, "kept", types.MergePatchType,
			[]byte(`{"metadata":{"annotations":{"a":"b"}}}`), metav1.PatchOptions{})
		return err
	}},
	{"read a credential", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoreV1().Secrets(r.namespace).Get(ctx, "credential", metav1.GetOptions{})
		return err
	}},
	{"tell an Event", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoreV1().Events(r.namespace).Create(ctx, r.event("new"), metav1.CreateOptions{})
		return err
	}},
	{"tell an Event again", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoreV1().Events(r.namespace).Patch(ctx, "told", types.StrategicMergePatchType,
			[]byte(`{"series":{"count":2,"lastObservedTime":"2026-01-01T00:00:00.000000Z"}}`), metav1.PatchOptions{})
		return err
	}},
	{"create the Lease", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoordinationV1().Leases(r.namespace).Create(ctx,
			&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "leader"}}, metav1.CreateOptions{})
		return err
	}},
	{"read the Lease", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoordinationV1().Leases(r.namespace).Get(ctx, "leader", metav1.GetOptions{})
		return err
	}},
	{"watch the Lease", func(ctx context.Context, r *rights) error {
		w, err := r.client.CoordinationV1().Leases(r.namespace).Watch(ctx, only("leader"))
		if err == nil {
			w.Stop()
		}
		return err
	}},
	{"renew the Lease", func(ctx context.Context, r *rights) error {
		lease, err := r.admin.CoordinationV1().Leases(r.namespace).Get(ctx, "leader", metav1.GetOptions{})
		if err != nil {
			return err
		}
		_, err = r.client.CoordinationV1().Leases(r.namespace).Update(ctx, lease, metav1.UpdateOptions{})
		return err
	}},
}

// without names what is refused when a verb on a resource is missing.
var without = map[string][]string{
	"list secrets":  {"list a Secret, where a watch cannot begin so"},
	"watch secrets": {"watch a Secret, beginning with what is there"},
	"patch secrets": {
		"write a Secret by apply", "create a Secret by apply", "annotate a Secret by merge patch"},
	"create secrets": {"create a Secret by apply"},
	"get secrets":    {"read a credential"},
	"create events":  {"tell an Event"},
	"patch events":   {"tell an Event again"},
	"get leases":     {"read the Lease"},
	"watch leases":   {"watch the Lease"},
	"update leases":  {"renew the Lease"},
	"create leases":  {"create the Lease"},
}

func TestRightsAreEnough(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := newRights(ctx, t, func(rules []rbacv1.PolicyRule) {
		for _, rule := range rules {
			for _, verb := range rule.Verbs {
				if without[verb+" "+rule.Resources[0]] == nil {
					t.Errorf("granted, but nothing shows that it is needed: %s %s", verb, rule.Resources[0])
				}
			}
		}
	})
	for _, o := range operations {
		if err := o.do(ctx, r); err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
	}
}

func TestRightsAreNeeded(t *testing.T) {
	t.Parallel()
	for right, want := range without {
		t.Run(right, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r := newRights(ctx, t, func(rules []rbacv1.PolicyRule) {
				for i := range rules {
					rules[i].Verbs = slices.DeleteFunc(rules[i].Verbs, func(verb string) bool {
						return verb+" "+rules[i].Resources[0] == right
					})
				}
				// A rule without verbs is invalid; one that grants nothing is not.
				for i := range rules {
					if len(rules[i].Verbs) == 0 {
						rules[i].Verbs = []string{"nothing"}
					}
				}
			})
			var got []string
			for _, o := range operations {
				if err := o.do(ctx, r); apierrors.IsForbidden(err) {
					got = append(got, o.name)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("refused (-want +got)\n%s", diff)
			}
		})
	}
}

func TestRightsGiveNothingElse(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := newRights(ctx, t, func([]rbacv1.PolicyRule) {})
	secrets := r.client.CoreV1().Secrets(r.namespace)
	leases := r.client.CoordinationV1().Leases(r.namespace)
	refused := map[string]func() error{
		"get a target":       func() error { _, err := secrets.Get(ctx, "kept", metav1.GetOptions{}); return err },
		"list all":           func() error { _, err := secrets.List(ctx, metav1.ListOptions{}); return err },
		"watch all":          func() error { _, err := secrets.Watch(ctx, metav1.ListOptions{}); return err },
		"list another":       func() error { _, err := secrets.List(ctx, only("somebody-elses")); return err },
		"list a credential":  func() error { _, err := secrets.List(ctx, only("credential")); return err },
		"get another":        func() error { _, err := secrets.Get(ctx, "somebody-elses", metav1.GetOptions{}); return err },
		"apply another":      func() error { return r.apply(ctx, "somebody-elses", secretOf("somebody-elses", "Opaque", "")) },
		"apply a credential": func() error { return r.apply(ctx, "credential", secretOf("credential", "Opaque", "")) },
		"create another":     func() error { return r.apply(ctx, "new", secretOf("new", "Opaque", "1")) },
		"create by POST, with a name that may be created": func() error {
			_, err := secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "made"}}, metav1.CreateOptions{})
			return err
		},
		"delete a target":  func() error { return secrets.Delete(ctx, "kept", metav1.DeleteOptions{}) },
		"another Lease":    func() error { _, err := leases.Get(ctx, "other", metav1.GetOptions{}); return err },
		"delete the Lease": func() error { return leases.Delete(ctx, "leader", metav1.DeleteOptions{}) },
		"another namespace": func() error {
			_, err := r.client.CoreV1().Secrets("default").List(ctx, only("kept"))
			return err
		},
	}
	for name, do := range refused {
		if err := do(); !apierrors.IsForbidden(err) {
			t.Errorf("%s: got %v, want Forbidden", name, err)
		}
	}
}

// TestPolicy: who may create a Secret by its name may make it a service-account-token Secret, which a controller fills with
// a ServiceAccount's token; the policy forbids just that, and to this account alone.
func TestPolicy(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := newRights(ctx, t, func([]rbacv1.PolicyRule) {})
	secrets := r.client.CoreV1().Secrets(r.namespace)
	const tokenType = string(corev1.SecretTypeServiceAccountToken)
	dryRun := func(by kubernetes.Interface, kind string) error {
		_, err := by.CoreV1().Secrets(r.namespace).Patch(ctx, "made", types.ApplyPatchType,
			secretOf("made", kind, "1"), metav1.PatchOptions{FieldManager: "e2e", DryRun: []string{metav1.DryRunAll}})
		return err
	}
	// The policy is compiled some time after it was made; until then RBAC alone lets this pass.
	until(ctx, t, "the policy is in force", func(context.Context) (bool, error) {
		return dryRun(r.client, tokenType) != nil, nil
	})
	want := `secrets "made" is forbidden: ValidatingAdmissionPolicy '` + r.account.Name + `' with binding '` + r.account.Name +
		`' denied request: flux-token-refresher creates Secrets of the type Opaque only`
	for _, kind := range []string{tokenType, string(corev1.SecretTypeBootstrapToken), "example.com/own"} {
		if err := r.apply(ctx, "made", secretOf("made", kind, "1")); !apierrors.IsForbidden(err) || err.Error() != want {
			t.Errorf("creating a Secret of the type %s: got %v, want %s", kind, err, want)
		}
	}
	if err := dryRun(r.admin, tokenType); err != nil {
		t.Errorf("another account is refused: %v", err)
	}
	if err := r.apply(ctx, "made", secretOf("made", "Opaque", "1")); err != nil {
		t.Errorf("creating an Opaque Secret: %v", err)
	}
	if err := r.apply(ctx, "made", secretOf("made", tokenType, "")); !apierrors.IsInvalid(err) {
		t.Errorf("changing its type afterwards: got %v, want Invalid", err)
	}
	got, err := secrets.List(ctx, only("made"))
	if err != nil || len(got.Items) != 1 || got.Items[0].Type != corev1.SecretTypeOpaque {
		t.Errorf("there is %v, %v; want one Opaque Secret", got, err)
	}
}

// watchSecret watches until the API server says that all that was there has been told.
func (r *rights) watchSecret(ctx context.Context, name string) error {
	options := only(name)
	options.SendInitialEvents = new(true)
	options.AllowWatchBookmarks = true
	options.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	w, err := r.client.CoreV1().Secrets(r.namespace).Watch(ctx, options)
	if err != nil {
		return err
	}
	defer w.Stop()
	seen := 0
	for {
		select {
		case event := <-w.ResultChan():
			switch event.Type {
			case watch.Added:
				seen++
			case watch.Bookmark:
				if seen != 1 {
					return fmt.Errorf("%d Secrets before the bookmark, want 1", seen)
				}
				return nil
			default:
				return fmt.Errorf("unexpected %v", event)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *rights) apply(ctx context.Context, name string, body []byte) error {
	_, err := r.client.CoreV1().Secrets(r.namespace).Patch(ctx, name, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: "e2e", Force: new(true)})
	return err
}

func (r *rights) event(name string) *corev1.Event {
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: name},
		Reason:     "Refreshed", Type: corev1.EventTypeNormal,
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: r.namespace, Name: "kept"},
	}
}

// secretOf is a Secret to apply; resourceVersion "1" means: create it or fail.
func secretOf(name, kind, resourceVersion string) []byte {
	metadata := map[string]any{"name": name}
	if resourceVersion != "" {
		metadata["resourceVersion"] = resourceVersion
	}
	if kind == string(corev1.SecretTypeServiceAccountToken) {
		metadata["annotations"] = map[string]any{corev1.ServiceAccountNameKey: "default"}
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind,
		"data": map[string][]byte{"bearerToken": []byte("token")},
	})
	if err != nil {
		panic(err) // it always marshals
	}
	return body
}

func only(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: "metadata.name=" + name}
}
