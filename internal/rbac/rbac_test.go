package rbac_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
)

var account = types.NamespacedName{Namespace: "tokens", Name: "refresher"}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("config.yaml", []byte("apiVersion: flux-token-refresher/v1alpha1\nkind: Config\n"+text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The rules about Flux's kinds.
const (
	readsSources = "[get list watch patch] [source.toolkit.fluxcd.io] [buckets gitrepositories helmcharts helmrepositories ocirepositories] []"
	readsImages  = "[get list watch patch] [image.toolkit.fluxcd.io] [imagerepositories imageupdateautomations] []"
)

// TestRoles compares the rules of each namespace, one a line.
func TestRoles(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		config string
		want   map[string][]string
	}{
		"one target": {
			config: `
identities: [{name: repos, type: workloadIdentity}]
targets: [{secret: tokens/pull, identity: repos}]`,
			want: map[string][]string{"tokens": {
				"[get list watch patch] [] [secrets] [pull]",
				"[create patch] [] [events] []",
				readsSources,
				readsImages,
				"[get watch update] [coordination.k8s.io] [leases] [flux-token-refresher]",
				"[create] [coordination.k8s.io] [leases] []",
			}},
		},
		"namespaces, creation, credentials and accounts that two identities share, and a Lease elsewhere": {
			config: `
identities:
  - {name: repos, type: workloadIdentity}
  - {name: a, type: clientSecret, credentialSecret: credentials/one}
  - {name: b, type: clientSecret, credentialSecret: credentials/one}
  - {name: c, type: clientCertificate, credentialSecret: team-a/two}
  - {name: d, type: workloadIdentity, serviceAccount: accounts/repos}
  - {name: e, type: workloadIdentity, serviceAccount: accounts/repos}
  - {name: f, type: workloadIdentity, serviceAccount: credentials/other}
  - {name: g, type: managedIdentity}
targets:
  - {secret: team-b/push, identity: a, create: true}
  - {secret: team-a/push, identity: b, create: true}
  - {secret: team-a/pull, identity: repos}
election: {lease: leases/leader}`,
			want: map[string][]string{
				"accounts": {
					"[get] [] [serviceaccounts] [repos]",
					"[create] [] [serviceaccounts/token] [repos]",
				},
				"credentials": {
					"[get] [] [secrets] [one]",
					"[get] [] [serviceaccounts] [other]",
					"[create] [] [serviceaccounts/token] [other]",
				},
				"leases": {
					"[get watch update] [coordination.k8s.io] [leases] [leader]",
					"[create] [coordination.k8s.io] [leases] []",
				},
				"team-a": {
					"[get list watch patch] [] [secrets] [pull push]",
					"[create] [] [secrets] [push]",
					"[get] [] [secrets] [two]",
					"[create patch] [] [events] []",
					readsSources,
					readsImages,
				},
				"team-b": {
					"[get list watch patch] [] [secrets] [push]",
					"[create] [] [secrets] [push]",
					"[create patch] [] [events] []",
					readsSources,
					readsImages,
				},
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := map[string][]string{}
			for _, object := range rbac.Objects(parse(t, test.config), account) {
				if role, ok := object.(*rbacv1.Role); ok {
					for _, r := range role.Rules {
						got[role.Namespace] = append(got[role.Namespace], fmt.Sprint(r.Verbs, " ", r.APIGroups, " ", r.Resources, " ", r.ResourceNames))
					}
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestManifests: what the base of deploy/kustomize grants is what config rbac prints for its configuration.
func TestManifests(t *testing.T) {
	t.Parallel()
	const base = "../../deploy/kustomize/base/"
	c, err := config.Load(base+"config.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := rbac.YAML(rbac.Objects(c, types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"}))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(base + "rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("rbac.yaml (-want +got)\n%s", diff)
	}
}

// TestYAML holds the whole of the text that people apply.
func TestYAML(t *testing.T) {
	t.Parallel()
	c := parse(t, `
identities: [{name: repos, type: workloadIdentity}]
targets: [{secret: team-a/push, identity: repos, create: true}]
election: {lease: team-a/leader}`)
	got, err := rbac.YAML(rbac.Objects(c, account))
	if err != nil {
		t.Fatal(err)
	}
	const want = `apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: refresher
  namespace: team-a
rules:
- apiGroups:
  - ""
  resourceNames:
  - push
  resources:
  - secrets
  verbs:
  - get
  - list
  - watch
  - patch
- apiGroups:
  - ""
  resourceNames:
  - push
  resources:
  - secrets
  verbs:
  - create
- apiGroups:
  - ""
  resources:
  - events
  verbs:
  - create
  - patch
- apiGroups:
  - source.toolkit.fluxcd.io
  resources:
  - buckets
  - gitrepositories
  - helmcharts
  - helmrepositories
  - ocirepositories
  verbs:
  - get
  - list
  - watch
  - patch
- apiGroups:
  - image.toolkit.fluxcd.io
  resources:
  - imagerepositories
  - imageupdateautomations
  verbs:
  - get
  - list
  - watch
  - patch
- apiGroups:
  - coordination.k8s.io
  resourceNames:
  - leader
  resources:
  - leases
  verbs:
  - get
  - watch
  - update
- apiGroups:
  - coordination.k8s.io
  resources:
  - leases
  verbs:
  - create
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: refresher
  namespace: team-a
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: refresher
subjects:
- kind: ServiceAccount
  name: refresher
  namespace: tokens
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: refresher
spec:
  failurePolicy: Fail
  matchConditions:
  - expression: request.userInfo.username.startsWith('system:serviceaccount:') &&
      request.userInfo.username.endsWith(':' + 'refresher')
    name: account
  matchConstraints:
    resourceRules:
    - apiGroups:
      - ""
      apiVersions:
      - v1
      operations:
      - CREATE
      resources:
      - secrets
    - apiGroups:
      - source.toolkit.fluxcd.io
      - image.toolkit.fluxcd.io
      apiVersions:
      - '*'
      operations:
      - UPDATE
      resources:
      - '*'
  validations:
  - expression: request.operation != 'CREATE' || object.type == 'Opaque'
    message: flux-token-refresher creates Secrets of the type Opaque only
    reason: Forbidden
  - expression: |-
      request.operation != 'UPDATE' ||
      variables.after.?spec == variables.before.?spec &&
      variables.after.metadata.?labels == variables.before.metadata.?labels &&
      variables.after.metadata.?finalizers == variables.before.metadata.?finalizers &&
      variables.after.metadata.?ownerReferences == variables.before.metadata.?ownerReferences &&
      variables.annotationsAfter.all(key, key == 'reconcile.fluxcd.io/requestedAt' ||
        key in variables.annotationsBefore && variables.annotationsAfter[key] == variables.annotationsBefore[key]) &&
      variables.annotationsBefore.all(key, key == 'reconcile.fluxcd.io/requestedAt' || key in variables.annotationsAfter)
    message: flux-token-refresher changes nothing of a source but the annotation reconcile.fluxcd.io/requestedAt
    reason: Forbidden
  variables:
  - expression: dyn(object)
    name: after
  - expression: dyn(oldObject)
    name: before
  - expression: variables.after.metadata.?annotations.orValue({})
    name: annotationsAfter
  - expression: variables.before.metadata.?annotations.orValue({})
    name: annotationsBefore
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: refresher
spec:
  policyName: refresher
  validationActions:
  - Deny
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
