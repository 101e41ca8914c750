// Package rbac says which rights an installation needs: it makes, of a configuration, the Roles and the admission policy
// of its ServiceAccount. It is their one source; the manifests of the product are compared with it.
package rbac

import (
	"bytes"
	"maps"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"flux-token-refresher/internal/config"
	"flux-token-refresher/refresh"
)

// Objects gives what account needs to do what c says: for each namespace, in the order of their names, a Role and its
// RoleBinding; then the ValidatingAdmissionPolicy and its binding. All have the account's name: installations that share a
// namespace need accounts of different names. A Lease without a namespace is in the account's.
func Objects(c *config.Config, account types.NamespacedName) []runtime.Object {
	var out []runtime.Object
	namespaces := needs(c, account)
	for _, namespace := range slices.Sorted(maps.Keys(namespaces)) {
		out = append(out,
			role(namespace, account, namespaces[namespace]),
			roleBinding(namespace, account))
	}
	return append(out, policy(account), policyBinding(account))
}

// YAML writes objects as one stream of documents.
func YAML(objects []runtime.Object) ([]byte, error) {
	var out bytes.Buffer
	for i, object := range objects {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		if err != nil {
			return nil, err
		}
		delete(content, "status") // an empty one, which nobody has to write
		document, err := yaml.Marshal(content)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			out.WriteString("---\n")
		}
		out.Write(document)
	}
	return out.Bytes(), nil
}

// sources are the kinds of Flux that read a Secret: those with a secretRef, and those that pull or push with the Secret of such a
// source.
var sources = []struct {
	name      string
	resources []string
}{
	{"source.toolkit.fluxcd.io", []string{"buckets", "gitrepositories", "helmcharts", "helmrepositories", "ocirepositories"}},
	{"image.toolkit.fluxcd.io", []string{"imagerepositories", "imageupdateautomations"}},
}

// need is what is done in one namespace, by the names of objects.
type need struct {
	// kept are the Secrets of targets; created those of them that may be created; read the credentials; accounts the
	// ServiceAccounts whose tokens are exchanged.
	kept, created, read, accounts []string
	lease                         string
}

func needs(c *config.Config, account types.NamespacedName) map[string]*need {
	out := map[string]*need{}
	in := func(namespace string) *need {
		if out[namespace] == nil {
			out[namespace] = &need{}
		}
		return out[namespace]
	}
	for _, t := range c.Targets {
		n := in(t.Name.Namespace)
		n.kept = append(n.kept, t.Name.Name)
		if t.Create {
			n.created = append(n.created, t.Name.Name)
		}
	}
	for _, id := range c.Identities {
		if s := id.CredentialSecret; s != (refresh.Name{}) {
			n := in(s.Namespace)
			n.read = append(n.read, s.Name)
		}
		if a := id.ServiceAccount; a != (refresh.Name{}) {
			n := in(a.Namespace)
			n.accounts = append(n.accounts, a.Name)
		}
	}
	lease := c.Election.Lease
	if lease.Namespace == "" {
		lease.Namespace = account.Namespace
	}
	in(lease.Namespace).lease = lease.Name
	return out
}

// rules are the least rights that do: measured with kube-apiserver, each of them is refused when its verb is missing.
func (n *need) rules() []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	named := func(group, resource string, names []string, verbs ...string) {
		if names := slices.Compact(slices.Sorted(slices.Values(names))); len(names) > 0 {
			out = append(out, rbacv1.PolicyRule{
				APIGroups: []string{group}, Resources: []string{resource}, ResourceNames: names, Verbs: verbs,
			})
		}
	}
	all := func(group string, resources []string, verbs ...string) {
		out = append(out, rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs})
	}
	// A watch or list that is limited to metadata.name=NAME is authorized by that name. The list is what a watch falls back
	// to where the API server cannot begin a watch with what is there. The get is for a report about a token (which one is
	// it about?) and for the token that is tried before another one is minted.
	named("", "secrets", n.kept, "get", "list", "watch", "patch")
	// Creating by server-side apply is authorized by name too, unlike by POST; it needs patch as well.
	named("", "secrets", n.created, "create")
	named("", "secrets", n.read, "get")
	// Their annotations say who they are in Entra. RBAC cannot limit what a token is for.
	named("", "serviceaccounts", n.accounts, "get")
	named("", "serviceaccounts/token", n.accounts, "create")
	if len(n.kept) > 0 {
		// What happened to a Secret is told beside it. An Event's name is not known before.
		all("", []string{"events"}, "create", "patch")
		// Who reads a Secret is beside it, by a name that anybody may choose. The patch is for the annotation that wakes a source;
		// the policy forbids all else.
		for _, group := range sources {
			all(group.name, group.resources, "get", "list", "watch", "patch")
		}
	}
	if n.lease != "" {
		named("coordination.k8s.io", "leases", []string{n.lease}, "get", "watch", "update")
		// A Lease is created by POST, which RBAC cannot limit to a name.
		all("coordination.k8s.io", []string{"leases"}, "create")
	}
	return out
}

func role(namespace string, account types.NamespacedName, n *need) *rbacv1.Role {
	return &rbacv1.Role{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account.Name},
		Rules:      n.rules(),
	}
}

func roleBinding(namespace string, account types.NamespacedName) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account.Name},
		Subjects: []rbacv1.Subject{{
			Kind: rbacv1.ServiceAccountKind, Namespace: account.Namespace, Name: account.Name,
		}},
	}
}

// unchanged is true when a source has a new value of the annotation that wakes it, and nothing else is new. It names what may not change,
// because metadata also holds what the API server writes at each update. Sources have no other fields; the status is not
// written by such a request.
const unchanged = `request.operation != 'UPDATE' ||
variables.after.?spec == variables.before.?spec &&
variables.after.metadata.?labels == variables.before.metadata.?labels &&
variables.after.metadata.?finalizers == variables.before.metadata.?finalizers &&
variables.after.metadata.?ownerReferences == variables.before.metadata.?ownerReferences &&
variables.annotationsAfter.all(key, key == 'reconcile.fluxcd.io/requestedAt' ||
  key in variables.annotationsBefore && variables.annotationsAfter[key] == variables.annotationsBefore[key]) &&
variables.annotationsBefore.all(key, key == 'reconcile.fluxcd.io/requestedAt' || key in variables.annotationsAfter)`

// policy closes what RBAC leaves open. Who may create a Secret by name may create one of the type
// kubernetes.io/service-account-token, which a controller fills with the token of any ServiceAccount of the namespace. And who
// may annotate a source may give it another URL, to which source-controller then sends the token.
//
// It is about accounts of this name in any namespace: an installation that is moved to another one by kustomize or
// Flux, which do not look into CEL, is never without it, and two installations agree on it.
func policy(account types.NamespacedName) *admissionv1.ValidatingAdmissionPolicy {
	update := admissionv1.RuleWithOperations{
		Operations: []admissionv1.OperationType{admissionv1.Update},
		Rule:       admissionv1.Rule{APIVersions: []string{"*"}, Resources: []string{"*"}},
	}
	for _, group := range sources {
		update.APIGroups = append(update.APIGroups, group.name)
	}
	return &admissionv1.ValidatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: account.Name},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: new(admissionv1.Fail),
			MatchConstraints: &admissionv1.MatchResources{
				ResourceRules: []admissionv1.NamedRuleWithOperations{
					{RuleWithOperations: admissionv1.RuleWithOperations{
						Operations: []admissionv1.OperationType{admissionv1.Create},
						Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets"}},
					}},
					{RuleWithOperations: update},
				},
			},
			MatchConditions: []admissionv1.MatchCondition{{
				Name: "account",
				// The name stands in quotes of its own, where a replacement of kustomize can reach it.
				Expression: "request.userInfo.username.startsWith('system:serviceaccount:') && " +
					"request.userInfo.username.endsWith(':' + '" + account.Name + "')",
			}},
			// Without their types, because Kubernetes checks expressions against Secrets too, which have no spec.
			Variables: []admissionv1.Variable{
				{Name: "after", Expression: "dyn(object)"},
				{Name: "before", Expression: "dyn(oldObject)"},
				{Name: "annotationsAfter", Expression: "variables.after.metadata.?annotations.orValue({})"},
				{Name: "annotationsBefore", Expression: "variables.before.metadata.?annotations.orValue({})"},
			},
			Validations: []admissionv1.Validation{{
				Expression: "request.operation != 'CREATE' || object.type == 'Opaque'",
				Message:    "flux-token-refresher creates Secrets of the type Opaque only",
				Reason:     new(metav1.StatusReasonForbidden),
			}, {
				Expression: unchanged,
				Message:    "flux-token-refresher changes nothing of a source but the annotation reconcile.fluxcd.io/requestedAt",
				Reason:     new(metav1.StatusReasonForbidden),
			}},
		},
	}
}

func policyBinding(account types.NamespacedName) *admissionv1.ValidatingAdmissionPolicyBinding {
	return &admissionv1.ValidatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicyBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: account.Name},
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName:        account.Name,
			ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}
}
