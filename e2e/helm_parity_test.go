package e2e

// The Helm chart beside deploy/kustomize and `config rbac`: the same objects, the same rights.

import (
	"fmt"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/internal/config"
)

// TestHelmAsKustomize: a release is what an overlay makes of the same configuration.
func TestHelmAsKustomize(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		// kustomization is that of an overlay; DEPLOY stands for the folder deploy. The image has the chart's tag besides.
		kustomization string
		config        string
		release       types.NamespacedName
		values        string
	}{
		"the base": {
			kustomization: "resources: [DEPLOY/kustomize/base]",
			release:       types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
		},
		"events, with Flux's end of them": {
			kustomization: "resources: [DEPLOY/kustomize/events, DEPLOY/flux]",
			release:       types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
			values:        "events: {enabled: true}\nflux: {notifications: true}",
		},
		"events over TLS": {
			kustomization: `resources: [DEPLOY/kustomize/events, DEPLOY/flux]
components: [DEPLOY/kustomize/components/events-tls]
configMapGenerator:
  - {name: flux-token-refresher-config, namespace: flux-system, behavior: replace, files: [config.yaml]}`,
			config: `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities:
  - name: repos
    type: workloadIdentity
targets:
  - secret: flux-system/flux-system
    identity: repos
    create: true
events:
  tls: {certFile: /etc/flux-token-refresher-events-tls/tls.crt, keyFile: /etc/flux-token-refresher-events-tls/tls.key}
  senders:
    - name: flux
      hmacKeyFile: /etc/flux-token-refresher-events/token
      namespaces: ["*"]
`,
			release: types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
			values:  "events: {enabled: true, tlsSecret: flux-token-refresher-events-tls}\nflux: {notifications: true}",
		},
		"a PodMonitor": {
			kustomization: "resources: [DEPLOY/kustomize/base]\ncomponents: [DEPLOY/kustomize/components/pod-monitor]",
			release:       types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
			values:        "podMonitor: {enabled: true}",
		},
		"alerts and the dashboard": {
			kustomization: "resources: [DEPLOY/kustomize/base]\ncomponents: [DEPLOY/alerts, DEPLOY/dashboards]",
			release:       types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
			values:        "alerts: {enabled: true}\ndashboard: {enabled: true}",
		},
		"another namespace and name": {
			kustomization: `resources: [DEPLOY/kustomize/events]
namespace: tokens
namePrefix: prod-
transformers: [DEPLOY/kustomize/account]
configMapGenerator:
  - {name: flux-token-refresher-config, namespace: flux-system, behavior: replace, files: [config.yaml]}`,
			config: `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities: [{name: repos, type: workloadIdentity}]
targets: [{secret: tokens/flux-system, identity: repos, create: true}]
events: {senders: [{name: flux, hmacKeyFile: /etc/flux-token-refresher-events/token, namespaces: [tokens]}]}`,
			release: types.NamespacedName{Namespace: "tokens", Name: "prod-flux-token-refresher"},
			values: `
config:
  targets: [{secret: tokens/flux-system, identity: repos, create: true}]
  # The release's own by default; an overlay cannot tell the configuration what it is called.
  election: {lease: tokens/flux-token-refresher}
events: {enabled: true, namespaces: [tokens]}`,
		},
		"many namespaces": {
			kustomization: "resources: [DEPLOY/kustomize/many-namespaces]",
			release:       own,
			values: `
config:
  identities:
    - {name: platform, type: workloadIdentity}
    - {name: team-b, type: workloadIdentity, clientID: 00000000-0000-0000-0000-00000000000b}
  targets:
    - {secret: flux-system/flux-system, identity: platform, create: true}
    - {secret: team-a/repos, identity: platform, create: true}
    - {secret: team-b/repos, identity: team-b, format: basicAuth}`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{
				"kustomization.yaml": test.kustomization + "\nimages: [{name: flux-token-refresher, newTag: " + appVersion(t) + "}]\n",
			}
			if test.config != "" {
				files["config.yaml"] = test.config
			}
			objects, err := manifests.Build(kustomization(t, files))
			if err != nil {
				t.Fatal(err)
			}
			// Helm installs into a namespace that is there.
			objects = slices.DeleteFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" })
			want := normal(t, test.release, objects)
			released, _ := release(t, test.release, merged(t, placeholder, test.values))
			if diff := cmp.Diff(want, normal(t, test.release, released)); diff != "" {
				t.Errorf("-kustomize +helm\n%s", diff)
			}
		})
	}
}

var generatedName = regexp.MustCompile(`-config-[0-9a-z]{10}$`)

// normal gives objects by their titles, without what has to differ between kustomize and Helm: the labels that a chart gives, what makes
// a new configuration a new revision, and how the configuration is written.
func normal(t *testing.T, account types.NamespacedName, objects []*unstructured.Unstructured) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, object := range objects {
		object = object.DeepCopy()
		if text, ok, _ := unstructured.NestedString(object.Object, "data", "config.yaml"); ok {
			object.SetName(generatedName.ReplaceAllString(object.GetName(), "-config"))
			object.Object["data"] = parsed(t, text, account.Namespace)
		}
		object.SetLabels(nil)
		tidy(object.Object)
		out[title(object)] = object.Object
	}
	return out
}

// tidy changes a tree in place; see normal.
func tidy(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, label := range []string{"app.kubernetes.io/instance", "checksum/config", "checksum/identity"} {
			delete(v, label)
		}
		if configMap, ok := v["configMap"].(map[string]any); ok {
			configMap["name"] = generatedName.ReplaceAllString(configMap["name"].(string), "-config")
		}
		for _, value := range v {
			tidy(value)
		}
		if annotations, ok := v["annotations"].(map[string]any); ok && len(annotations) == 0 {
			delete(v, "annotations")
		}
	case []any:
		for _, value := range v {
			tidy(value)
		}
	}
}

// parsed is what the product makes of a configuration file, in a pod.
func parsed(t *testing.T, text, namespace string) string {
	t.Helper()
	environment := map[string]string{
		"POD_NAMESPACE": namespace, "AZURE_TENANT_ID": "00000000-0000-0000-0000-000000000001",
		"AZURE_CLIENT_ID": "00000000-0000-0000-0000-000000000002", "AZURE_FEDERATED_TOKEN_FILE": "/token",
	}
	c, err := config.Parse("config.yaml", []byte(text), func(name string) string { return environment[name] })
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%+v", c)
}

// TestHelmRights: the rights of a release are those of `config rbac` for its configuration.
func TestHelmRights(t *testing.T) {
	t.Parallel()
	for name, values := range map[string]string{
		"the defaults": placeholder,
		"several targets of a namespace, in any order": placeholder + `
config:
  targets:
    - {secret: b/two, identity: repos, create: true}
    - {secret: b/one, identity: repos}
    - {secret: a/one, identity: repos, create: true}
    - {secret: b/three.yaml, identity: repos, create: true}`,
		"client secrets, some beside targets": `
config:
  identities:
    - {name: one, type: clientSecret, credentialSecret: b/credential, tenantID: tenant.example, clientID: 00000000-0000-0000-0000-000000000001}
    - {name: two, type: clientSecret, credentialSecret: c/credential, tenantID: tenant.example, clientID: 00000000-0000-0000-0000-000000000001}
    - {name: three, type: clientSecret, credentialSecret: c/credential, tenantID: tenant.example, clientID: 00000000-0000-0000-0000-000000000002}
  targets:
    - {secret: a/one, identity: one}
    - {secret: b/one, identity: two, create: true}
    - {secret: b/two, identity: three, create: true}`,
		"other ServiceAccounts, some beside targets": `
config:
  identities:
    - {name: one, type: workloadIdentity, serviceAccount: b/team}
    - {name: two, type: workloadIdentity, serviceAccount: c/team}
    - {name: three, type: workloadIdentity, serviceAccount: c/another}
    - {name: four, type: clientCertificate, credentialSecret: c/credential, tenantID: tenant.example, clientID: 00000000-0000-0000-0000-000000000001}
  targets:
    - {secret: a/one, identity: one}
    - {secret: b/one, identity: two, create: true}
    - {secret: b/two, identity: three, create: true}
    - {secret: b/three, identity: four}`,
		"a Lease elsewhere": placeholder + "config: {election: {lease: elsewhere/leader}}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			account := types.NamespacedName{Namespace: "tokens", Name: "team-flux-token-refresher"}
			objects, _ := release(t, types.NamespacedName{Namespace: account.Namespace, Name: "team"}, values)
			var configMap corev1.ConfigMap
			take(t, objects, "ConfigMap", &configMap)
			c, err := config.Parse("config.yaml", []byte(configMap.Data["config.yaml"]), nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []*unstructured.Unstructured
			for _, object := range objects {
				if slices.Contains([]string{"Role", "RoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}, object.GetKind()) {
					got = append(got, object)
				}
			}
			if diff := cmp.Diff(normal(t, account, rightsOf(t, c, account)), normal(t, account, got)); diff != "" {
				t.Errorf("-config rbac +helm\n%s", diff)
			}
		})
	}
}
