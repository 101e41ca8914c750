package e2e

// docs/migration.md and docs/azure.md, command by command, as far as they need no Azure: in, each way over and back, and out.

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/toolchain"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

// A reader is somebody with kubectl and a page of docs, in a checkout of this repository.
type reader struct {
	dir string
	env []string
	// unread are the page's commands that are still to come.
	unread []string
}

func newReader(t *testing.T, c *cluster.Cluster, page string, env ...string) *reader {
	t.Helper()
	kubectl, err := toolchain.Kubectl.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := cluster.Kubeconfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{dir: t.TempDir()}
	if err := os.CopyFS(filepath.Join(r.dir, "deploy"), os.DirFS("../deploy")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(r.dir, "overlay"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		"overlay/kustomization.yaml": "resources: [../deploy/kustomize/base]\n",
		"kubeconfig":                 string(kubeconfig),
	} {
		if err := os.WriteFile(filepath.Join(r.dir, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The built program has a version in its name: see run.
	r.env = slices.Concat(env, []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "KUBECONFIG=" + filepath.Join(r.dir, "kubeconfig"), "KUBECTL=" + kubectl,
	})

	text, err := os.ReadFile(filepath.Join("../docs", page))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ *((?:kubectl|printf) .*)$`).FindAllStringSubmatch(string(text), -1) {
		r.unread = append(r.unread, strings.ReplaceAll(m[1], " NAME", " writer"))
	}
	return r
}

// next runs the page's next command, which has that text, and gives what it prints.
func (r *reader) next(t *testing.T, with string) string {
	t.Helper()
	if len(r.unread) == 0 || !strings.Contains(r.unread[0], with) {
		t.Fatalf("the next command is not about %q: %q", with, r.unread)
	}
	line := r.unread[0]
	r.unread = r.unread[1:]
	return r.run(t, line)
}

func (r *reader) run(t *testing.T, line string) string {
	t.Helper()
	shell := exec.CommandContext(patient(t), "sh", "-euc", "kubectl() { \"$KUBECTL\" \"$@\"; }\n"+line)
	shell.Dir, shell.Env = r.dir, r.env
	var stderr bytes.Buffer
	shell.Stderr = &stderr
	stdout, err := shell.Output()
	if err != nil {
		t.Fatalf("%s\n%s\n%s%s", line, err, stdout, stderr.String())
	}
	return string(stdout)
}

func TestMigration(t *testing.T) {
	t.Parallel()
	const name, pat = "flux-system", "a-personal-access-token"
	c, f := newFlux(t)
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	r := newReader(t, c, "migration.md", "PAT="+pat)
	i := install(t, func(spec *installation.Spec) { spec.Cluster, spec.Namespace = c, flux.Namespace })
	secrets := client.CoreV1().Secrets(flux.Namespace)
	get := func() *corev1.Secret {
		t.Helper()
		s, err := secrets.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	hasPAT := func(s *corev1.Secret) bool {
		_, bearer := s.Data["bearerToken"]
		return !bearer && string(s.Data["username"]) == "git" && string(s.Data["password"]) == pat
	}

	// From a personal access token.
	theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"username": "git", "password": pat}}
	if _, err := secrets.Create(t.Context(), theirs, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.next(t, "prune=disabled")
	replica := startReplica(t, i, "refresher-0", "")
	awaitSecret(t, i, name, sound(i))
	if got := r.next(t, secret.Reason); got != string(refresh.Adopted) {
		t.Errorf("the reason is %q", got)
	}
	if s := get(); string(s.Data["password"]) != pat {
		t.Error("the personal access token is not left behind: is the page still right?")
	}
	removal := r.unread[0]
	if told := awaitEvent(t, i, name, string(refresh.Adopted)); !strings.HasSuffix(told.Message, ": "+removal) {
		t.Errorf("the page removes what is left by\n%s\nand the Event says\n%s", removal, told.Message)
	}
	r.next(t, "/data/password")
	if s := get(); len(s.Data) != 1 || !sound(i)(s) {
		t.Errorf("the Secret has %d keys, want a token alone", len(s.Data))
	}

	// From a CronJob.
	pod := corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "writer", Image: "writer"}}}
	writer := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "writer"}, Spec: batchv1.CronJobSpec{
		Schedule:    "*/45 * * * *",
		JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: pod}}},
	}}
	jobs := client.BatchV1().CronJobs(flux.Namespace)
	if _, err := jobs.Create(t.Context(), writer, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.next(t, "cronjob")
	if job, err := jobs.Get(t.Context(), "writer", metav1.GetOptions{}); err != nil || !*job.Spec.Suspend {
		t.Errorf("it still runs (%v)", err)
	}
	r.next(t, "delete cronjob")

	// From provider: azure, and to it.
	source := flux.GitRepository(name, "https://dev.azure.com/org/project/_git/repository", name)
	for field, value := range map[string]any{"provider": "azure", "suspend": true} { // nothing asks that host
		if err := unstructured.SetNestedField(source.Object, value, "spec", field); err != nil {
			t.Fatal(err)
		}
	}
	unstructured.RemoveNestedField(source.Object, "spec", "secretRef")
	if _, err := f.GitRepositories(flux.Namespace).Create(t.Context(), source, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	reads := func() (provider, from string) {
		t.Helper()
		source, err := f.GitRepositories(flux.Namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		provider, _, _ = unstructured.NestedString(source.Object, "spec", "provider")
		from, _, _ = unstructured.NestedString(source.Object, "spec", "secretRef", "name")
		return provider, from
	}
	if ends, err := time.Parse(time.RFC3339, r.next(t, secret.ExpiresAt)); err != nil || !ends.After(time.Now()) {
		t.Errorf("the token ends %s (%v)", ends, err)
	}
	r.next(t, "gitrepository")
	if provider, from := reads(); provider != "generic" || from != name {
		t.Errorf("it reads %q by %q", from, provider)
	}
	r.next(t, "gitrepository")
	if provider, from := reads(); provider != "azure" || from != "" {
		t.Errorf("it reads %q by %q", from, provider)
	}

	// To a personal access token, and to the product again.
	there := r.unread[:2]
	r.next(t, "suspend=true")
	r.next(t, "printf")
	if !hasPAT(get()) {
		t.Error("there is no personal access token in the Secret, or another one beside it")
	}
	r.next(t, "suspend-")
	awaitSecret(t, i, name, sound(i))

	// An installation, as docs/azure.md makes it.
	const clientID = "00000000-0000-0000-0000-000000000001"
	installs := newReader(t, c, "azure.md", "AZURE_CLIENT_ID="+clientID)
	if got := installs.next(t, "openid-configuration"); !strings.Contains(got, `"issuer":"https://`) {
		t.Errorf("the cluster says no issuer: %s", got)
	}
	installs.next(t, "apply -k overlay")
	installs.next(t, "serviceaccount")
	account, err := client.CoreV1().ServiceAccounts(flux.Namespace).Get(t.Context(), installation.Account, metav1.GetOptions{})
	if err != nil || account.Annotations["azure.workload.identity/client-id"] != clientID {
		t.Errorf("the account's client id is %q (%v)", account.Annotations["azure.workload.identity/client-id"], err)
	}
	installs.next(t, "rollout restart")
	deployment, err := client.AppsV1().Deployments(flux.Namespace).Get(t.Context(), installation.Account, metav1.GetOptions{})
	if err != nil || len(deployment.Spec.Template.Annotations) == 0 {
		t.Errorf("the pods do not start anew (%v)", err)
	}
	if got := installs.next(t, "describe"); !strings.Contains(got, secret.ExpiresAt) || strings.Contains(got, string(get().Data["bearerToken"])) {
		t.Errorf("the Secret is shown without its end, or with its token: %s", got)
	}
	if len(installs.unread) > 0 {
		t.Errorf("not run: %q", installs.unread)
	}

	// Uninstalling.
	r.run(t, "kubectl apply -k deploy/flux")
	for _, line := range there {
		r.run(t, line)
	}
	r.next(t, "deploy/flux")
	if err := replica.Stop(patient(t)); err != nil { // as the end of its Deployment would, which is next
		t.Fatal(err)
	}
	r.next(t, "overlay")
	r.next(t, "lease")
	r.next(t, "flux-token-refresher-events")
	r.next(t, "annotate")
	r.next(t, "label")
	if len(r.unread) > 0 {
		t.Errorf("not run: %q", r.unread)
	}
	s := get()
	if !hasPAT(s) {
		t.Error("there is no personal access token in the Secret, or another one beside it")
	}
	for key := range s.Annotations {
		if strings.HasPrefix(key, "flux-token-refresher/") {
			t.Errorf("the annotation %s is left", key)
		}
	}
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left in the cluster: %q", left)
	}
}

// left gives what still has the product's name, but for what the harness has renamed: what is not in a namespace.
func (r *reader) left(t *testing.T) []string {
	t.Helper()
	var list unstructured.UnstructuredList
	kinds := "deployments,configmaps,serviceaccounts,roles,rolebindings,leases,services,alerts,providers,validatingadmissionpolicies,validatingadmissionpolicybindings"
	if err := json.Unmarshal([]byte(r.run(t, "kubectl -n "+flux.Namespace+" get "+kinds+" -o json")), &list); err != nil {
		t.Fatal(err)
	}
	var left []string
	err := meta.EachListItem(&list, func(object runtime.Object) error {
		accessor, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		if name := accessor.GetName(); strings.HasPrefix(name, installation.Account) && name != installation.Account+"-"+flux.Namespace {
			left = append(left, object.GetObjectKind().GroupVersionKind().Kind+" "+name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}
