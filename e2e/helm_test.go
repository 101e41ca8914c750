package e2e

// The Helm chart: what a release is and says, and a real API server takes it.

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"flux-token-refresher/e2e/internal/chart"
)

const chartDir = "../deploy/helm/flux-token-refresher"

// placeholder is the client id that deploy/kustomize has, which the chart has none of.
const placeholder = "workloadIdentity: {clientID: 00000000-0000-0000-0000-000000000000}\n"

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
