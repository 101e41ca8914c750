package e2e

// What starts a run of `once` and keeps nothing running in between: the objects of Knative and Argo Events are decoded strictly into those
// projects' own types, and what they would make of them is handed to a real API server.

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	argov1 "github.com/argoproj/argo-events/pkg/apis/events/v1alpha1"
	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	sinksv1 "knative.dev/eventing/pkg/apis/sinks/v1alpha1"

	"flux-token-refresher/e2e/internal/manifests"
)

// TestOnceAsReplicas: a run has all that a replica has, but for what serves and what spreads.
func TestOnceAsReplicas(t *testing.T) {
	t.Parallel()
	base := deploymentOf(t, built(t, kustomizeBase)).Spec.Template
	var run batchv1.CronJob
	convert(t, find(t, built(t, serverlessOnce), "CronJob"), &run)

	want, got := base.DeepCopy(), run.Spec.JobTemplate.Spec.Template.DeepCopy()
	container := &want.Spec.Containers[0]
	container.Ports, container.LivenessProbe, container.ReadinessProbe, container.StartupProbe = nil, nil, nil, nil
	want.Spec.TopologySpreadConstraints = nil
	want.Spec.RestartPolicy = corev1.RestartPolicyNever
	want.Spec.Volumes[0].ConfigMap.Name = "flux-token-refresher-config" // with a hash in the base
	container.Args = append([]string{"once", "--within=10m"}, container.Args[1:]...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-replica +run\n%s", diff)
	}
}

// TestKnative: a Trigger hands CloudEvents to a JobSink, which makes a Job of each, with the event as a file.
func TestKnative(t *testing.T) {
	t.Parallel()
	objects := built(t, serverlessKnative)
	var trigger eventingv1.Trigger
	var sink sinksv1.JobSink
	convert(t, find(t, objects, "Trigger"), &trigger)
	convert(t, find(t, objects, "JobSink"), &sink)
	trigger.SetDefaults(t.Context())
	if err := trigger.Validate(t.Context()); err != nil {
		t.Errorf("the Trigger: %v", err)
	}
	ref := trigger.Spec.Subscriber.Ref
	if ref.Kind != sink.Kind || ref.APIVersion != sink.APIVersion || ref.Name != sink.Name || trigger.Namespace != sink.Namespace {
		t.Errorf("the Trigger is for %v, not for the JobSink %s/%s", ref, sink.Namespace, sink.Name)
	}
	var exact []string
	for _, filter := range trigger.Spec.Filters[0].Any {
		exact = append(exact, filter.Exact["type"])
	}
	if diff := cmp.Diff([]string{"flux-token-refresher.refresh.requested", "io.fluxcd.event"}, exact); diff != "" {
		t.Errorf("types of events (-understood +let through)\n%s", diff)
	}

	finalOn2(t, sink.Spec.Job.Spec)

	// What JobSink adds (knative.dev/eventing/cmd/jobsink): a name, and a Secret with the event under the key "event".
	job := sink.Spec.Job
	container := &job.Spec.Template.Spec.Containers[0]
	if !slices.Contains(container.Args, "--event=/etc/jobsink-event/event") {
		t.Errorf("the event is read from another place than /etc/jobsink-event/event: %q", container.Args)
	}
	asOnce(t, objects, job.Spec.Template.DeepCopy(), "--event=/etc/jobsink-event/event")
	container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: "jobsink-event", ReadOnly: true, MountPath: "/etc/jobsink-event"})
	job.Spec.Template.Spec.Volumes = append(job.Spec.Template.Spec.Volumes, corev1.Volume{
		Name: "jobsink-event", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "event"}},
	})
	job.Name = "flux-token-refresher-event"
	started(t, job)
}

// TestArgoEvents: Flux's webhook comes in at an EventSource, and a Sensor makes a Job of it, with Flux's JSON as a file.
func TestArgoEvents(t *testing.T) {
	t.Parallel()
	objects := built(t, serverlessArgo)
	var source argov1.EventSource
	var watching argov1.Sensor
	convert(t, find(t, objects, "EventSource"), &source)
	convert(t, find(t, objects, "Sensor"), &watching)
	if err := argov1.ValidateEventSource(&source); err != nil {
		t.Errorf("the EventSource: %v", err)
	}
	dependency := watching.Spec.Dependencies[0]
	webhook, ok := source.Spec.Webhook[dependency.EventName]
	if !ok || dependency.EventSourceName != source.Name {
		t.Fatalf("the Sensor waits for %s of %s", dependency.EventName, dependency.EventSourceName)
	}

	var role rbacv1.Role
	take(t, slices.DeleteFunc(slices.Clone(objects), func(o *unstructured.Unstructured) bool {
		return o.GetName() != watching.Spec.Template.ServiceAccountName
	}), "Role", &role)
	want := []rbacv1.PolicyRule{{APIGroups: []string{batchv1.GroupName}, Resources: []string{"jobs"}, Verbs: []string{"create"}}}
	if diff := cmp.Diff(want, role.Rules); diff != "" {
		t.Errorf("the Sensor's rights (-want +got)\n%s", diff)
	}

	// The way in: Provider → the Service that Argo Events makes (NAME-eventsource-svc) → the webhook, with one key.
	var provider struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     struct {
			Type      string                      `json:"type"`
			Address   string                      `json:"address"`
			SecretRef corev1.LocalObjectReference `json:"secretRef"`
		} `json:"spec"`
	}
	take(t, objects, "Provider", &provider)
	address := "http://" + source.Name + "-eventsource-svc." + source.Namespace + ".svc:" + webhook.Port + webhook.Endpoint
	if provider.Spec.Type != "generic" || provider.Spec.Address != address {
		t.Errorf("the Provider is %s of %s, want generic of %s", provider.Spec.Type, provider.Spec.Address, address)
	}
	if webhook.AuthSecret == nil || webhook.AuthSecret.Name != provider.Spec.SecretRef.Name {
		t.Errorf("the EventSource asks for %v, the Provider shows %v", webhook.AuthSecret, provider.Spec.SecretRef)
	}

	// What the Sensor makes of an event that the webhook took, by the libraries that it uses for that (argo-events/pkg/sensors/triggers):
	// the JSON at dataKey of what came in is set as a string at dest.
	event := `{"involvedObject":{"kind":"GitRepository","namespace":"flux-system","name":"repo"},"severity":"error",` +
		`"message":"failed to checkout: \"authentication required\"","timestamp":"2026-01-01T00:00:00Z"}`
	trigger := watching.Spec.Triggers[0].Template.K8s
	parameter := trigger.Parameters[0]
	if len(trigger.Parameters) != 1 || parameter.Src.DependencyName != dependency.Name || trigger.Operation != argov1.Create {
		t.Errorf("the Sensor is to %s with %+v", trigger.Operation, trigger.Parameters)
	}
	took := gjson.Get(`{"header":{"Authorization":["Bearer key"]},"body":`+event+`}`, parameter.Src.DataKey).Raw
	content, err := sjson.SetBytes(trigger.Source.Resource.Value, parameter.Dest, took)
	if err != nil {
		t.Fatal(err)
	}
	made := &unstructured.Unstructured{}
	if err := made.UnmarshalJSON(content); err != nil {
		t.Fatal(err)
	}
	job := &batchv1.Job{}
	convert(t, made, job)
	finalOn2(t, job.Spec)
	template := job.Spec.Template.DeepCopy()
	if got := template.Annotations["flux-token-refresher/event"]; got != event {
		t.Errorf("the event is annotated as %s", got)
	}
	items := volume(t, template.Spec, "event").DownwardAPI.Items
	mounts := template.Spec.Containers[0].VolumeMounts
	file := mounts[len(mounts)-1].MountPath + "/" + items[0].Path
	if len(items) != 1 || items[0].FieldRef.FieldPath != "metadata.annotations['flux-token-refresher/event']" {
		t.Errorf("the file holds %v", items)
	}
	template.Annotations = nil
	template.Spec.Containers[0].VolumeMounts = mounts[:len(mounts)-1]
	template.Spec.Volumes = slices.DeleteFunc(template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "event" })
	asOnce(t, objects, template, "--event="+file)
	started(t, job)
}

// TestPodMonitor: its type is that of the Prometheus operator, and it finds the pods and their port.
func TestPodMonitor(t *testing.T) {
	t.Parallel()
	objects := built(t, kustomization(t, map[string]string{
		"kustomization.yaml": "resources: [DEPLOY/kustomize/base]\ncomponents: [DEPLOY/kustomize/components/pod-monitor]\n",
	}))
	var monitor monitoringv1.PodMonitor
	convert(t, find(t, objects, "PodMonitor"), &monitor)
	deployment := deploymentOf(t, objects)
	if !cmp.Equal(&monitor.Spec.Selector, deployment.Spec.Selector) || monitor.Namespace != deployment.Namespace {
		t.Errorf("it selects %v in %s", monitor.Spec.Selector, monitor.Namespace)
	}
	ports := deployment.Spec.Template.Spec.Containers[0].Ports
	if endpoint := monitor.Spec.PodMetricsEndpoints[0]; *endpoint.Port != ports[0].Name {
		t.Errorf("it scrapes %s of %v", *endpoint.Port, ports)
	}
}

// TestShippedArguments: the product understands each command line that is shipped.
func TestShippedArguments(t *testing.T) {
	t.Parallel()
	released, _ := release(t, own, placeholder)
	objects := slices.Concat(released, built(t, kustomizeBase), built(t, serverlessKnative), built(t, serverlessArgo))
	lines := map[string]bool{}
	var collect func(any)
	collect = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if args, ok, _ := unstructured.NestedStringSlice(v, "args"); ok {
				lines[strings.Join(args, " ")] = true
			}
			for _, value := range v {
				collect(value)
			}
		case []any:
			for _, value := range v {
				collect(value)
			}
		}
	}
	for _, object := range objects {
		collect(object.Object)
	}
	if len(lines) != 4 {
		t.Errorf("found %d command lines, want those of run, once, and two with an event: %v", len(lines), lines)
	}
	for line := range lines {
		// With --help nothing is done, but a flag that is not known is refused all the same.
		command := exec.CommandContext(patient(t), product(t), append(strings.Fields(line), "--help")...)
		if output, err := command.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, output)
		}
	}
}

// built is what a kustomization makes.
func built(t *testing.T, folder string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := manifests.Build(folder)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// asOnce compares a pod with that of the CronJob among objects: it does the same for one event.
func asOnce(t *testing.T, objects []*unstructured.Unstructured, pod *corev1.PodTemplateSpec, event string) {
	t.Helper()
	var run batchv1.CronJob
	convert(t, find(t, objects, "CronJob"), &run)
	want := run.Spec.JobTemplate.Spec.Template
	for i, arg := range want.Spec.Containers[0].Args {
		if strings.HasPrefix(arg, "--within=") {
			want.Spec.Containers[0].Args[i] = event
		}
	}
	if diff := cmp.Diff(&want, pod); diff != "" {
		t.Errorf("-CronJob +event\n%s", diff)
	}
}

// finalOn2 sees that a run with a wrong event, which exits with 2, is not tried again.
func finalOn2(t *testing.T, job batchv1.JobSpec) {
	t.Helper()
	want := []batchv1.PodFailurePolicyRule{{
		Action:      batchv1.PodFailurePolicyActionFailJob,
		OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{2}},
	}}
	if diff := cmp.Diff(want, job.PodFailurePolicy.Rules); diff != "" {
		t.Errorf("what is not tried again: -want +got\n%s", diff)
	}
}

// started creates a Job, and its pod, in a namespace that enforces the restricted Pod Security Standard.
func started(t *testing.T, job *batchv1.Job) {
	t.Helper()
	namespace := restrictedNamespace(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: job.Spec.Template.Spec.ServiceAccountName}}
	if _, err := newClient(t).CoreV1().ServiceAccounts(namespace).Create(patient(t), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	options := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	created, err := newClient(t).BatchV1().Jobs(namespace).Create(patient(t), job, options)
	if err != nil {
		t.Fatal(err)
	}
	admitted(t, namespace, created.Spec.Template)
}
