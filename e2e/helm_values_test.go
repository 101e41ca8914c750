package e2e

// The Helm chart: what each of its values does.

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"flux-token-refresher/e2e/internal/chart"
	"flux-token-refresher/e2e/internal/manifests"
)

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
