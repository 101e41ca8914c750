package e2e

// What a replica says of itself, as those who read it do.

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"flux-token-refresher/e2e/internal/toolchain"
)

// TestMetricsAreWellFormed: what a leader that refreshed a token serves passes promtool's check, and a refresh leads to its trace.
func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	promtool, err := toolchain.Promtool.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	i := install(t, nil)
	r := startReplica(t, i, "refresher-0", "")
	awaitSecret(t, i, "flux-system", sound(i))
	ctx := patient(t)
	metrics, err := r.Get(ctx, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	check := exec.CommandContext(ctx, promtool, "check", "metrics")
	check.Stdin = bytes.NewReader(metrics)
	if out, err := check.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}

	open, err := r.OpenMetrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, histogram := range []string{"token_refresher_refresh_duration_seconds", "token_refresher_token_request_duration_seconds"} {
		exemplar := false
		for line := range strings.Lines(string(open)) {
			exemplar = exemplar || strings.HasPrefix(line, histogram+"_bucket") && strings.Contains(line, ` # {`) && strings.Contains(line, `trace_id="`)
		}
		if !exemplar {
			t.Errorf("no bucket of %s leads to a trace", histogram)
		}
	}
	if t.Failed() {
		t.Log(string(open))
	}
}
