package replica_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"flux-token-refresher/e2e/internal/replica"
)

// TestMain makes the test binary a stand-in for the product when it is started as one: it has its flags.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "run" {
		if err := standIn(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// standIn serves as the product does, with its arguments and environment at /seen, until SIGTERM.
func standIn() error {
	if os.Getenv("FAIL") != "" {
		return fmt.Errorf("config.yaml:1: wrong")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `# TYPE refreshes_total counter
refreshes_total{reason="RefreshDue",outcome="Refreshed"} 3
refreshes_total{reason="RefreshDue",outcome="Failed"} 1
# TYPE seconds histogram
seconds_bucket{le="+Inf"} 2
seconds_sum 1.5
seconds_count 2`)
	})
	mux.HandleFunc("/seen", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"args": os.Args[1:], "env": os.Environ()})
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go http.Serve(listener, mux) //nolint:errcheck,gosec // it ends with the process
	slog.New(slog.NewJSONHandler(os.Stderr, nil)).Info("serving", "address", listener.Addr().String())
	<-ctx.Done()
	return nil
}

func start(t *testing.T, env map[string]string) (*replica.Replica, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := replica.Start(replica.Spec{
		Binary: os.Args[0], Name: "replica-0", Namespace: "flux-system",
		Config: []byte("the config"), Kubeconfig: []byte("the kubeconfig"), Assertion: "the assertion", Env: env,
	}, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Kill(); err != nil {
			t.Error(err)
		}
	})
	return r, dir
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestReplicaIsGivenWhatAPodIs(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	r, dir := start(t, map[string]string{"AZURE_TENANT_ID": "tenant"})
	if err := r.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	body, err := r.Get(ctx, "/seen")
	if err != nil {
		t.Fatal(err)
	}
	var seen struct{ Args, Env []string }
	if err := json.Unmarshal(body, &seen); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(seen.Args, " "), "run --config="+dir+"/config.yaml --kubeconfig="+dir+"/kubeconfig"; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	want := "AZURE_FEDERATED_TOKEN_FILE=" + dir + "/assertion AZURE_TENANT_ID=tenant GORACE=halt_on_error=1 atexit_sleep_ms=0 " +
		"POD_NAME=replica-0 POD_NAMESPACE=flux-system"
	if got := strings.Join(seen.Env, " "); got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	for name, want := range map[string]string{"config.yaml": "the config", "kubeconfig": "the kubeconfig", "assertion": "the assertion"} {
		if got, err := os.ReadFile(dir + "/" + name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}

	metrics, err := r.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		family string
		labels map[string]string
		want   float64
		ok     bool
	}{
		{"refreshes_total", nil, 4, true},
		{"refreshes_total", map[string]string{"outcome": "Failed"}, 1, true},
		{"refreshes_total", map[string]string{"outcome": "Unchanged"}, 0, false},
		{"seconds", nil, 2, true},
		{"others", nil, 0, false},
	} {
		if got, ok := metrics.Sum(c.family, c.labels); got != c.want || ok != c.ok {
			t.Errorf("%s%v: got %v, %v, want %v, %v", c.family, c.labels, got, ok, c.want, c.ok)
		}
	}

	if err := r.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if code, err := r.Wait(ctx); code != 0 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
}

func TestReplicaThatEndsIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	r, _ := start(t, map[string]string{"FAIL": "1"})
	err := r.WaitReady(deadline(t))
	if err == nil || !strings.Contains(err.Error(), "it ended") || !strings.Contains(err.Error(), "config.yaml:1: wrong") {
		t.Errorf("got %v, want that it ended, and what it wrote", err)
	}
}

func TestReplicaCanBePausedAndKilled(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	r, _ := start(t, nil)
	if err := r.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := r.Get(short, "/readyz"); err == nil {
		t.Error("a paused replica answered")
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get(ctx, "/readyz"); err != nil {
		t.Error(err)
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if code, err := r.Wait(ctx); code != -1 || err != nil {
		t.Errorf("exit code %d, %v, want -1: a signal ended it", code, err)
	}
}
