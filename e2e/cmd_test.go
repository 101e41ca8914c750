package e2e

// The command line, and what a process does from its start to its end: exit codes, health, once, shutdown.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/events"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// shutdownLimit is what a shutdown may take; the base gives a pod twice as long.
const shutdownLimit = 5 * time.Second

// shortTerms is an election that notices a failure soon.
const shortTerms = "election: {leaseDuration: 3s, renewDeadline: 2s, retryPeriod: 400ms}\n"

func TestExitCodes(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	const good = `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities: [{name: repos, type: workloadIdentity}]
targets: [{secret: flux-system/flux-system, identity: repos}]
`
	kubeconfig, err := cluster.Kubeconfig(&rest.Config{Host: "https://" + taken.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"good.yaml":  good,
		"bad.yaml":   strings.Replace(good, "identity: repos", "identity: repo", 1),
		"taken.yaml": good + "health: {address: \"" + taken.Addr().String() + "\"}\n",
		"kubeconfig": string(kubeconfig),
		"good.json":  requestEvent("1", "flux-system", "flux-system"),
		"half.json":  requestEvent("1", "flux-system", "flux-system")[:100],
		"large.json": requestEvent("1", "flux-system", "flux-system") + strings.Repeat(" ", events.MaxSize),
		"old.json":   strings.Replace(requestEvent("1", "flux-system", "flux-system"), time.Now().UTC().Format(`"time":"2006-`), `"time":"2000-`, 1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := func(name string) string { return "--config=" + filepath.Join(dir, name) }
	access := "--kubeconfig=" + filepath.Join(dir, "kubeconfig")
	pod := []string{
		"AZURE_TENANT_ID=11111111-1111-1111-1111-111111111111", "AZURE_CLIENT_ID=22222222-2222-2222-2222-222222222222",
		"AZURE_FEDERATED_TOKEN_FILE=" + filepath.Join(dir, "assertion"), "POD_NAMESPACE=flux-system",
	}
	for _, c := range []struct {
		name   string
		args   []string
		env    []string
		code   int
		stdout string // holds this
		stderr string // holds this
	}{
		{"version", []string{"version"}, nil, 0, "flux-token-refresher", ""},
		{"help", []string{"--help"}, nil, 0, "once", ""},
		{"a good configuration", []string{"config", "validate", config("good.yaml")}, nil, 0, "1 identities, 1 targets", ""},
		{"a bad configuration", []string{"config", "validate", config("bad.yaml")}, nil, 2, "", "bad.yaml:4: targets[0].identity"},
		{"rights", []string{"config", "rbac", config("good.yaml")}, nil, 0, "kind: ValidatingAdmissionPolicyBinding", ""},
		{"rights of a bad configuration", []string{"config", "rbac", config("bad.yaml")}, nil, 2, "", "bad.yaml:4"},
		{"no such subcommand", []string{"walk"}, nil, 2, "", "walk"},
		{"no such subcommand of config", []string{"config", "nonsense"}, nil, 2, "", "nonsense"},
		{"no such flag", []string{"run", "--fast"}, pod, 2, "", "--fast"},
		{"no such level", []string{"run", config("good.yaml"), access, "--log-level=loud"}, pod, 2, "", "loud"},
		{"no such format", []string{"run", config("good.yaml"), access, "--log-format=xml"}, pod, 2, "", "xml"},
		{"no such exporter", []string{"run", config("good.yaml"), access}, append(pod, "OTEL_TRACES_EXPORTER=pigeon"), 2, "", "pigeon"},
		{"an argument too many", []string{"run", "fast"}, pod, 2, "", "fast"},
		{"no file", []string{"run", config("none.yaml"), access}, pod, 2, "", "none.yaml"},
		{"run with a bad configuration", []string{"run", config("bad.yaml"), access}, pod, 2, "", "bad.yaml:4"},
		{"run without an environment", []string{"run", config("good.yaml"), access}, nil, 2, "", "AZURE_CLIENT_ID"},
		{"run without an API", []string{"run", config("good.yaml"), "--kubeconfig=" + filepath.Join(dir, "none")}, pod, 2, "", "--kubeconfig"},
		{"run on a port that is taken", []string{"run", config("taken.yaml"), access}, pod, 1, "", "health.address"},
		{"once with a negative time", []string{"once", config("good.yaml"), access, "--within=-1s"}, pod, 2, "", "--within"},
		{"once without its event", []string{"once", config("good.yaml"), access, "--event=" + filepath.Join(dir, "none.json")}, pod, 2, "", "none.json"},
		{"once with half an event", []string{"once", config("good.yaml"), access, "--event=" + filepath.Join(dir, "half.json")}, pod, 2, "", "half.json: not a JSON object"},
		{"once with a large event", []string{"once", config("good.yaml"), access, "--event=" + filepath.Join(dir, "large.json")}, pod, 2, "", "large.json: it may have 262144 bytes"},
		{"once with an old event", []string{"once", config("good.yaml"), access, "--event=" + filepath.Join(dir, "old.json")}, pod, 2, "", "more than 10m0s ago"},
		{"once with an event and no answer", []string{"once", config("good.yaml"), access, "--event=" + filepath.Join(dir, "good.json"), "--timeout=100ms"}, pod, 1, "", "asking for a refresh of flux-system/flux-system"},
		{"once without an answer", []string{"once", config("good.yaml"), access, "--timeout=100ms"}, pod, 1, "", "gave up after 100ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			command := exec.CommandContext(patient(t), product(t), c.args...)
			command.Env = append([]string{"GORACE=atexit_sleep_ms=0", "HOME=" + dir}, c.env...)
			var stdout, stderr bytes.Buffer
			command.Stdout, command.Stderr = &stdout, &stderr
			if err := command.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
				t.Fatal(err)
			}
			if code := command.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("want %q on stdout and %q on stderr", c.stdout, c.stderr)
			}
			if t.Failed() {
				t.Logf("stdout:\n%s\nstderr:\n%s", &stdout, &stderr)
			}
		})
	}
}

// once runs "once", and gives its exit code and what it wrote.
func once(t *testing.T, i *installation.Installation, name string, flags ...string) (int, *process.Output) {
	t.Helper()
	spec := replicaSpec(t, i, name, "")
	spec.Command, spec.Flags = "once", flags
	r := launch(t, i, spec)
	code, err := r.Wait(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	return code, r.Output
}

func TestOnce(t *testing.T) {
	t.Parallel()
	const name = "flux-system"
	i := install(t, func(s *installation.Spec) { s.Entra = azuretest.Config{Echo: true} })
	expect := func(wantCode int, code int, output *process.Output, requests int) {
		t.Helper()
		if code != wantCode || i.Entra.Requests() != requests {
			t.Errorf("exit code %d after %d token requests in all, want %d and %d:\n%s", code, i.Entra.Requests(), wantCode, requests, output)
		}
		// Whoever comes next waits for nobody.
		awaitLeader(t, i, func(holder string) bool { return holder == "" })
	}

	code, output := once(t, i, "first")
	expect(0, code, output, 1)
	first := awaitSecret(t, i, name, sound(i))

	code, output = once(t, i, "nothing-is-due")
	expect(0, code, output, 1)

	code, output = once(t, i, "soon", "--within=2h")
	expect(0, code, output, 2)
	second := awaitSecret(t, i, name, sound(i))
	if second.Annotations[secret.TokenHash] == first.Annotations[secret.TokenHash] || second.Annotations[secret.Reason] != string(refresh.RefreshDue) {
		t.Errorf("what was soon due was not refreshed: %v", second.Annotations)
	}

	i.Entra.Next(azuretest.AADSTS(7000215))
	spec := replicaSpec(t, i, "refused", "")
	spec.Command, spec.Flags = "once", []string{"--within=2h", "--log-level=debug"}
	refused := launch(t, i, spec)
	code, err := refused.Wait(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	expect(1, code, refused.Output, 3)
	if !strings.Contains(refused.Output.String(), "flux-token-refresher: Secret "+i.Namespace+"/"+name+": AADSTS7000215") {
		t.Errorf("it does not end with what failed:\n%s", refused.Output)
	}
	s := search{}
	s.add(t, "the assertion", spec.Assertion)
	if found := s.in(refused.Output.Bytes()); len(found) > 0 {
		t.Errorf("it repeats what Entra repeated: %q", found)
	}
	if kept := awaitSecret(t, i, name, sound(i)); kept.ResourceVersion != second.ResourceVersion {
		t.Error("a failure changed the Secret")
	}

	startReplica(t, i, "leader", "")
	awaitLeader(t, i, func(holder string) bool { return holder == "leader" })
	began := time.Now()
	code, output = once(t, i, "follower", "--within=2h")
	t.Logf("once beside a leader took %s", time.Since(began).Round(time.Millisecond))
	if code != 0 || i.Entra.Requests() != 3 {
		t.Errorf("beside a leader: exit code %d after %d token requests, want 0 and 3", code, i.Entra.Requests())
	}
	if said := output.Records(func(r process.Record) bool {
		leader, _ := r["leader"].(string)
		return r["msg"] == "a leader is at work already" && podOf(leader) == "leader"
	}); len(said) != 1 {
		t.Errorf("it does not say who leads:\n%s", output)
	}
}

func TestOnceWithoutASecret(t *testing.T) {
	t.Parallel()
	i := install(t, func(s *installation.Spec) {
		s.Edit = func(config string) string { return strings.Replace(config, "create: true", "create: false", 1) }
	})
	code, output := once(t, i, "refresher-0")
	if code != 1 || i.Entra.Requests() != 0 || !strings.Contains(output.String(), "the Secret does not exist and the target does not say create: true") {
		t.Errorf("exit code %d after %d token requests, want 1 and 0, and why:\n%s", code, i.Entra.Requests(), output)
	}
}

// TestOutage: replicas stay ready without the API server, and go on once it can be reached again; one that is
// started meanwhile too.
func TestOutage(t *testing.T) {
	t.Parallel()
	i := install(t, func(s *installation.Spec) {
		s.Config = shortTerms
		s.Entra = azuretest.Config{MinLifetime: 12 * time.Second, MaxLifetime: 12 * time.Second}
	})
	proxy := newProxy(t)
	replicas := []*replica.Replica{startReplica(t, i, "refresher-0", proxy.Address()), startReplica(t, i, "refresher-1", proxy.Address())}
	leader := awaitLeader(t, i, func(holder string) bool { return holder != "" })
	before := awaitSecret(t, i, "flux-system", sound(i))

	expectReady := func(when string) {
		t.Helper()
		for _, r := range replicas {
			for _, path := range []string{"/healthz", "/readyz"} {
				if body, err := r.Get(patient(t), path); err != nil || string(body) != "ok\n" {
					t.Errorf("%s: %s of %s: %q, %v", when, path, r.Name(), body, err)
				}
			}
		}
	}
	expectReady("leading and following")
	if err := proxy.Cut(); err != nil {
		t.Fatal(err)
	}
	for _, r := range replicas {
		message := "cannot follow the Lease"
		if r.Name() == leader {
			message = "lost leadership"
		}
		if _, err := r.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == message }); err != nil {
			t.Fatalf("%s: %v", r.Name(), err)
		}
	}
	replicas = append(replicas, startReplica(t, i, "refresher-2", proxy.Address()))
	expectReady("cut off")

	if err := proxy.Heal(); err != nil {
		t.Fatal(err)
	}
	awaitSecret(t, i, "flux-system", func(s *corev1.Secret) bool {
		return sound(i)(s) && s.Annotations[secret.TokenHash] != before.Annotations[secret.TokenHash]
	})
	expectReady("healed")
}

// TestStartWithoutAnAPI: a replica that finds no API server at its start is ready, and does its work once there is one.
func TestStartWithoutAnAPI(t *testing.T) {
	t.Parallel()
	i := install(t, nil)
	proxy := newProxy(t)
	if err := proxy.Cut(); err != nil {
		t.Fatal(err)
	}
	r := startReplica(t, i, "refresher-0", proxy.Address())
	if _, err := r.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == "cannot follow the Lease" }); err != nil {
		t.Fatal(err)
	}
	if err := proxy.Heal(); err != nil {
		t.Fatal(err)
	}
	awaitSecret(t, i, "flux-system", sound(i))
}

// terminate sends SIGTERM, and expects a good end in time.
func terminate(t *testing.T, r *replica.Replica) {
	t.Helper()
	began := time.Now()
	if err := r.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	code, err := r.Wait(patient(t))
	took := time.Since(began)
	t.Logf("%s after SIGTERM", took.Round(time.Millisecond))
	if err != nil || code != 0 || took > shutdownLimit {
		t.Errorf("it ended %s after SIGTERM with %d, %v, want 0 within %s", took, code, err, shutdownLimit)
	}
}

// TestShutdownOrder: first the work ends, then the Lease is given back, then HTTP closes, then what is left of
// telemetry is exported.
func TestShutdownOrder(t *testing.T) {
	t.Parallel()
	receiver := newReceiver(t)
	w := &witness{}
	i := install(t, func(s *installation.Spec) {
		s.Env = receiver.Env()
		s.Env["OTEL_BSP_SCHEDULE_DELAY"] = "600000" // ms: only the end exports
		s.Env["OTEL_EXPORTER_OTLP_ENDPOINT"] = hooked(t, s.Env["OTEL_EXPORTER_OTLP_ENDPOINT"], http.DefaultTransport, func(r *http.Request) {
			if r.URL.Path == "/v1/traces" {
				w.note(r.Context(), "spans are exported")
			}
		})
	})
	transport, err := rest.TransportFor(controlPlane.Config())
	if err != nil {
		t.Fatal(err)
	}
	spec := replicaSpec(t, i, "refresher-0", "")
	kube, err := clientcmd.RESTConfigFromKubeConfig(spec.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	kube.Host = hooked(t, kube.Host, transport, func(r *http.Request) {
		switch {
		case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/leases/"):
			body, _ := io.ReadAll(r.Body) // what is missing of it, the API server misses too
			r.Body = io.NopCloser(bytes.NewReader(body))
			if !bytes.Contains(body, []byte("refresher-0_")) { // in whatever encoding
				w.note(r.Context(), "the Lease is given back")
			}
		case r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/secrets/"):
			w.note(r.Context(), "the Secret is written")
		}
	})
	kube.CAData = nil
	if spec.Kubeconfig, err = cluster.Kubeconfig(kube); err != nil {
		t.Fatal(err)
	}
	r := launch(t, i, spec)
	address, err := r.Address(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	w.serves(address)
	written := awaitSecret(t, i, "flux-system", sound(i))

	// Work is under way when the end comes.
	i.Entra.Next(azuretest.Hang())
	requestRefresh(t, i, "flux-system", "one more")
	if err := i.Entra.Await(patient(t), 2); err != nil {
		t.Fatal(err)
	}
	if spans := receiver.Spans(func(otlp.Span) bool { return true }); len(spans) > 0 {
		t.Errorf("%d spans were exported before the end", len(spans))
	}
	terminate(t, r)

	want := []string{"the Secret is written, HTTP answers", "the Lease is given back, HTTP answers", "spans are exported, HTTP is closed"}
	if got := w.told(); !slices.Equal(got, want) {
		t.Errorf("the order was %q, want %q", got, want)
	}
	if spans := receiver.Spans(func(s otlp.Span) bool {
		return s.Name == "refresh" && s.Attributes["refresh.outcome"] == string(refresh.Refreshed)
	}); len(spans) != 1 || spans[0].Attributes["refresh.reason"] != written.Annotations[secret.Reason] {
		t.Errorf("the spans of the one refresh: %+v", spans)
	}
}

// witness writes down what a process did, and whether its HTTP server answered at that moment.
type witness struct {
	mu      sync.Mutex
	address string
	steps   []string
}

func (w *witness) serves(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.address = address
}

func (w *witness) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.steps)
}

func (w *witness) note(ctx context.Context, step string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", w.address)
	if err != nil {
		w.steps = append(w.steps, step+", HTTP is closed")
		return
	}
	_ = conn.Close()
	w.steps = append(w.steps, step+", HTTP answers")
}

// hooked is an HTTP proxy to target that calls hook before it passes a request on.
func hooked(t *testing.T, target string, transport http.RoundTripper, hook func(*http.Request)) string {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, Transport: transport, FlushInterval: -1,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hook(r)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func requestRefresh(t *testing.T, i *installation.Installation, name, value string) {
	t.Helper()
	_, err := i.Client.CoreV1().Secrets(i.Namespace).Patch(t.Context(), name, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"`+secret.Request+`":"`+value+`"}}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// TestShutdownWhileOthersHang: who does not answer does not hold up the end.
func TestShutdownWhileOthersHang(t *testing.T) {
	t.Parallel()
	for _, everybody := range []bool{false, true} {
		name := "Entra"
		if everybody {
			name = "everybody"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			collector := newReceiver(t)
			toCollector := newProxyTo(t, strings.TrimPrefix(collector.Env()["OTEL_EXPORTER_OTLP_ENDPOINT"], "http://"))
			i := install(t, func(s *installation.Spec) {
				s.Env = collector.Env()
				s.Env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://" + toCollector.Address()
				hang := azuretest.Hang()
				s.Entra.Outage = &hang
			})
			toAPI := newProxy(t)
			r := startReplica(t, i, "refresher-0", toAPI.Address())
			if err := i.Entra.Await(patient(t), 1); err != nil {
				t.Fatal(err)
			}
			if everybody {
				toAPI.Hang()
				toCollector.Hang()
			}
			terminate(t, r)
			if !everybody {
				awaitLeader(t, i, func(holder string) bool { return holder == "" })
			}
		})
	}
}
