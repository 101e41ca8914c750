package e2e

import (
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flux-token-refresher/e2e/internal/manifests"
)

// TestManifestsSideBySide: two installations share nothing but the names that a user sees.
func TestManifestsSideBySide(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"kustomization.yaml": "resources: [objects.yaml]\nnamespace: flux-system\n",
		"objects.yaml": `apiVersion: v1
kind: ServiceAccount
metadata: {name: replica, namespace: flux-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: replica}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: replica, namespace: flux-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: replica}
subjects: [{kind: ServiceAccount, name: replica, namespace: flux-system}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: replica}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], resources: [secrets], operations: [CREATE]}]
  validations: [{expression: "true"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: replica}
spec: {policyName: replica, validationActions: [Deny]}
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client := newClient(t)
	namespaces := []string{newNamespace(t), newNamespace(t)}
	for _, namespace := range namespaces {
		objects, err := manifests.Render(dir, namespace)
		if err != nil {
			t.Fatal(err)
		}
		if err := manifests.Apply(t.Context(), controlPlane.Config(), namespace, objects); err != nil {
			t.Fatal(err)
		}
	}
	for _, namespace := range namespaces {
		suffixed := "replica-" + namespace
		binding, err := client.RbacV1().RoleBindings(namespace).Get(t.Context(), "replica", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := binding.RoleRef.Name; got != suffixed {
			t.Errorf("the RoleBinding refers to %s, want %s", got, suffixed)
		}
		if got := binding.Subjects[0].Namespace; got != namespace {
			t.Errorf("the RoleBinding's subject is in %s, want %s", got, namespace)
		}
		if _, err := client.RbacV1().ClusterRoles().Get(t.Context(), suffixed, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		policies := client.AdmissionregistrationV1()
		policy, err := policies.ValidatingAdmissionPolicyBindings().Get(t.Context(), suffixed, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := policy.Spec.PolicyName; got != suffixed {
			t.Errorf("the policy's binding refers to %s, want %s", got, suffixed)
		}
		if _, err := policies.ValidatingAdmissionPolicies().Get(t.Context(), suffixed, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
}
