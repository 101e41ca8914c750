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
	authenticationv1 "k8s.io/api/authentication/v1"
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
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"flux-token-refresher/e2e/internal/await"
	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
)

// rightsConfig has one of everything that leads to a right, in one namespace.
const rightsConfig = `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities:
  - {name: repos, type: workloadIdentity}
  - {name: other, type: clientSecret, credentialSecret: NAMESPACE/credential}
  - {name: account, type: workloadIdentity, serviceAccount: NAMESPACE/account}
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
	// sources is for Flux's kinds, adminSources the administrator's.
	sources, adminSources dynamic.Interface
}

// source is where objects of a kind are.
func (r *rights) source(k sourceKind) dynamic.ResourceInterface {
	return r.sources.Resource(k.gvr()).Namespace(r.namespace)
}

// newRights makes the objects of the configuration after change had a look at the Role's rules, and waits until they
// are in force.
func newRights(ctx context.Context, t *testing.T, change func([]rbacv1.PolicyRule)) *rights {
	t.Helper()
	admin, namespace := newClient(t), newNamespace(t)
	r := &rights{
		namespace: namespace, account: types.NamespacedName{Namespace: namespace, Name: namespace},
		admin: admin, adminSources: newDynamic(t),
	}
	installSources(ctx, t)
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
	for _, name := range []string{r.account.Name, "account", "somebody-elses"} {
		_, e := admin.CoreV1().ServiceAccounts(namespace).Create(ctx,
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		err = errors.Join(err, e)
	}
	for _, name := range []string{"kept", "credential", "somebody-elses"} {
		_, e := admin.CoreV1().Secrets(namespace).Create(ctx,
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		err = errors.Join(err, e)
	}
	for _, object := range objects {
		err = errors.Join(err, create(ctx, admin, object))
	}
	for _, k := range sourceKinds {
		_, e := r.adminSources.Resource(k.gvr()).Namespace(namespace).Create(ctx, k.object("source"), metav1.CreateOptions{})
		err = errors.Join(err, e)
	}
	_, e := admin.CoreV1().Events(namespace).Create(ctx, r.event("told"), metav1.CreateOptions{})
	if err := errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	token, err := controlPlane.Token(ctx, r.account.Namespace, r.account.Name)
	if err != nil {
		t.Fatal(err)
	}
	var err1, err2 error
	access := controlPlane.TokenConfig(token)
	r.client, err1 = kubernetes.NewForConfig(access)
	r.sources, err2 = dynamic.NewForConfig(access)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	granted := slices.IndexFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return len(r.Verbs) > 0 })
	awaitRule(t, access, namespace, role.Rules[granted])
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

// awaitRule waits until an account has the rights of a rule.
func awaitRule(t *testing.T, access *rest.Config, namespace string, rule rbacv1.PolicyRule) {
	t.Helper()
	what := authorizationv1.ResourceAttributes{
		Namespace: namespace, Group: rule.APIGroups[0], Resource: rule.Resources[0], Verb: rule.Verbs[0],
	}
	if len(rule.ResourceNames) > 0 {
		what.Name = rule.ResourceNames[0]
	}
	if err := await.Allowed(t.Context(), access, what); err != nil {
		t.Fatal(err)
	}
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
var operations = slices.Concat(ownOperations, onSources("source"), onSources("image"))

var ownOperations = []operation{
	{"read a Secret, whose token a report is about", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoreV1().Secrets(r.namespace).Get(ctx, "kept", metav1.GetOptions{})
		return err
	}},
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
	{"read a ServiceAccount's annotations", func(ctx context.Context, r *rights) error {
		_, err := r.client.CoreV1().ServiceAccounts(r.namespace).Get(ctx, "account", metav1.GetOptions{})
		return err
	}},
	{"get a ServiceAccount's token", func(ctx context.Context, r *rights) error { return r.token(ctx, "account") }},
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

// onSources is what is done to each kind of a group.
func onSources(group string) []operation {
	each := func(do func(context.Context, dynamic.ResourceInterface) error) func(context.Context, *rights) error {
		return func(ctx context.Context, r *rights) error {
			for _, k := range sourceKinds {
				if !strings.HasPrefix(k.group, group+".") {
					continue
				}
				if err := do(ctx, r.source(k)); err != nil {
					return fmt.Errorf("%s: %w", k.kind, err)
				}
			}
			return nil
		}
	}
	return []operation{
		{"read of the group " + group, each(func(ctx context.Context, of dynamic.ResourceInterface) error {
			_, err := of.Get(ctx, "source", metav1.GetOptions{})
			return err
		})},
		{"list of the group " + group, each(func(ctx context.Context, of dynamic.ResourceInterface) error {
			_, err := of.List(ctx, metav1.ListOptions{})
			return err
		})},
		{"watch of the group " + group, each(func(ctx context.Context, of dynamic.ResourceInterface) error {
			w, err := of.Watch(ctx, metav1.ListOptions{})
			if err == nil {
				w.Stop()
			}
			return err
		})},
		{"wake of the group " + group, each(func(ctx context.Context, of dynamic.ResourceInterface) error {
			_, err := of.Patch(ctx, "source", types.MergePatchType, wake, metav1.PatchOptions{})
			return err
		})},
	}
}

// wake is the patch that makes Flux look at a source again.
var wake = []byte(`{"metadata":{"annotations":{"reconcile.fluxcd.io/requestedAt":"2026-01-01T00:00:00Z"}}}`)

// without names what is refused when a verb is missing that a rule grants, by the rule's first resource.
var without = map[string][]string{
	"list secrets":  {"list a Secret, where a watch cannot begin so"},
	"watch secrets": {"watch a Secret, beginning with what is there"},
	"patch secrets": {
		"write a Secret by apply", "create a Secret by apply", "annotate a Secret by merge patch"},
	"create secrets": {"create a Secret by apply"},
	"get secrets":    {"read a Secret, whose token a report is about", "read a credential"},
	"create events":  {"tell an Event"},

	"get serviceaccounts":          {"read a ServiceAccount's annotations"},
	"create serviceaccounts/token": {"get a ServiceAccount's token"},

	"patch events":  {"tell an Event again"},
	"get leases":    {"read the Lease"},
	"watch leases":  {"watch the Lease"},
	"update leases": {"renew the Lease"},
	"create leases": {"create the Lease"},

	"get buckets":             {"read of the group source"},
	"list buckets":            {"list of the group source"},
	"watch buckets":           {"watch of the group source"},
	"patch buckets":           {"wake of the group source"},
	"get imagerepositories":   {"read of the group image"},
	"list imagerepositories":  {"list of the group image"},
	"watch imagerepositories": {"watch of the group image"},
	"patch imagerepositories": {"wake of the group image"},
}

func TestRightsAreEnough(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := newRights(ctx, t, func(rules []rbacv1.PolicyRule) {
		for _, rule := range rules {
			for _, resource := range rule.Resources[1:] {
				if !slices.ContainsFunc(sourceKinds, func(k sourceKind) bool { return k.resource == resource && k.group == rule.APIGroups[0] }) {
					t.Errorf("granted, but nothing shows that it is needed: %s", resource)
				}
			}
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
	git := gitRepository
	refused := map[string]func() error{
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
		"a token of another account": func() error { return r.token(ctx, "somebody-elses") },
		"a token of its own account": func() error { return r.token(ctx, r.account.Name) },
		"another account": func() error {
			_, err := r.client.CoreV1().ServiceAccounts(r.namespace).Get(ctx, "somebody-elses", metav1.GetOptions{})
			return err
		},
		"list the accounts": func() error {
			_, err := r.client.CoreV1().ServiceAccounts(r.namespace).List(ctx, only("account"))
			return err
		},
		"delete a target":  func() error { return secrets.Delete(ctx, "kept", metav1.DeleteOptions{}) },
		"another Lease":    func() error { _, err := leases.Get(ctx, "other", metav1.GetOptions{}); return err },
		"delete the Lease": func() error { return leases.Delete(ctx, "leader", metav1.DeleteOptions{}) },
		"create a source": func() error {
			_, err := r.source(git).Create(ctx, git.object("new"), metav1.CreateOptions{})
			return err
		},
		"create a source by apply": func() error {
			_, err := r.source(git).Apply(ctx, "new", git.object("new"), metav1.ApplyOptions{FieldManager: "e2e"})
			return err
		},
		"replace a source": func() error {
			_, err := r.source(git).Update(ctx, git.object("source"), metav1.UpdateOptions{})
			return err
		},
		"delete a source": func() error { return r.source(git).Delete(ctx, "source", metav1.DeleteOptions{}) },
		"write the status of a source": func() error {
			_, err := r.source(git).Patch(ctx, "source", types.MergePatchType, []byte(`{"status":{"a":"b"}}`), metav1.PatchOptions{}, "status")
			return err
		},
		"sources of another namespace": func() error {
			_, err := r.sources.Resource(git.gvr()).Namespace("default").List(ctx, metav1.ListOptions{})
			return err
		},
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

// TestSourcesPolicy: who may annotate a source may do all to it, and then source-controller sends the token to another host. The
// policy leaves the annotation that wakes, and only to this account.
func TestSourcesPolicy(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := newRights(ctx, t, func([]rbacv1.PolicyRule) {})
	git := gitRepository
	dressed := git.object("dressed")
	dressed.SetLabels(map[string]string{"team": "a"})
	dressed.SetAnnotations(map[string]string{"owner": "a", "reconcile.fluxcd.io/requestedAt": "before"})
	dressed.SetFinalizers([]string{"example.com/keep"})
	dressed.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: "1"}})
	if _, err := r.adminSources.Resource(git.gvr()).Namespace(r.namespace).Create(ctx, dressed, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	dryRun := func(by dynamic.Interface, k sourceKind, name string, kind types.PatchType, patch string) error {
		options := metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}
		if kind == types.ApplyPatchType {
			options.FieldManager, options.Force = "e2e", new(true)
		}
		_, err := by.Resource(k.gvr()).Namespace(r.namespace).Patch(ctx, name, kind, []byte(patch), options)
		return err
	}
	const another = `{"spec":{"url":"https://evil.example/repo"}}`
	until(ctx, t, "the policy is in force", func(context.Context) (bool, error) {
		return dryRun(r.sources, git, "source", types.MergePatchType, another) != nil, nil
	})

	const merge, json, apply = types.MergePatchType, types.JSONPatchType, types.ApplyPatchType
	type attempt struct {
		name  string
		kind  types.PatchType
		patch string
	}
	for _, a := range []attempt{
		{"source", merge, string(wake)},
		{"dressed", merge, string(wake)},
		{"source", json, `[{"op":"add","path":"/metadata/annotations","value":{"reconcile.fluxcd.io/requestedAt":"now"}}]`},
		{"dressed", merge, `{"metadata":{"annotations":{"reconcile.fluxcd.io/requestedAt":null}}}`},
		{"dressed", apply, `{"apiVersion":"source.toolkit.fluxcd.io/v1","kind":"GitRepository","metadata":{"name":"dressed","annotations":{"reconcile.fluxcd.io/requestedAt":"now"}}}`},
		{"dressed", merge, `{"metadata":{"labels":{"team":"a"}}}`},     // nothing changes
		{"source", merge, `{"status":{"url":"https://evil.example"}}`}, // which this request does not write
	} {
		if err := dryRun(r.sources, git, a.name, a.kind, a.patch); err != nil {
			t.Errorf("%s %s: %v", a.name, a.patch, err)
		}
	}
	for _, a := range []attempt{
		{"source", merge, another},
		{"dressed", merge, another},
		{"source", merge, `{"spec":{"secretRef":{"name":"kept"}}}`},
		{"source", merge, `{"spec":{"ignore":null}}`},
		{"source", merge, `{"spec":{"suspend":true},"metadata":{"annotations":{"reconcile.fluxcd.io/requestedAt":"now"}}}`},
		{"source", apply, `{"apiVersion":"source.toolkit.fluxcd.io/v1","kind":"GitRepository","metadata":{"name":"source"},"spec":{"url":"https://evil.example/repo"}}`},
		{"source", merge, `{"metadata":{"labels":{"team":"b"}}}`},
		{"dressed", merge, `{"metadata":{"labels":{"team":"b"}}}`},
		{"dressed", merge, `{"metadata":{"labels":{"another":"b"}}}`},
		{"dressed", merge, `{"metadata":{"labels":null}}`},
		{"source", merge, `{"metadata":{"annotations":{"owner":"b"}}}`},
		{"source", merge, `{"metadata":{"annotations":{"owner":"b","reconcile.fluxcd.io/requestedAt":"now"}}}`},
		{"dressed", merge, `{"metadata":{"annotations":{"owner":"b"}}}`},
		{"dressed", merge, `{"metadata":{"annotations":{"another":"b"}}}`},
		{"dressed", merge, `{"metadata":{"annotations":{"owner":null}}}`},
		{"dressed", merge, `{"metadata":{"annotations":null}}`},
		{"dressed", json, `[{"op":"move","from":"/metadata/annotations/owner","path":"/metadata/annotations/renamed"}]`},
		{"source", merge, `{"metadata":{"finalizers":["example.com/keep"]}}`},
		{"dressed", merge, `{"metadata":{"finalizers":null}}`},
		{"source", merge, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"1"}]}}`},
		{"dressed", merge, `{"metadata":{"ownerReferences":null}}`},
	} {
		want := fmt.Sprintf("gitrepositories.source.toolkit.fluxcd.io %q is forbidden: ValidatingAdmissionPolicy '%s' with binding '%[2]s' "+
			"denied request: flux-token-refresher changes nothing of a source but the annotation reconcile.fluxcd.io/requestedAt", a.name, r.account.Name)
		if err := dryRun(r.sources, git, a.name, a.kind, a.patch); err == nil || err.Error() != want {
			t.Errorf("%s %s: got %v, want %s", a.name, a.patch, err, want)
		}
	}
	for _, k := range sourceKinds {
		if err := dryRun(r.sources, k, "source", merge, string(wake)); err != nil {
			t.Errorf("waking %s: %v", k.kind, err)
		}
		if err := dryRun(r.sources, k, "source", merge, `{"spec":{"interval":"7m"}}`); !apierrors.IsForbidden(err) {
			t.Errorf("another interval of %s: got %v, want Forbidden", k.kind, err)
		}
	}
	if err := dryRun(r.adminSources, git, "source", merge, another); err != nil {
		t.Errorf("another account is refused: %v", err)
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

func (r *rights) token(ctx context.Context, account string) error {
	_, err := r.client.CoreV1().ServiceAccounts(r.namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
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
