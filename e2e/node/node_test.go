//go:build node

package main

// What holds of the product as it is deployed, however it was installed.

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/node"
	"flux-token-refresher/election"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// shared is the world of all tests, which follow one another.
var shared *world

// patience bounds each wait of a test that expects something to happen.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	os.Exit(node.Run(prepare, func(dir string) int {
		began := time.Now()
		w, err := start(context.Background(), dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Fprintf(os.Stdout, "a node with Flux is ready after %s\n", time.Since(began).Round(time.Second))
		shared = w
		code := m.Run()
		if err := w.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}))
}

// TestImage: what the Dockerfile gives is small, is for a user that is not root, says what it is, and runs.
func TestImage(t *testing.T) {
	const most = 30 << 20
	size, err := os.Stat(filepath.Join(shared.dir, "flux-token-refresher.tar"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MiB, compressed", float64(size.Size())/(1<<20))
	if size.Size() > most {
		t.Errorf("the compressed image has %d bytes, want %d at the most", size.Size(), most)
	}
	config := imageConfig(t)
	if config.Config.User != "65532:65532" {
		t.Errorf("its user is %q", config.Config.User)
	}
	for label, want := range map[string]string{
		"title": "flux-token-refresher", "licenses": "Apache-2.0", "version": version, "revision": revision,
	} {
		if got := config.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
	if got := config.RootFS.DiffIDs; len(got) > 2 {
		t.Errorf("it has %d layers", len(got))
	}
	out, err := shared.images.Run(t.Context(), imageName, "/flux-token-refresher", "version")
	if want := "flux-token-refresher " + version + " (revision " + revision + ", "; err != nil || !strings.HasPrefix(out, want) {
		t.Errorf("its program says %q, %v, want %s", out, err, want)
	}
}

// imageConfiguration is what is looked at of an image's configuration.
type imageConfiguration struct {
	Config struct {
		User   string
		Labels map[string]string
	} `json:"config"`
	RootFS struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// imageConfig finds it in the archive: the one blob that has a rootfs.
func imageConfig(t *testing.T) imageConfiguration {
	t.Helper()
	file, err := os.Open(filepath.Join(shared.dir, "flux-token-refresher.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	archive := tar.NewReader(file)
	for {
		header, err := archive.Next()
		if err != nil {
			t.Fatalf("no configuration in the archive: %v", err)
		}
		if header.Size > 1<<16 || !strings.HasPrefix(header.Name, "blobs/") {
			continue
		}
		var config imageConfiguration
		if json.NewDecoder(archive).Decode(&config) == nil && len(config.RootFS.DiffIDs) > 0 {
			return config
		}
	}
}

func TestKustomize(t *testing.T) { deployed(t, &kustomize{world: shared}) }

func TestHelm(t *testing.T) { deployed(t, &helm{world: shared}) }

// deployed installs the product in one way, puts it to the test, and takes it away.
func deployed(t *testing.T, by way) {
	began := time.Now()
	shared.Entra.Change(func(c *azuretest.Config) { c.MinLifetime, c.MaxLifetime = 0, 0 })
	logs, err := shared.logs(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if written := logs.stop(); t.Failed() {
			t.Log(written)
			explain(ctx, t)
		}
		if err := shared.GitRepositories(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		if err := shared.uninstall(ctx, by); err != nil {
			t.Error(err)
		}
	})
	if err := shared.install(patient(t), by); err != nil {
		t.Fatal(err)
	}
	t.Logf("three Pods ready after %s", time.Since(began).Round(time.Millisecond))
	d := &deployment{world: shared, way: by, source: strings.ToLower(t.Name())}
	for _, step := range []struct {
		name string
		test func(*deployment, *testing.T)
	}{
		{"the token of a Pod's ServiceAccount becomes one that Azure DevOps takes", (*deployment).token},
		{"an event comes through the Service", (*deployment).event},
		{"the leader's Pod is deleted", (*deployment).deleted},
		{"the leader's Pod is evicted, and no second one", (*deployment).evicted},
		{"no Secret holds a dead token while the Pods are replaced", (*deployment).rolled},
		{"probes and logs", (*deployment).observed},
		{"memory", (*deployment).memory},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(d, t) }) {
			t.FailNow() // the steps build on one another
		}
	}
}

// deployment is the product, installed.
type deployment struct {
	*world
	way

	source string // a GitRepository
}

// token: three Pods are ready, the Secret holds a token that Entra gave the ServiceAccount's, and Flux pulls with it.
func (d *deployment) token(t *testing.T) {
	pods := d.pods(t)
	if len(pods) != replicas {
		t.Errorf("there are %d Pods", len(pods))
	}
	for _, pod := range pods {
		if pod.Status.Phase != corev1.PodRunning {
			t.Errorf("%s is %s", pod.Name, pod.Status.Phase)
		}
	}
	began := time.Now()
	d.await(t, d.good)
	t.Logf("the Secret has a token %s after that", time.Since(began).Round(time.Millisecond))
	repository, err := d.devops.Create(t.Context(), "org", "project", d.source)
	if err != nil {
		t.Fatal(err)
	}
	source := flux.GitRepository(d.source, repository.URL, secretName)
	if _, err := d.GitRepositories(namespace).Create(t.Context(), source, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d.ready(t, func(*unstructured.Unstructured) bool { return true })
	t.Logf("Flux has pulled with it %s after that", time.Since(began).Round(time.Millisecond))
}

// event: Azure DevOps revokes the token; source-controller fails; notification-controller tells a Pod through the Service's address; there is
// another token and the source is ready, without anybody's doing.
func (d *deployment) event(t *testing.T) {
	const name = "token_refresher_events_total"
	before := d.count(t, name)
	held := d.await(t, d.good)
	d.devops.Revoke(string(held.Data["bearerToken"]))
	began := time.Now()
	const asked = "after the revocation"
	if err := d.Request(t.Context(), namespace, d.source, asked); err != nil {
		t.Fatal(err)
	}
	next := d.await(t, d.other(held))
	t.Logf("another token %s after the revocation", time.Since(began).Round(time.Millisecond))
	if outcome := next.Annotations[secret.HandledOutcome]; outcome != string(refresh.Refreshed) {
		t.Errorf("the request ended as %q", outcome)
	}
	d.ready(t, func(o *unstructured.Unstructured) bool { return flux.Handled(o) != asked }) // the product's own word was the last
	t.Logf("the source is ready %s after the revocation", time.Since(began).Round(time.Millisecond))
	// The event may come after what the leader saw by itself.
	d.until(t, "an event reached a Pod", func() bool { return d.count(t, name) > before })
}

// deleted: another Pod leads as soon as the leader's has given back the Lease, and it mints nothing.
func (d *deployment) deleted(t *testing.T) {
	minted := d.Entra.Minted(client, azuretest.AzureDevOpsScope)
	leader := d.leader(t, func(string) bool { return true })
	began := time.Now()
	if err := d.Client.CoreV1().Pods(namespace).Delete(t.Context(), leader, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	d.takeover(t, leader, began)
	d.full(t)
	if now := d.Entra.Minted(client, azuretest.AzureDevOpsScope); now != minted {
		t.Errorf("%d tokens were minted, though the one in the Secret is good", now-minted)
	}
}

// evicted: a drain takes the leader's Pod, and no other until there are three again.
func (d *deployment) evicted(t *testing.T) {
	leader := d.leader(t, func(string) bool { return true })
	var other string
	for _, pod := range d.pods(t) {
		if pod.Name != leader {
			other = pod.Name
		}
	}
	d.awaitBudget(t)
	began := time.Now()
	if err := d.evict(t, leader); err != nil {
		t.Fatal(err)
	}
	if err := d.evict(t, other); !apierrors.IsTooManyRequests(err) {
		t.Errorf("a second eviction gave %v, want that the PodDisruptionBudget refuses it", err)
	}
	d.takeover(t, leader, began)
	d.full(t)
	d.awaitBudget(t)
	if err := d.evict(t, other); err != nil {
		t.Errorf("an eviction after that: %v", err)
	}
	d.full(t)
}

// rolled: tokens live for seconds; the Pods are replaced by a restart, then by a change of the configuration.
func (d *deployment) rolled(t *testing.T) {
	d.Entra.Change(func(c *azuretest.Config) { c.MinLifetime, c.MaxLifetime = 20*time.Second, 24*time.Second })
	held := d.await(t, d.good)
	d.annotate(t, `{"metadata":{"annotations":{"`+secret.Request+`":"short"}}}`)
	d.await(t, d.other(held))
	guard, err := d.guard(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	began, leader := time.Now(), d.leader(t, func(string) bool { return true })
	restart := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, began.Format(time.RFC3339))
	_, err = d.Client.AppsV1().Deployments(namespace).
		Patch(t.Context(), installation.Account, types.StrategicMergePatchType, []byte(restart), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.full(t)
	t.Logf("restarted in %s", time.Since(began).Round(time.Millisecond))
	d.leader(t, func(now string) bool { return now != leader }) // which was replaced

	began = time.Now()
	before := d.names(t)
	if err := d.apply(t.Context(), "{jitter: 0.2}"); err != nil {
		t.Fatal(err)
	}
	d.full(t)
	t.Logf("reconfigured in %s", time.Since(began).Round(time.Millisecond))
	for name := range d.names(t) {
		if before[name] {
			t.Errorf("%s runs with the configuration of before", name)
		}
	}
	// The timer goes on, beyond the end of each token that was there before.
	const tokens = 4
	for ctx, n := patient(t), 1; n <= tokens; n++ {
		select {
		case hash := <-guard.tokens:
			t.Logf("token %d is %s", n, hash)
		case <-ctx.Done():
			t.Errorf("the Secret had %d tokens, want %d", n-1, tokens)
			n = tokens
		}
	}
	if dead := guard.stop(); len(dead) > 0 {
		t.Errorf("the Secret held dead tokens: %v", dead)
	}
}

// observed: the probes answer, nothing was restarted, and the logs are what docs/operating.md says: JSON, with messages that stand there, and no
// token.
func (d *deployment) observed(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join(d.root, "docs", "operating.md"))
	if err != nil {
		t.Fatal(err)
	}
	tokens := d.Entra.Tokens()
	for _, pod := range d.pods(t) {
		status := pod.Status.ContainerStatuses[0]
		if !status.Ready || status.RestartCount > 0 {
			t.Errorf("%s: %+v", pod.Name, status)
		}
		for _, path := range []string{"/healthz", "/readyz"} {
			if code, body := d.get(t, pod, path); code != http.StatusOK {
				t.Errorf("%s: GET %s: %d %s", pod.Name, path, code, body)
			}
		}
		log := d.log(t, pod.Name)
		for _, token := range tokens {
			if strings.Contains(log, token) {
				t.Errorf("the log of %s holds a token", pod.Name)
			}
		}
		if !strings.Contains(log, `"msg":"serving"`) {
			t.Errorf("the log of %s does not begin with that it serves:\n%s", pod.Name, log)
		}
		for line := range strings.Lines(log) {
			var record struct{ Level, Msg string }
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				t.Errorf("%s: %v: %s", pod.Name, err, line)
			}
			if !strings.Contains(string(manual), record.Msg) {
				t.Errorf("docs/operating.md does not explain %s %q", record.Level, record.Msg)
			}
		}
	}
}

// memory: with one target each Pod stays within its budget. What the working set has beyond that are pages of the program, more or fewer as the
// machine's kernel sees them in use, and as other containers have them too.
func (d *deployment) memory(t *testing.T) {
	const budget = 30 << 20
	leader := d.leader(t, func(string) bool { return true })
	for _, pod := range d.pods(t) {
		used := d.used(t, pod.Name)
		t.Logf("%s: working set %.1f MiB, of which anonymous %.1f, leads: %t",
			pod.Name, float64(used.WorkingSetBytes)/(1<<20), float64(used.RSSBytes)/(1<<20), pod.Name == leader)
		if used.RSSBytes > budget {
			t.Errorf("%s has %d bytes of anonymous memory, want %d at the most", pod.Name, used.RSSBytes, budget)
		}
	}
}

// memory is what the kubelet says that a container takes. RSSBytes is the anonymous part.
type memory struct{ WorkingSetBytes, RSSBytes uint64 }

// used asks the kubelet, which measures every ten seconds or so.
func (d *deployment) used(t *testing.T, pod string) (m memory) {
	t.Helper()
	d.until(t, "the kubelet knows the memory of "+pod, func() bool {
		answer, err := d.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(node.Name).SubResource("proxy").Suffix("stats/summary").
			DoRaw(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var summary struct {
			Pods []struct {
				PodRef     struct{ Name, Namespace string }
				Containers []struct{ Memory memory }
			}
		}
		if err := json.Unmarshal(answer, &summary); err != nil {
			t.Fatal(err)
		}
		for _, p := range summary.Pods {
			if p.PodRef.Namespace == namespace && p.PodRef.Name == pod && len(p.Containers) == 1 {
				m = p.Containers[0].Memory
			}
		}
		return m.RSSBytes > 0
	})
	return m
}

// takeover waits for another leader, by a Lease that was given back: one that has to end first was renewed at most a retryPeriod before.
func (d *deployment) takeover(t *testing.T, from string, began time.Time) {
	t.Helper()
	d.leader(t, func(holder string) bool { return holder != from })
	took := time.Since(began)
	t.Logf("another Pod leads after %s", took.Round(time.Millisecond))
	if limit := election.DefaultLeaseDuration - election.DefaultRetryPeriod; took >= limit {
		t.Errorf("it took %s until another Pod led: the Lease was not given back", took)
	}
}

// full waits until all replicas are ready again.
func (d *deployment) full(t *testing.T) {
	t.Helper()
	if err := d.rolledOut(patient(t), installation.Account, replicas); err != nil {
		t.Fatal(err)
	}
}

// awaitBudget waits until an eviction is allowed: the PodDisruptionBudget sees Pods later than the Deployment does.
func (d *deployment) awaitBudget(t *testing.T) {
	t.Helper()
	d.until(t, "an eviction is allowed", func() bool {
		budget, err := d.Client.PolicyV1().PodDisruptionBudgets(namespace).Get(t.Context(), installation.Account, metav1.GetOptions{})
		return err == nil && budget.Status.DisruptionsAllowed == 1
	})
}

func (d *deployment) evict(t *testing.T, pod string) error {
	t.Helper()
	eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: namespace}}
	return d.Client.PolicyV1().Evictions(namespace).Evict(t.Context(), eviction)
}

func (d *deployment) leader(t *testing.T, match func(string) bool) string {
	t.Helper()
	leader, err := d.Leader(patient(t), func(holder string) bool { return holder != "" && match(holder) })
	if err != nil {
		t.Fatal(err)
	}
	return leader
}

// pods are those that are not going away.
func (d *deployment) pods(t *testing.T) []corev1.Pod {
	t.Helper()
	options := metav1.ListOptions{}
	selected(&options)
	list, err := d.Client.CoreV1().Pods(namespace).List(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	var pods []corev1.Pod
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			pods = append(pods, pod)
		}
	}
	return pods
}

func (d *deployment) names(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, pod := range d.pods(t) {
		names[pod.Name] = true
	}
	return names
}

// await waits until the Secret is as match wants it.
func (d *deployment) await(t *testing.T, match func(*corev1.Secret) bool) *corev1.Secret {
	t.Helper()
	s, err := d.Secret(patient(t), secretName, match)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d *deployment) good(s *corev1.Secret) bool {
	if s == nil {
		return false
	}
	_, err := d.Entra.Validate(string(s.Data["bearerToken"]), azuretest.AzureDevOps)
	return err == nil
}

func (d *deployment) other(than *corev1.Secret) func(*corev1.Secret) bool {
	return func(s *corev1.Secret) bool {
		return d.good(s) && string(s.Data["bearerToken"]) != string(than.Data["bearerToken"])
	}
}

func (d *deployment) annotate(t *testing.T, patch string) {
	t.Helper()
	_, err := d.Client.CoreV1().Secrets(namespace).Patch(t.Context(), secretName, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// ready waits until the source is Ready, and as match wants it.
func (d *deployment) ready(t *testing.T, match func(*unstructured.Unstructured) bool) {
	t.Helper()
	_, err := d.AwaitGitRepository(patient(t), namespace, d.source, func(o *unstructured.Unstructured) bool {
		return flux.Ready(o).Status == metav1.ConditionTrue && match(o)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// count adds up a counter over all Pods.
func (d *deployment) count(t *testing.T, name string) (sum float64) {
	t.Helper()
	for _, pod := range d.pods(t) {
		_, metrics := d.get(t, pod, "/metrics")
		for line := range strings.Lines(metrics) {
			var value float64
			if i := strings.LastIndex(line, " "); strings.HasPrefix(line, name+"{") {
				if _, err := fmt.Sscan(line[i+1:], &value); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
			}
			sum += value
		}
	}
	return sum
}

// get asks a Pod's health port, as the kubelet and a scraper do.
func (d *deployment) get(t *testing.T, pod corev1.Pod, path string) (code int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+pod.Status.PodIP+":8081"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

func (d *deployment) log(t *testing.T, pod string) string {
	t.Helper()
	log, err := d.Client.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

// until looks again and again: for what cannot be watched.
func (d *deployment) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx := patient(t)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, ctx.Err())
		}
	}
}

// patient is the test's context, for as long as patience lasts.
func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// explain shows how the Pods are, and what they wrote.
func explain(ctx context.Context, t *testing.T) {
	t.Helper()
	pods, err := shared.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	for _, pod := range pods.Items {
		log, _ := shared.Client.CoreV1().Pods(namespace).
			GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: new(int64(20)), LimitBytes: new(int64(1 << 16))}).DoRaw(ctx) // where there is one
		t.Logf("%s is %s\n%s", pod.Name, pod.Status.Phase, log)
	}
	events, err := shared.Client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	if err != nil {
		t.Error(err)
		return
	}
	for _, e := range events.Items {
		message, _, _ := strings.Cut(e.Message, "\n") // Flux's hold what a Git server answered
		t.Logf("%s %s: %s", e.InvolvedObject.Name, e.Reason, message)
	}
}
