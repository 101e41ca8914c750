package e2e

// The Helm chart: the same objects as deploy/kustomize, the rights that `config rbac` gives, each of its values, and what it refuses.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"flux-token-refresher/e2e/internal/chart"
	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/internal/config"
)

const chartDir = "../deploy/helm/flux-token-refresher"

// placeholder is the client id that deploy/kustomize has, which the chart has none of.
const placeholder = "workloadIdentity: {clientID: 00000000-0000-0000-0000-000000000000}\n"

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

// TestHelmValues: each value that kustomize has nothing to compare with.
func TestHelmValues(t *testing.T) {
	t.Parallel()
	pod := func(t *testing.T, objects []*unstructured.Unstructured) corev1.PodTemplateSpec {
		t.Helper()
		return deploymentOf(t, objects).Spec.Template
	}
	environment := func(t *testing.T, objects []*unstructured.Unstructured) map[string]string {
		t.Helper()
		out := map[string]string{}
		for _, variable := range pod(t, objects).Spec.Containers[0].Env {
			if _, again := out[variable.Name]; again {
				t.Errorf("%s is set twice", variable.Name)
			}
			out[variable.Name] = variable.Value
		}
		return out
	}
	egress := func(t *testing.T, objects []*unstructured.Unstructured) []networkingv1.NetworkPolicyEgressRule {
		t.Helper()
		var network networkingv1.NetworkPolicy
		take(t, objects, "NetworkPolicy", &network)
		return network.Spec.Egress
	}
	equal := func(t *testing.T, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	}
	tests := map[string]struct {
		values string
		check  func(*testing.T, []*unstructured.Unstructured)
	}{
		"global, as a dependency of another chart": {"global: {region: one}", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, *deploymentOf(t, objects).Spec.Replicas, int32(3))
		}},
		"null, which takes a default away": {
			"resources: null\nextraEnv: null\npriorityClassName: null\nimagePullSecrets: null\npodAnnotations: null\nconfig: {election: null, refresh: null}",
			func(t *testing.T, objects []*unstructured.Unstructured) {
				equal(t, pod(t, objects).Spec.Containers[0].Resources, corev1.ResourceRequirements{})
			},
		},
		"image": {"image: {repository: mirror.example/refresher, tag: v9, pullPolicy: Always}", func(t *testing.T, objects []*unstructured.Unstructured) {
			container := pod(t, objects).Spec.Containers[0]
			equal(t, container.Image, "mirror.example/refresher:v9")
			equal(t, container.ImagePullPolicy, corev1.PullAlways)
		}},
		"image.digest": {"image: {tag: v9, digest: sha256:" + strings.Repeat("0a", 32) + "}", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, pod(t, objects).Spec.Containers[0].Image, "flux-token-refresher@sha256:"+strings.Repeat("0a", 32))
		}},
		"imagePullSecrets": {"imagePullSecrets: [{name: mirror}]", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, pod(t, objects).Spec.ImagePullSecrets, []corev1.LocalObjectReference{{Name: "mirror"}})
		}},
		"replicas": {"replicas: 1", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, *deploymentOf(t, objects).Spec.Replicas, int32(1))
		}},
		"resources": {"resources: {limits: {memory: 1Gi}, requests: {cpu: 1}}\ngoMemLimit: 768MiB", func(t *testing.T, objects []*unstructured.Unstructured) {
			resources := pod(t, objects).Spec.Containers[0].Resources
			equal(t, resources.Limits.Memory().String()+" "+resources.Requests.Cpu().String(), "1Gi 1")
			equal(t, environment(t, objects)["GOMEMLIMIT"], "768MiB")
		}},
		"logLevel": {"logLevel: debug", func(t *testing.T, objects []*unstructured.Unstructured) {
			args := pod(t, objects).Spec.Containers[0].Args
			equal(t, args[len(args)-1], "--log-level=debug")
		}},
		"priorityClassName": {"priorityClassName: platform", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, pod(t, objects).Spec.PriorityClassName, "platform")
		}},
		"topologySpreadConstraints": {
			"topologySpreadConstraints: [{topologyKey: rack, maxSkew: 2, whenUnsatisfiable: DoNotSchedule}]",
			func(t *testing.T, objects []*unstructured.Unstructured) {
				equal(t, pod(t, objects).Spec.TopologySpreadConstraints,
					[]corev1.TopologySpreadConstraint{{TopologyKey: "rack", MaxSkew: 2, WhenUnsatisfiable: corev1.DoNotSchedule}})
			},
		},
		"nodeSelector": {"nodeSelector: {pool: system}", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, pod(t, objects).Spec.NodeSelector, map[string]string{"pool": "system"})
		}},
		"tolerations": {"tolerations: [{key: CriticalAddonsOnly, operator: Exists}]", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, pod(t, objects).Spec.Tolerations, []corev1.Toleration{{Key: "CriticalAddonsOnly", Operator: corev1.TolerationOpExists}})
		}},
		"affinity": {
			"affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: rack}]}}",
			func(t *testing.T, objects []*unstructured.Unstructured) {
				equal(t, pod(t, objects).Spec.Affinity, &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
					RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: "rack"}},
				}})
			},
		},
		"podAnnotations": {"podAnnotations: {team: platform}", func(t *testing.T, objects []*unstructured.Unstructured) {
			annotations := pod(t, objects).Annotations
			delete(annotations, "checksum/config")
			delete(annotations, "checksum/identity")
			equal(t, annotations, map[string]string{"team": "platform"})
		}},
		"extraEnv": {
			"extraEnv: [{name: OTEL_EXPORTER_OTLP_ENDPOINT, value: 'http://collector:4317'}, {name: OTEL_RESOURCE_ATTRIBUTES, value: k8s.cluster.name=one}]",
			func(t *testing.T, objects []*unstructured.Unstructured) {
				variables := environment(t, objects)
				equal(t, variables["OTEL_EXPORTER_OTLP_ENDPOINT"]+" "+variables["OTEL_RESOURCE_ATTRIBUTES"], "http://collector:4317 k8s.cluster.name=one")
				equal(t, len(variables), 7)
			},
		},
		"extraVolumes": {
			"extraVolumes: [{name: ca, configMap: {name: ca}}]\nextraVolumeMounts: [{name: ca, mountPath: /etc/ca}]",
			func(t *testing.T, objects []*unstructured.Unstructured) {
				equal(t, volume(t, pod(t, objects).Spec, "ca").ConfigMap.Name, "ca")
				mounts := pod(t, objects).Spec.Containers[0].VolumeMounts
				equal(t, mounts[len(mounts)-1], corev1.VolumeMount{Name: "ca", MountPath: "/etc/ca"})
			},
		},
		"networkPolicy.enabled": {"networkPolicy: {enabled: false}", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "NetworkPolicy" }), false)
		}},
		"networkPolicy.extraEgress": {"networkPolicy: {extraEgress: [{ports: [{protocol: TCP, port: 3128}]}]}", func(t *testing.T, objects []*unstructured.Unstructured) {
			rules := egress(t, objects)
			equal(t, len(rules), 2)
			equal(t, rules[1].Ports[0].Port.IntValue(), 3128)
		}},
		"flux.namespace": {"events: {enabled: true}\nflux: {namespace: gitops}", func(t *testing.T, objects []*unstructured.Unstructured) {
			var network networkingv1.NetworkPolicy
			take(t, objects, "NetworkPolicy", &network)
			equal(t, network.Spec.Ingress[1].From[0].NamespaceSelector.MatchLabels, map[string]string{corev1.LabelMetadataName: "gitops"})
		}},
		"flux.notifications of several namespaces": {
			"events: {enabled: true}\nflux: {notifications: true}\nconfig: {targets: [{secret: b/x, identity: repos}, {secret: a/x, identity: repos}, {secret: b/y, identity: repos}]}",
			func(t *testing.T, objects []*unstructured.Unstructured) {
				var alert struct {
					Spec struct {
						EventSources []corev1.ObjectReference `json:"eventSources"`
					} `json:"spec"`
				}
				take(t, objects, "Alert", &alert)
				equal(t, len(alert.Spec.EventSources), 2*len(sourceKinds))
				for i, source := range alert.Spec.EventSources {
					equal(t, source.Namespace, []string{"a", "b"}[i/len(sourceKinds)])
				}
			},
		},
		"events.keySecret": {"events: {enabled: true, keySecret: webhook}\nflux: {notifications: true}", func(t *testing.T, objects []*unstructured.Unstructured) {
			equal(t, volume(t, pod(t, objects).Spec, "events").Secret.SecretName, "webhook")
			var provider struct {
				Spec struct {
					SecretRef corev1.LocalObjectReference `json:"secretRef"`
				} `json:"spec"`
			}
			take(t, objects, "Provider", &provider)
			equal(t, provider.Spec.SecretRef.Name, "webhook")
		}},
		"podMonitor.labels": {"podMonitor: {enabled: true, labels: {release: prometheus}}", func(t *testing.T, objects []*unstructured.Unstructured) {
			var monitor monitoringv1.PodMonitor
			take(t, objects, "PodMonitor", &monitor)
			equal(t, monitor.Labels["release"], "prometheus")
		}},
		"alerts.labels, alerts.runbooks": {
			"alerts: {enabled: true, labels: {release: prometheus}, runbooks: 'https://runbooks.example/tokens'}",
			func(t *testing.T, objects []*unstructured.Unstructured) {
				var rule monitoringv1.PrometheusRule
				take(t, objects, "PrometheusRule", &rule)
				equal(t, rule.Labels["release"], "prometheus")
				equal(t, rule.Spec.Groups[0].Rules[0].Annotations["runbook_url"], "https://runbooks.example/tokens#tokenrefreshertokenexpiring")
			},
		},
		"dashboard.labels": {"dashboard: {enabled: true, labels: {team: platform}}", func(t *testing.T, objects []*unstructured.Unstructured) {
			i := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetName() == "flux-token-refresher-dashboard" })
			equal(t, objects[i].GetLabels()["grafana_dashboard"], "1")
			equal(t, objects[i].GetLabels()["team"], "platform")
		}},
		"workloadIdentity.tenantID": {"workloadIdentity: {tenantID: tenant.example}", func(t *testing.T, objects []*unstructured.Unstructured) {
			var account corev1.ServiceAccount
			take(t, objects, "ServiceAccount", &account)
			equal(t, account.Annotations, map[string]string{
				"azure.workload.identity/client-id": "00000000-0000-0000-0000-000000000000", "azure.workload.identity/tenant-id": "tenant.example",
			})
		}},
		"no workload identity": {`
workloadIdentity: {clientID: ""}
config:
  identities: [{name: repos, type: clientSecret, credentialSecret: a/b, tenantID: tenant.example, clientID: 00000000-0000-0000-0000-000000000001}]`,
			func(t *testing.T, objects []*unstructured.Unstructured) {
				var account corev1.ServiceAccount
				take(t, objects, "ServiceAccount", &account)
				equal(t, len(account.Annotations), 0)
				equal(t, pod(t, objects).Labels["azure.workload.identity/use"], "")
			}},
		"config, as it is written": {`
config:
  identities: [{name: repos, type: workloadIdentity, cloud: AzureGovernment, caFile: /etc/ca/ca.pem}]
  targets:
    - secret: a/b
      identity: repos
      format: template
      template: {password: "{{ .Token }}"}
      create: true
      labels: {argocd.argoproj.io/secret-type: repository}
      verify: never
  refresh: {lifetimeFraction: 0.5, jitter: 0, minValidity: 5m, cooldown: 1m30s, verifyHosts: [git.example], verifyCAFile: /etc/ca/ca.pem}
  election: {leaseDuration: 30s, renewDeadline: 20s, retryPeriod: 5s}`, func(t *testing.T, objects []*unstructured.Unstructured) {
			var configMap corev1.ConfigMap
			take(t, objects, "ConfigMap", &configMap)
			equal(t, parsed(t, configMap.Data["config.yaml"], "x"), parsed(t, `
apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities: [{name: repos, type: workloadIdentity, cloud: AzureGovernment, caFile: /etc/ca/ca.pem}]
targets: [{secret: a/b, identity: repos, format: template, template: {password: "{{ .Token }}"}, create: true, labels: {argocd.argoproj.io/secret-type: repository}, verify: never}]
refresh: {lifetimeFraction: 0.5, jitter: 0, minValidity: 5m, cooldown: 1m30s, verifyHosts: [git.example], verifyCAFile: /etc/ca/ca.pem}
election: {lease: flux-system/flux-token-refresher, leaseDuration: 30s, renewDeadline: 20s, retryPeriod: 5s}`, "x"))
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects, _ := release(t, types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"}, merged(t, placeholder, test.values))
			test.check(t, objects)
			deploymentOf(t, objects)
		})
	}
}

// TestHelmIMDS: the address that gives a node's tokens is open for identities that need it, and closed for all others.
func TestHelmIMDS(t *testing.T) {
	t.Parallel()
	policy := func(objects []*unstructured.Unstructured, err error) map[string]any {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return normal(t, own, []*unstructured.Unstructured{find(t, objects, "NetworkPolicy")})
	}
	open := policy(manifests.Build(kustomization(t, map[string]string{
		"kustomization.yaml": "resources: [DEPLOY/kustomize/base]\ncomponents: [DEPLOY/kustomize/components/imds]\n",
	})))
	closed := policy(manifests.Build(kustomizeBase))
	if text := fmt.Sprint(closed); strings.Contains(text, "169.254") || strings.Contains(text, "port:80]") {
		t.Errorf("IMDS can be reached: %s", text)
	}
	for kind, want := range map[string]map[string]any{"managedIdentity": open, "workloadIdentity": closed} {
		objects, _ := release(t, types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
			placeholder+"config: {identities: [{name: repos, type: "+kind+"}]}")
		if diff := cmp.Diff(want, policy(objects, nil)); diff != "" {
			t.Errorf("%s: -kustomize +helm\n%s", kind, diff)
		}
	}
}

// TestHelmNotes: what is left to do after an installation is said with the release's own names.
func TestHelmNotes(t *testing.T) {
	t.Parallel()
	_, notes := release(t, types.NamespacedName{Namespace: "tokens", Name: "team"}, placeholder+"events: {enabled: true, keySecret: webhook}")
	for _, want := range []string{
		"flux-system/flux-system (identity repos)",
		"system:serviceaccount:tokens:team-flux-token-refresher",
		"kubectl -n tokens create secret generic webhook --from-literal=token=",
		"kubectl -n flux-system describe secret flux-system",
	} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %q:\n%s", want, notes)
		}
	}
}

// TestHelmRefuses: what is wrong with values is said by the name of the value.
func TestHelmRefuses(t *testing.T) {
	t.Parallel()
	for values, want := range map[string]string{
		"replica: 2":                                "additional properties 'replica' not allowed",
		"replicas: three":                           "at '/replicas': got string, want integer",
		"replicas: 0":                               "at '/replicas': minimum: got 0, want 1",
		"image: {name: x}":                          "at '/image': additional properties 'name' not allowed",
		"image: {digest: latest}":                   "at '/image/digest': 'latest' does not match pattern",
		"events: {enable: true}":                    "at '/events': additional properties 'enable' not allowed",
		"events: {key: abc}":                        "at '/events': additional properties 'key' not allowed",
		"podMonitor: {enabled: 'true'}":             "at '/podMonitor/enabled': got string, want boolean",
		"extraEnv: [{nam: X}]":                      "at '/extraEnv/0'",
		"networkPolicy: {extraEgress: [{port: 1}]}": "at '/networkPolicy/extraEgress/0'",
		"config: {target: []}":                      "at '/config': additional properties 'target' not allowed",
		"config: {targets: []}":                     "at '/config/targets': minItems: got 0, want 1",
		"config: {targets: [{secret: a/b, identity: repos, formt: basicAuth}]}":                                                   "at '/config/targets/0': additional properties 'formt' not allowed",
		"config: {targets: [{secret: ab, identity: repos}]}":                                                                      "at '/config/targets/0/secret': 'ab' does not match pattern",
		"config: {targets: [{secret: a/b}]}":                                                                                      "at '/config/targets/0': missing property 'identity'",
		"config: {targets: [{secret: a/b, identity: repos, format: template}]}":                                                   "missing property 'template'",
		"config: {refresh: {cooldown: 30}}":                                                                                       "at '/config/refresh/cooldown': got number, want string",
		"config: {election: {leaseDuration: 15 s}}":                                                                               "at '/config/election/leaseDuration': '15 s' does not match pattern",
		"config: {identities: [{name: repos, type: clientSecret}]}":                                                               "missing property 'credentialSecret'",
		"config: {identities: [{name: repos, type: pat}]}":                                                                        "at '/config/identities/0/type': value must be one of",
		"config: {targets: [{secret: a/b, identity: repo}]}":                                                                      "config.targets[0].identity: there is no identity repo; there are: repos",
		"config: {targets: [{secret: a/b, identity: repos}, {secret: a/b, identity: repos}]}":                                     "config.targets[1].secret: a/b is a target already",
		"config: {identities: [{name: repos, type: workloadIdentity}, {name: repos, type: clientSecret, credentialSecret: a/b}]}": "config.identities[1].name: there is an identity repos already",
		"flux: {notifications: true}":                                                                                             "flux.notifications: nobody would listen; set events.enabled too",
		"goMemLimit: 65MiB":                                                                                                       "goMemLimit: 65MiB is more than resources.limits.memory",
		"goMemLimit: 2GiB\nresources: {limits: {memory: 2G}}":                                                                     "goMemLimit: 2GiB is more than resources.limits.memory",
		"events: {namespaces: []}":                                                                                                "at '/events/namespaces': minItems: got 0, want 1",
		"events: {enabled: null}":                                                                                                 "at '/events': missing property 'enabled'",
		"image: {repository: null}":                                                                                               "at '/image': missing property 'repository'",
		"workloadIdentity: null":                                                                                                  "missing property 'workloadIdentity'",
		"config: null":                                                                                                            "missing property 'config'",
		"replicas: null":                                                                                                          "missing property 'replicas'",
		"workloadIdentity: {clientID: ''}":                                                                                        "workloadIdentity.clientID: set it to the client id of the managed identity, or give config.identities[0] (repos) a clientID",
		"workloadIdentity: {clientID: me}":                                                                                        "at '/workloadIdentity/clientID'",
	} {
		t.Run(values, func(t *testing.T) {
			t.Parallel()
			_, _, err := chart.Release{Dir: chartDir, Name: "flux-token-refresher", Namespace: "flux-system", Values: merged(t, placeholder, values)}.Render()
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}

// TestHelmRefusesAsTheProgram: a configuration that the program would refuse at its start is refused before it is installed, by the same field.
func TestHelmRefusesAsTheProgram(t *testing.T) {
	t.Parallel()
	identity := func(fields string) string {
		return "identities: [{name: repos, " + fields + "}]\ntargets: [{secret: a/b, identity: repos}]"
	}
	target := func(fields string) string {
		return "identities: [{name: repos, type: workloadIdentity}]\ntargets: [{secret: a/b, identity: repos, " + fields + "}]"
	}
	beside := func(fields string) string {
		return "identities: [{name: repos, type: workloadIdentity}]\ntargets: [{secret: a/b, identity: repos}]\n" + fields
	}
	const known = "tenantID: tenant.example, clientID: 00000000-0000-0000-0000-000000000001"
	for name, test := range map[string]struct{ config, field string }{
		"two authorities":                     {identity("type: workloadIdentity, cloud: AzurePublic, authorityHost: 'https://login.example'"), "identities[0].cloud"},
		"a machine's tenant":                  {identity("type: managedIdentity, tenantID: tenant.example"), "identities[0].tenantID"},
		"a machine's cloud":                   {identity("type: managedIdentity, cloud: AzurePublic"), "identities[0].cloud"},
		"a machine's two names":               {identity("type: managedIdentity, " + known[len("tenantID: tenant.example, "):] + ", resourceID: /subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"), "identities[0].resourceID"},
		"a resource of no machine":            {identity("type: workloadIdentity, resourceID: /x"), "identities[0].resourceID"},
		"two proofs":                          {identity("type: workloadIdentity, serviceAccount: a/b, tokenFile: /x"), "identities[0].tokenFile"},
		"a credential too many":               {identity("type: workloadIdentity, credentialSecret: a/c"), "identities[0].credentialSecret"},
		"a file for a secret":                 {identity("type: clientSecret, credentialSecret: a/c, tokenFile: /x, " + known), "identities[0].tokenFile"},
		"a secret without a client":           {identity("type: clientSecret, credentialSecret: a/c, tenantID: tenant.example"), "identities[0].clientID"},
		"a secret without a tenant":           {identity("type: clientSecret, credentialSecret: a/c, clientID: 00000000-0000-0000-0000-000000000001"), "identities[0].tenantID"},
		"a key without a client":              {identity("type: clientCertificate, credentialSecret: a/c, tenantID: tenant.example"), "identities[0].clientID"},
		"a target that is its own credential": {identity("type: clientSecret, credentialSecret: a/b, " + known), "targets[0].secret"},
		"a name with two dots":                {"identities: [{name: repos, type: workloadIdentity}]\ntargets: [{secret: a/b..c, identity: repos}]", "targets[0].secret"},
		"a name that ends in a dot":           {identity("type: workloadIdentity, serviceAccount: a/b."), "identities[0].serviceAccount"},
		"a template without token":            {target("format: template, template: {password: '{{ .ExpiresAt }}'}"), "targets[0].template"},
		"a template without keys":             {target("format: template, template: {}"), "targets[0].template"},
		"a key that is a path":                {target("format: template, template: {a/b: '{{ .Token }}'}"), "targets[0].template"},
		"a template of no format":             {target("template: {password: '{{ .Token }}'}"), "targets[0].template"},
		"a user name of no format":            {target("username: git"), "targets[0].username"},
		"a user name's format":                {target("format: bearerToken, username: git"), "targets[0].username"},
		"a user name with a colon":            {target("format: basicAuth, username: 'a:b'"), "targets[0].username"},
		"labels of another's":                 {target("labels: {team: a}"), "targets[0].labels"},
		"a URL for a host":                    {beside("refresh: {verifyHosts: ['https://dev.azure.com']}"), "refresh.verifyHosts[0]"},
		"any host":                            {beside("refresh: {verifyHosts: ['*']}"), "refresh.verifyHosts[0]"},
		"a host of one label":                 {beside("refresh: {verifyHosts: ['*.com']}"), "refresh.verifyHosts[0]"},
		"a duration of no unit":               {beside("refresh: {minValidity: '30'}"), "refresh.minValidity"},
		"a negative duration":                 {beside("refresh: {minValidity: -1s}"), "refresh.minValidity"},
		"no pause":                            {beside("refresh: {cooldown: 0s}"), "refresh.cooldown"},
		"a long pause":                        {beside("refresh: {cooldown: 15m1s}"), "refresh.cooldown"},
		"half a second":                       {beside("election: {leaseDuration: 15500ms}"), "election.leaseDuration"},
		"a Lease for a day":                   {beside("election: {leaseDuration: 24h}"), "election.leaseDuration"},
		"a Lease that is too short":           {beside("election: {leaseDuration: 10s}"), "election.leaseDuration"},
		"a deadline that is too short":        {beside("election: {renewDeadline: 2400ms}"), "election.renewDeadline"},
		"no time between tries":               {beside("election: {retryPeriod: 0s}"), "election.retryPeriod"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			environment := map[string]string{"POD_NAMESPACE": "flux-system"}
			if strings.Contains(test.config, "workloadIdentity") {
				environment["AZURE_TENANT_ID"], environment["AZURE_CLIENT_ID"] = "tenant.example", "00000000-0000-0000-0000-000000000000"
				environment["AZURE_FEDERATED_TOKEN_FILE"] = "/token"
			}
			_, err := config.Parse("config.yaml", []byte("apiVersion: flux-token-refresher/v1alpha1\nkind: Config\n"+test.config),
				func(name string) string { return environment[name] })
			invalid, ok := errors.AsType[*config.Error](err)
			if !ok || slices.ContainsFunc(invalid.Problems, func(p config.Problem) bool { return !strings.HasPrefix(p.Field, test.field) }) {
				t.Errorf("the program says %v, want something about %s alone", err, test.field)
			}

			values := merged(t, placeholder, "config:\n  "+strings.ReplaceAll(test.config, "\n", "\n  "))
			_, _, err = chart.Release{Dir: chartDir, Name: "flux-token-refresher", Namespace: "flux-system", Values: values}.Render()
			// The schema writes /config/targets/0/secret.
			pointer := "'/config/" + strings.NewReplacer("[", "/", "]", "", ".", "/").Replace(test.field)
			if sentence := "config." + test.field + ": "; err == nil || !strings.Contains(err.Error(), sentence) && !strings.Contains(err.Error(), pointer) {
				t.Errorf("the chart says %v, want something about %s", err, test.field)
			}
		})
	}
}

// TestHelmNames: names that YAML could take for something else stay names, and those that Kubernetes would refuse are refused first.
func TestHelmNames(t *testing.T) {
	t.Parallel()
	values := merged(t, placeholder, `
events: {enabled: true, keySecret: "123"}
flux: {notifications: true, namespace: "123"}
podMonitor: {enabled: true}
alerts: {enabled: true, runbooks: "1e3"}
dashboard: {enabled: true}
priorityClassName: "1e3"
image: {repository: "12", tag: "30"}
config:
  identities: [{name: "123", type: workloadIdentity, serviceAccount: "123/null"}]
  targets: [{secret: "123/true", identity: "123", create: true}, {secret: "0/1", identity: "123"}]
  election: {lease: "123/null"}`)
	for _, namespace := range []string{"123", "true"} {
		objects, _ := release(t, types.NamespacedName{Namespace: namespace, Name: "null-flux-token-refresher"}, values)
		for _, object := range objects {
			into, ok := map[string]any{
				"ServiceAccount": &corev1.ServiceAccount{}, "ConfigMap": &corev1.ConfigMap{}, "Service": &corev1.Service{}, "Deployment": &appsv1.Deployment{},
				"Role": &rbacv1.Role{}, "RoleBinding": &rbacv1.RoleBinding{}, "NetworkPolicy": &networkingv1.NetworkPolicy{},
				"PodDisruptionBudget": &policyv1.PodDisruptionBudget{}, "PodMonitor": &monitoringv1.PodMonitor{}, "PrometheusRule": &monitoringv1.PrometheusRule{},
			}[object.GetKind()]
			if ok {
				convert(t, object, into)
			}
		}
	}
	for name, events := range map[string]string{"123": "", "true": "", "a.b": "", "1.5": "", "team": "events: {enabled: true}"} {
		objects, _ := release(t, types.NamespacedName{Namespace: "123", Name: name}, merged(t, placeholder, events))
		if got := deploymentOf(t, objects).Spec.Selector.MatchLabels["app.kubernetes.io/instance"]; got != name {
			t.Errorf("the instance of the release %s is %s", name, got)
		}
	}
	for _, name := range []string{"123", "a.b"} {
		_, _, err := chart.Release{Dir: chartDir, Name: name, Namespace: "a", Values: merged(t, placeholder, "events: {enabled: true}")}.Render()
		if err == nil || !strings.Contains(err.Error(), "the release's name "+name+": ") {
			t.Errorf("a Service of the release %s: got %v, want that it is refused", name, err)
		}
	}
}

// TestHelmBuildMetadata: versions may have some, behind a character that a label may not have.
func TestHelmBuildMetadata(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(chartDir)); err != nil {
		t.Fatal(err)
	}
	const version = "0.1.0"
	of := filepath.Join(dir, "Chart.yaml")
	if err := os.WriteFile(of, bytes.ReplaceAll(read(t, of), []byte(version), []byte(version+"+5")), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, _, err := chart.Release{Dir: dir, Name: own.Name, Namespace: own.Namespace, Values: placeholder}.Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		for label, value := range object.GetLabels() {
			if errs := validation.IsValidLabelValue(value); len(errs) > 0 {
				t.Errorf("%s: the label %s is %s: %v", object.GetKind(), label, value, errs)
			}
		}
	}
}

// TestHelmIdentityChange: the webhook gives a pod its identity when it is created, so another one is another revision.
func TestHelmIdentityChange(t *testing.T) {
	t.Parallel()
	checksums := map[string]bool{}
	for _, values := range []string{
		placeholder,
		"workloadIdentity: {clientID: 00000000-0000-0000-0000-000000000001}",
		"workloadIdentity: {clientID: 00000000-0000-0000-0000-000000000001, tenantID: tenant.example}",
	} {
		objects, _ := release(t, own, values)
		checksums[deploymentOf(t, objects).Spec.Template.Annotations["checksum/identity"]] = true
	}
	if len(checksums) != 3 {
		t.Errorf("three identities have the checksums %v", checksums)
	}
}

// TestHelmSchemaOfConfig: the schema has the fields that the configuration file has, no more and no less, but for those that are the
// chart's own.
func TestHelmSchemaOfConfig(t *testing.T) {
	t.Parallel()
	type schema struct {
		Properties map[string]schema `json:"properties"`
		Items      *schema           `json:"items"`
	}
	var values schema
	if err := json.Unmarshal(read(t, filepath.Join(chartDir, "values.schema.json")), &values); err != nil {
		t.Fatal(err)
	}
	top := values.Properties["config"]
	// Each file has one field that is not there, far from every other's name: the answer names those that are.
	for at, test := range map[string]struct {
		file   string
		fields map[string]schema
		chart  []string
	}{
		"":           {"", top.Properties, []string{"apiVersion", "kind", "events", "health"}},
		"identities": {"identities: [{UNKNOWN: 1}]", top.Properties["identities"].Items.Properties, nil},
		"targets":    {"targets: [{UNKNOWN: 1}]", top.Properties["targets"].Items.Properties, nil},
		"refresh":    {"refresh: {UNKNOWN: 1}", top.Properties["refresh"].Properties, nil},
		"election":   {"election: {UNKNOWN: 1}", top.Properties["election"].Properties, nil},
	} {
		if test.file == "" {
			test.file = "UNKNOWN: 1"
		}
		_, err := config.Parse("config.yaml", []byte(strings.ReplaceAll(test.file, "UNKNOWN", "qqqqqqqqqqqqqqqqqqqq")), nil)
		invalid, ok := errors.AsType[*config.Error](err)
		if !ok {
			t.Fatal(err)
		}
		i := slices.IndexFunc(invalid.Problems, func(p config.Problem) bool { return strings.Contains(p.Text, "not a known field") })
		_, known, found := strings.Cut(invalid.Problems[i].Text, "known here: ")
		if !found {
			t.Fatal(err)
		}
		want := strings.Split(known, ", ")
		got := append(slices.Collect(maps.Keys(test.fields)), test.chart...)
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -configuration +schema\n%s", at, diff)
		}
	}
}

// TestHelmDocumentsValues: values.yaml has every value, and a comment above each.
func TestHelmDocumentsValues(t *testing.T) {
	t.Parallel()
	var schema struct {
		Properties map[string]struct {
			Properties map[string]any `json:"properties"`
		} `json:"properties"`
	}
	var values map[string]any
	if err := errors.Join(
		json.Unmarshal(read(t, filepath.Join(chartDir, "values.schema.json")), &schema),
		yaml.Unmarshal(read(t, filepath.Join(chartDir, "values.yaml")), &values),
	); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global") // Helm's
	if diff := cmp.Diff(slices.Sorted(maps.Keys(schema.Properties)), slices.Sorted(maps.Keys(values))); diff != "" {
		t.Errorf("-schema +values\n%s", diff)
	}
	for name, property := range schema.Properties {
		if name == "affinity" || len(property.Properties) == 0 {
			continue // Kubernetes has documented it
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(property.Properties)), slices.Sorted(maps.Keys(values[name].(map[string]any)))); diff != "" {
			t.Errorf("%s: -schema +values\n%s", name, diff)
		}
	}
}

// TestHelmLint is `helm lint`.
func TestHelmLint(t *testing.T) {
	t.Parallel()
	var values map[string]any
	if err := yaml.Unmarshal([]byte(placeholder), &values); err != nil {
		t.Fatal(err)
	}
	for _, message := range lint.RunAll(chartDir, values, "flux-system").Messages {
		if message.Severity > support.InfoSev {
			t.Error(message)
		}
	}
}

// TestHelmInCluster: a real API server takes a release in a namespace that enforces the restricted Pod Security Standard; a new
// configuration is a new revision of the Deployment; and uninstalling takes away everything but the Secrets.
func TestHelmInCluster(t *testing.T) {
	t.Parallel()
	ctx, client, namespace := patient(t), newClient(t), restrictedNamespace(t)
	targets := newNamespace(t)
	r := chart.Release{Dir: chartDir, Name: namespace, Namespace: namespace, Values: merged(t, placeholder, `
events: {enabled: true}
config: {targets: [{secret: `+targets+`/git, identity: repos, create: true}]}`)}
	if err := r.Install(ctx, controlPlane.Config(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	name := namespace + "-flux-token-refresher"
	deployment, err := client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	admitted(t, namespace, deployment.Spec.Template)
	if _, err := client.CoreV1().Secrets(targets).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "git"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	r.Values = merged(t, r.Values, "config: {refresh: {cooldown: 1m}}")
	if err := r.Upgrade(ctx, controlPlane.Config(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	upgraded, err := client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if upgraded.Generation == deployment.Generation || cmp.Equal(upgraded.Spec.Template, deployment.Spec.Template) {
		t.Error("another configuration, and the pods stay as they are")
	}
	if err := r.Upgrade(ctx, controlPlane.Config(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	again, err := client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again.Generation != upgraded.Generation {
		t.Error("the same values, and the pods are replaced")
	}

	if err := r.Uninstall(controlPlane.Config(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Secrets(targets).Get(ctx, "git", metav1.GetOptions{}); err != nil {
		t.Errorf("the target: %v", err)
	}
	objects, _, err := r.Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		resource, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
		left := newDynamic(t).Resource(resource).Namespace(object.GetNamespace())
		if _, err := left.Get(ctx, object.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s after the release was uninstalled: got %v, want that it is gone", title(object), err)
		}
	}
}

// release renders the chart.
func release(t *testing.T, as types.NamespacedName, values string) (objects []*unstructured.Unstructured, notes string) {
	t.Helper()
	objects, notes, err := chart.Release{Dir: chartDir, Name: as.Name, Namespace: as.Namespace, Values: values}.Render()
	if err != nil {
		t.Fatal(err)
	}
	return objects, notes
}

// merged gives values as Helm merges two files of them.
func merged(t *testing.T, files ...string) string {
	t.Helper()
	all := map[string]any{}
	for _, file := range files {
		values, err := loader.LoadValues(strings.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		all = loader.MergeMaps(all, values)
	}
	out, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// kustomization writes the files of an overlay, in which DEPLOY stands for the folder deploy, and gives its folder.
func kustomization(t *testing.T, files map[string]string) string {
	t.Helper()
	// kustomize takes others by their relative path only, and follows symbolic links first.
	folder, err1 := filepath.EvalSymlinks(t.TempDir())
	deploy, err2 := filepath.Abs("../deploy")
	deploy, err3 := filepath.EvalSymlinks(deploy)
	deploy, err4 := filepath.Rel(folder, deploy)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(strings.ReplaceAll(content, "DEPLOY", deploy)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// appVersion is the chart's.
func appVersion(t *testing.T) string {
	t.Helper()
	var metadata struct {
		AppVersion string `json:"appVersion"`
	}
	if err := yaml.Unmarshal(read(t, filepath.Join(chartDir, "Chart.yaml")), &metadata); err != nil {
		t.Fatal(err)
	}
	return metadata.AppVersion
}

// find gives the one object of a kind.
func find(t *testing.T, objects []*unstructured.Unstructured, kind string) *unstructured.Unstructured {
	t.Helper()
	i := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == kind })
	if i < 0 {
		t.Fatalf("there is no %s", kind)
	}
	return objects[i]
}

func deploymentOf(t *testing.T, objects []*unstructured.Unstructured) *appsv1.Deployment {
	t.Helper()
	deployment := &appsv1.Deployment{}
	convert(t, find(t, objects, "Deployment"), deployment)
	return deployment
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
