package e2e

// What deploy/kustomize renders to: the rights that `config rbac` gives, also when the installation is renamed; and objects
// that a real API server takes. The Helm chart is held to it in helm_test.go.

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
	"flux-token-refresher/refresh"
)

const (
	kustomizeBase    = "../deploy/kustomize/base"
	kustomizeEvents  = "../deploy/kustomize/events"
	kustomizeAccount = "../deploy/kustomize/account"
	kustomizeMany    = "../deploy/kustomize/many-namespaces"
	deployFlux       = "../deploy/flux"

	serverlessOnce    = "../deploy/kustomize/serverless/once"
	serverlessKnative = "../deploy/kustomize/serverless/knative"
	serverlessArgo    = "../deploy/kustomize/serverless/argo-events"
)

// own is where an installation with a namespace of its own is.
var own = types.NamespacedName{Namespace: "flux-token-refresher", Name: "flux-token-refresher"}

// TestKustomize: what runs has the account, the configuration and the rights that belong together.
func TestKustomize(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		folder string
		want   types.NamespacedName
		// beside are objects that are no part of an installation by kustomize/base, as KIND/NAME.
		beside []string
	}{
		"the base": {
			folder: kustomizeBase,
			want:   types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
		},
		"events": {
			folder: kustomizeEvents,
			want:   types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"},
			beside: []string{"Service/flux-token-refresher"},
		},
		"events, another namespace and name": {
			folder: overlay(t, kustomizeEvents, "tokens", "prod-", "-2"),
			want:   types.NamespacedName{Namespace: "tokens", Name: "prod-flux-token-refresher-2"},
			beside: []string{"Service/prod-flux-token-refresher-2"},
		},
		"another namespace": {
			folder: overlay(t, kustomizeBase, "tokens", "", ""),
			want:   types.NamespacedName{Namespace: "tokens", Name: "flux-token-refresher"},
		},
		"another name": {
			folder: overlay(t, kustomizeBase, "flux-system", "prod-", "-2"),
			want:   types.NamespacedName{Namespace: "flux-system", Name: "prod-flux-token-refresher-2"},
		},
		"another namespace and name": {
			folder: overlay(t, kustomizeBase, "tokens", "prod-", ""),
			want:   types.NamespacedName{Namespace: "tokens", Name: "prod-flux-token-refresher"},
		},
		"many namespaces": {
			folder: kustomizeMany,
			want:   own,
			beside: []string{"Namespace/flux-token-refresher"},
		},
		"many namespaces, with events and a PodMonitor": {
			folder: copyOfMany(t),
			want:   own,
			beside: []string{"Namespace/flux-token-refresher", "PodMonitor/flux-token-refresher", "Service/flux-token-refresher"},
		},
		"once": {
			folder: serverlessOnce,
			want:   own,
			beside: []string{"CronJob/flux-token-refresher", "Namespace/flux-token-refresher"},
		},
		"knative": {
			folder: serverlessKnative,
			want:   own,
			beside: []string{
				"CronJob/flux-token-refresher", "JobSink/flux-token-refresher", "Namespace/flux-token-refresher", "Trigger/flux-token-refresher",
			},
		},
		"argo-events": {
			folder: serverlessArgo,
			want:   own,
			beside: []string{
				"Alert/flux-token-refresher", "CronJob/flux-token-refresher", "EventSource/flux-token-refresher", "Namespace/flux-token-refresher",
				"Provider/flux-token-refresher", "Role/flux-token-refresher-sensor", "RoleBinding/flux-token-refresher-sensor",
				"Sensor/flux-token-refresher", "ServiceAccount/flux-token-refresher-sensor",
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A namespace line moves everything; those that keep their Roles elsewhere do without.
			render := func() ([]*unstructured.Unstructured, error) {
				return manifests.Render(test.folder, test.want.Namespace)
			}
			if test.want == own {
				render = func() ([]*unstructured.Unstructured, error) { return manifests.Build(test.folder) }
			}
			objects, err := render()
			if err != nil {
				t.Fatal(err)
			}
			objects = slices.DeleteFunc(objects, func(o *unstructured.Unstructured) bool {
				if slices.Contains([]string{"Service", "PodMonitor"}, o.GetKind()) && o.GetNamespace() != test.want.Namespace {
					t.Errorf("%s is not beside the pods", title(o))
				}
				i := slices.Index(test.beside, o.GetKind()+"/"+o.GetName())
				if i >= 0 {
					test.beside = slices.Delete(slices.Clone(test.beside), i, i+1)
				}
				return i >= 0
			})
			if len(test.beside) > 0 {
				t.Errorf("there is no %v", test.beside)
			}
			var configMap corev1.ConfigMap
			objects = take(t, objects, "ConfigMap", &configMap)
			c, err := config.Parse("config.yaml", []byte(configMap.Data["config.yaml"]), nil)
			if err != nil {
				t.Fatal(err)
			}
			var account corev1.ServiceAccount
			objects = take(t, objects, "ServiceAccount", &account)
			if got := (types.NamespacedName{Namespace: account.Namespace, Name: account.Name}); got != test.want {
				t.Errorf("ServiceAccount %s, want %s", got, test.want)
			}
			var network networkingv1.NetworkPolicy
			objects = take(t, objects, "NetworkPolicy", &network)
			if network.Namespace != test.want.Namespace {
				t.Errorf("the NetworkPolicy is in %s", network.Namespace)
			}
			if slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Deployment" }) {
				objects = checkReplicas(t, objects, account, configMap)
			}

			// Everything else is rights.
			got, want := map[string]any{}, map[string]any{}
			for _, object := range objects {
				got[title(object)] = object.Object
			}
			for _, object := range rightsOf(t, c, test.want) {
				want[title(object)] = object.Object
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("rights are not those of config rbac (-want +got)\n%s", diff)
			}
		})
	}
}

// copyOfMany is what a user makes of many-namespaces, with both components.
func copyOfMany(t *testing.T) string {
	t.Helper()
	files := map[string]string{}
	for _, name := range []string{"kustomization.yaml", "namespace.yaml", "rbac.yaml", "config.yaml"} {
		files[name] = strings.ReplaceAll(string(read(t, filepath.Join(kustomizeMany, name))), "- ../", "- DEPLOY/kustomize/")
	}
	files["kustomization.yaml"] += "components: [DEPLOY/kustomize/components/events, DEPLOY/kustomize/components/pod-monitor]\n"
	files["config.yaml"] += "events: {senders: [{name: flux, hmacKeyFile: /etc/flux-token-refresher-events/token, namespaces: ['*']}]}\n"
	return kustomization(t, files)
}

// TestTwoInKustomize: of two installations in one namespace neither selects the pods of the other, and both let Flux in.
func TestTwoInKustomize(t *testing.T) {
	t.Parallel()
	type installation struct {
		pods      labels.Set
		selectors map[string]labels.Set // by the kind of the object
	}
	var both []installation
	for _, name := range []string{"prod", "test"} {
		objects := built(t, kustomization(t, map[string]string{"kustomization.yaml": `
resources: [DEPLOY/kustomize/events]
components: [DEPLOY/kustomize/components/pod-monitor]
namePrefix: ` + name + `-
transformers: [DEPLOY/kustomize/account]
` + exampleOfLabels(t, name)}))
		deployment := deploymentOf(t, objects)
		var budget policyv1.PodDisruptionBudget
		var network networkingv1.NetworkPolicy
		var service corev1.Service
		var monitor monitoringv1.PodMonitor
		take(t, objects, "PodDisruptionBudget", &budget)
		take(t, objects, "NetworkPolicy", &network)
		take(t, objects, "Service", &service)
		take(t, objects, "PodMonitor", &monitor)
		in := installation{deployment.Spec.Template.Labels, map[string]labels.Set{
			"Deployment": deployment.Spec.Selector.MatchLabels, "PodDisruptionBudget": budget.Spec.Selector.MatchLabels,
			"NetworkPolicy": network.Spec.PodSelector.MatchLabels, "Service": service.Spec.Selector, "PodMonitor": monitor.Spec.Selector.MatchLabels,
		}}
		for i, spread := range deployment.Spec.Template.Spec.TopologySpreadConstraints {
			in.selectors[fmt.Sprintf("topologySpreadConstraints[%d]", i)] = spread.LabelSelector.MatchLabels
		}
		both = append(both, in)
		flux, err := metav1.LabelSelectorAsSelector(network.Spec.Ingress[1].From[0].PodSelector)
		if err != nil || !flux.Matches(labels.Set{"app": "notification-controller"}) {
			t.Errorf("%s: the NetworkPolicy lets in %v, %v", name, flux, err)
		}
	}
	for i, in := range both {
		for kind, selector := range in.selectors {
			if !selector.AsSelector().Matches(in.pods) || selector.AsSelector().Matches(both[1-i].pods) {
				t.Errorf("%s: %s selects not its own pods alone: %s, and %s", kind, selector, in.pods, both[1-i].pods)
			}
		}
	}
}

// exampleOfLabels is that of account/kustomization.yaml, with another name.
func exampleOfLabels(t *testing.T, name string) string {
	t.Helper()
	_, example, found := strings.Cut(string(read(t, filepath.Join(kustomizeAccount, "kustomization.yaml"))), "#   labels:\n")
	example, _, _ = strings.Cut(example, "#\n")
	if !found || !strings.Contains(example, "instance: prod}") {
		t.Fatal("there is no example of labels")
	}
	return "labels:\n" + strings.NewReplacer("#   ", "", "instance: prod}", "instance: "+name+"}").Replace(example)
}

// checkReplicas looks at the Deployment and its PodDisruptionBudget, and gives the other objects.
func checkReplicas(t *testing.T, objects []*unstructured.Unstructured, account corev1.ServiceAccount, configMap corev1.ConfigMap) []*unstructured.Unstructured {
	t.Helper()
	var deployment appsv1.Deployment
	objects = take(t, objects, "Deployment", &deployment)
	pod := deployment.Spec.Template.Spec
	if deployment.Namespace != account.Namespace || pod.ServiceAccountName != account.Name {
		t.Errorf("the Deployment is in %s and runs as %s, want %s/%s", deployment.Namespace, pod.ServiceAccountName, account.Namespace, account.Name)
	}
	if mounted := volume(t, pod, "config").ConfigMap.Name; configMap.Namespace != account.Namespace || mounted != configMap.Name {
		t.Errorf("the Deployment reads the ConfigMap %s, there is %s/%s", mounted, configMap.Namespace, configMap.Name)
	}
	var budget policyv1.PodDisruptionBudget
	objects = take(t, objects, "PodDisruptionBudget", &budget)
	if budget.Namespace != deployment.Namespace || !cmp.Equal(budget.Spec.Selector, deployment.Spec.Selector) {
		t.Errorf("the PodDisruptionBudget in %s is about %v", budget.Namespace, budget.Spec.Selector)
	}
	return objects
}

// rightsOf is what `config rbac` prints.
func rightsOf(t *testing.T, c *config.Config, account types.NamespacedName) []*unstructured.Unstructured {
	t.Helper()
	documents, err := rbac.YAML(rbac.Objects(c, account))
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifests.Parse(documents)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// TestKustomizeInCluster: namespaces that enforce the restricted Pod Security Standard take all of it, and its pods.
func TestKustomizeInCluster(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{kustomizeBase, kustomizeEvents, kustomizeMany, serverlessOnce, serverlessKnative, serverlessArgo} {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			t.Parallel()
			// Kinds of others are in serverless_test.go and, with Flux's controllers, in flux_test.go.
			objects := slices.DeleteFunc(built(t, folder), func(o *unstructured.Unstructured) bool {
				return slices.Contains([]string{"JobSink", "Trigger", "EventSource", "Sensor", "Provider", "Alert"}, o.GetKind())
			})
			namespace, objects := moved(t, objects)
			applyRestricted(t, namespace, objects)
		})
	}
}

// moved gives each namespace of objects another name, of one that is the test's own and enforces restricted.
func moved(t *testing.T, objects []*unstructured.Unstructured) (namespace string, out []*unstructured.Unstructured) {
	t.Helper()
	names := map[string]string{}
	for _, object := range objects {
		// Where the pods are, everything else that has no namespace takes its suffix from.
		if object.GetKind() == "NetworkPolicy" {
			namespace = object.GetNamespace()
		}
		if from := object.GetNamespace(); from != "" && names[from] == "" {
			names[from] = restrictedNamespace(t)
		}
	}
	var move func(any) any
	move = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				if name, ok := value.(string); ok && key == "namespace" && names[name] != "" {
					v[key] = names[name]
					continue
				}
				v[key] = move(value)
			}
		case []any:
			for i := range v {
				v[i] = move(v[i])
			}
		}
		return v
	}
	for _, object := range objects {
		object = object.DeepCopy()
		move(object.Object)
		if object.GetKind() == "Namespace" {
			object.SetName(names[object.GetName()])
		}
		out = append(out, object)
	}
	return names[namespace], out
}

// restrictedNamespace makes one that admits no pod beyond the restricted Pod Security Standard.
func restrictedNamespace(t *testing.T) string {
	t.Helper()
	namespace := newNamespace(t)
	_, err := newClient(t).CoreV1().Namespaces().Patch(patient(t), namespace, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return namespace
}

// applyRestricted applies objects, and creates a pod of each Deployment and CronJob, for which alone the namespace could refuse it.
func applyRestricted(t *testing.T, namespace string, objects []*unstructured.Unstructured) {
	t.Helper()
	ctx := patient(t)
	if err := manifests.Apply(ctx, controlPlane.Config(), namespace, objects); err != nil {
		t.Fatal(err)
	}
	pods := 0
	for _, object := range objects {
		var template corev1.PodTemplateSpec
		switch object.GetKind() {
		case "Deployment":
			var deployment appsv1.Deployment
			convert(t, object, &deployment)
			template = deployment.Spec.Template
		case "CronJob":
			var job batchv1.CronJob
			convert(t, object, &job)
			template = job.Spec.JobTemplate.Spec.Template
		default:
			continue
		}
		admitted(t, namespace, template)
		pods++
	}
	if pods != 1 {
		t.Errorf("%d kinds of pods, want one", pods)
	}
}

// admitted creates a pod.
func admitted(t *testing.T, namespace string, template corev1.PodTemplateSpec) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.GenerateName = "pod-"
	options := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	if _, err := newClient(t).CoreV1().Pods(namespace).Create(patient(t), pod, options); err != nil {
		t.Errorf("a pod of the template: %v", err)
	}
}

// TestEventsMeet: what ../deploy/flux sends arrives where ../deploy/kustomize/events listens, and both have the same key.
func TestEventsMeet(t *testing.T) {
	t.Parallel()
	const namespace = "flux-system"
	objects, err := manifests.Render(kustomizeEvents, namespace)
	if err != nil {
		t.Fatal(err)
	}
	var deployment appsv1.Deployment
	var service corev1.Service
	var configMap corev1.ConfigMap
	take(t, objects, "Deployment", &deployment)
	take(t, objects, "Service", &service)
	take(t, objects, "ConfigMap", &configMap)
	if slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Secret" }) {
		t.Error("a key is shipped")
	}
	c, err := config.Parse("config.yaml", []byte(configMap.Data["config.yaml"]), nil)
	if err != nil {
		t.Fatal(err)
	}
	sender := c.Events.Senders[0]
	c.Events.Senders = nil
	base, err := config.Load(filepath.Join(kustomizeBase, "config.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(base, c, cmpopts.IgnoreFields(refresh.Target{}, "Format")); diff != "" {
		t.Errorf("more than events differs from the base (-base +events)\n%s", diff)
	}

	senders, err := manifests.Render(deployFlux, namespace)
	if err != nil {
		t.Fatal(err)
	}
	var provider struct {
		Spec struct {
			Type      string                      `json:"type"`
			Address   string                      `json:"address"`
			SecretRef corev1.LocalObjectReference `json:"secretRef"`
		} `json:"spec"`
	}
	var alert struct {
		Spec struct {
			ProviderRef   corev1.LocalObjectReference `json:"providerRef"`
			EventSeverity string                      `json:"eventSeverity"`
			EventSources  []corev1.ObjectReference    `json:"eventSources"`
		} `json:"spec"`
	}
	take(t, senders, "Provider", &provider)
	if rest := take(t, senders, "Alert", &alert); len(rest) != 1 {
		t.Errorf("there are %d objects beside the Alert, want the Provider alone", len(rest))
	}

	// The way: Provider → Service → port of the container → the configuration's address.
	want := "http://" + service.Name + "." + service.Namespace + ".svc/events"
	if provider.Spec.Type != "generic-hmac" || provider.Spec.Address != want {
		t.Errorf("the Provider is %s of %s, want generic-hmac of %s", provider.Spec.Type, provider.Spec.Address, want)
	}
	container := deployment.Spec.Template.Spec.Containers[0]
	port := service.Spec.Ports[0]
	listens := slices.IndexFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name == port.TargetPort.StrVal })
	if port.Port != 80 || listens < 0 || c.Events.Address != fmt.Sprintf(":%d", container.Ports[listens].ContainerPort) {
		t.Errorf("the Service leads from %d to %s of %v, want 80 to %s", port.Port, port.TargetPort.StrVal, container.Ports, c.Events.Address)
	}
	if selector := labels.SelectorFromSet(service.Spec.Selector); selector.Empty() || !selector.Matches(labels.Set(deployment.Spec.Template.Labels)) {
		t.Errorf("the Service selects %s, the pods have %v", selector, deployment.Spec.Template.Labels)
	}

	// The key: Flux reads "token" of the Provider's Secret.
	key := volume(t, deployment.Spec.Template.Spec, "events").Secret
	mount := container.VolumeMounts[slices.IndexFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "events" })]
	if key.SecretName != provider.Spec.SecretRef.Name || key.Optional != nil || sender.HMACKeyFile != mount.MountPath+"/token" {
		t.Errorf("%s is mounted at %s, and %s is read; the Provider has %s", key.SecretName, mount.MountPath, sender.HMACKeyFile, provider.Spec.SecretRef.Name)
	}

	// The kinds: all that read a Secret.
	var got, kinds []string
	for _, source := range alert.Spec.EventSources {
		got = append(got, source.Kind+"/"+source.Name)
	}
	for _, k := range sourceKinds {
		kinds = append(kinds, k.kind+"/*")
	}
	slices.Sort(got)
	slices.Sort(kinds)
	if diff := cmp.Diff(kinds, got); diff != "" || alert.Spec.EventSeverity != "error" || alert.Spec.ProviderRef.Name != senders[0].GetName() {
		t.Errorf("the Alert: %+v; kinds (-want +got)\n%s", alert.Spec, diff)
	}
}

// volume gives a pod's volume.
func volume(t *testing.T, pod corev1.PodSpec, name string) corev1.Volume {
	t.Helper()
	i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	if i < 0 {
		t.Fatalf("no volume %s in %v", name, pod.Volumes)
	}
	return pod.Volumes[i]
}

// overlay writes an overlay over a folder, whose targets are in namespace, and gives its own.
func overlay(t *testing.T, over, namespace, prefix, suffix string) string {
	t.Helper()
	folder := t.TempDir()
	relative := func(path string) string {
		t.Helper()
		absolute, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		out, err := filepath.Rel(folder, absolute)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	below, err := os.ReadFile(filepath.Join(over, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"config.yaml": strings.ReplaceAll(string(below), "flux-system/", namespace+"/"),
		"kustomization.yaml": `
resources: [` + relative(over) + `]
namePrefix: "` + prefix + `"
nameSuffix: "` + suffix + `"
transformers: [` + relative(kustomizeAccount) + `]
configMapGenerator:
  - {name: flux-token-refresher-config, namespace: flux-system, behavior: replace, files: [config.yaml]}
`,
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// take decodes the one object of a kind, and gives the others.
func take(t *testing.T, objects []*unstructured.Unstructured, kind string, into any) []*unstructured.Unstructured {
	t.Helper()
	is := func(object *unstructured.Unstructured) bool { return object.GetKind() == kind }
	i := slices.IndexFunc(objects, is)
	if i < 0 || slices.ContainsFunc(objects[i+1:], is) {
		t.Fatalf("there is not one %s", kind)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(objects[i].Object, into); err != nil {
		t.Fatal(err)
	}
	return slices.Delete(slices.Clone(objects), i, i+1)
}

// convert decodes an object; a field that its type does not have is an error.
func convert(t *testing.T, object *unstructured.Unstructured, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, into, true); err != nil {
		t.Fatalf("%s: %v", title(object), err)
	}
}

// title is what an object is called in messages.
func title(object *unstructured.Unstructured) string {
	return object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
}
