package e2e

// The dashboard and the alerts, over what replicas measured: scraped, and sent over OTLP.

import (
	"context"
	"flag"
	"fmt"
	"math"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"flux-token-refresher/e2e/internal/grafana"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/prometheus"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/e2e/internal/toolchain"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

const (
	dashboardFile = "../deploy/dashboards/flux-token-refresher.json"
	rulesFile     = "../deploy/alerts/rules.yaml"
	pictureFile   = "../docs/dashboard.svg"
)

var picture = flag.Bool("picture", false, "draw "+pictureFile+" from what TestDashboard sees")

// TestDashboard: each query of each panel has data, and each rule of the alerts sees what it is about, in a Prometheus that scrapes the replicas
// and in one that is fed by them over OTLP.
func TestDashboard(t *testing.T) {
	t.Parallel()
	dashboard, err := grafana.Load(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	p := startPrometheus(t)
	const namespace = "team-a"
	l := newLoop(t, controlPlane, fluxOf(t), namespace, func(_ *loop, spec *installation.Spec) {
		spec.Targets = []string{credential, "pipelines"}
		spec.Entra = azuretest.Config{MinLifetime: 12 * time.Second, MaxLifetime: 14 * time.Second, Latency: 60 * time.Millisecond}
		spec.Env["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"] = p.OTLP()
		spec.Env["OTEL_METRIC_EXPORT_INTERVAL"] = fmt.Sprint(prometheus.Every.Milliseconds())
	})
	views := map[string]grafana.View{
		"scraped": {Job: prometheus.Scraped},
		"otlp":    {Job: namespace + "/flux-token-refresher"},
	}
	start := time.Now()
	l.start(t, "")
	pods := []*replica.Replica{l.leader, l.follower, l.third}
	scrape(t, p, pods...)
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	l.read(t, "source")

	// Azure DevOps refuses a token, and Flux says so.
	token, _ := l.event(t)
	awaitSecret(t, l.Installation, credential, l.renewed(token))
	// A stranger, and an event that is none of ours: once it was seen that there was none before.
	for name, view := range views {
		const none = `token_refresher_events_total{verdict="none",outcome="unauthenticated",job="%s"} == 0`
		if err := wait.PollUntilContextCancel(patient(t), 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			found, err := p.Query(ctx, fmt.Sprintf(none, view.Job))
			return len(found) == len(pods), err
		}); err != nil {
			t.Fatalf("%s: the refusals that there were not: %v", name, err)
		}
	}
	body := []byte(`{"involvedObject":{"kind":"GitRepository","namespace":"` + namespace + `","name":"source"},"severity":"info","timestamp":"` +
		time.Now().UTC().Format(time.RFC3339) + `","message":"stored artifact","reason":"NewArtifact"}`)
	for key, status := range map[string]int{l.sources.key: http.StatusAccepted, "a stranger's": http.StatusUnauthorized} {
		if got, _ := l.post(t, body, map[string]string{"X-Signature": signature(key, body)}); got != status {
			t.Errorf("status %d, want %d", got, status)
		}
	}
	// Entra is away while somebody asks for a token.
	outage := azuretest.Broken(http.StatusServiceUnavailable)
	l.Entra.Change(func(c *azuretest.Config) { c.Outage = &outage })
	if _, err := l.Client.CoreV1().Secrets(namespace).Patch(t.Context(), credential, "application/merge-patch+json",
		[]byte(`{"metadata":{"annotations":{"`+secret.Request+`":"now"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, view := range views {
		awaitNothing(t, name+": a Secret fails", func(ctx context.Context) (string, error) {
			states, err := p.Alerts(ctx, view.Job)
			return missing(len(states["TokenRefresherRefreshFailing"]), "TokenRefresherRefreshFailing"), err
		})
	}
	l.Entra.Change(func(c *azuretest.Config) { c.Outage = nil })
	asked := awaitSecret(t, l.Installation, credential, func(s *corev1.Secret) bool {
		return sound(l.Installation)(s) && s.Annotations[secret.HandledRequest] == refresh.Hash("now")
	})
	// The timer.
	renewals := 1
	if *picture {
		renewals = 3
	}
	for range renewals {
		asked = awaitSecret(t, l.Installation, credential, l.renewed(string(asked.Data["bearerToken"])))
	}
	for name, view := range views {
		awaitNothing(t, name+": no Secret fails any more", func(ctx context.Context) (string, error) { // the alert itself looks back for minutes
			mended := fmt.Sprintf(`token_refresher_refresh_failing{secret=%q,job=%q} == 0`, credential, view.Job)
			found, err := p.Query(ctx, mended)
			return missing(len(found), mended), err
		})
		view.Prometheus, view.Start, view.Step = p, start, time.Second
		awaitNothing(t, name+": all panels have data", func(ctx context.Context) (string, error) {
			view.End = time.Now()
			return unseen(ctx, view, dashboard)
		})
		expectExemplars(t, l, view, dashboard)
		expectAlerts(t, view)
		views[name] = view
	}
	for _, block := range regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllStringSubmatch(string(read(t, "../docs/runbooks.md")), -1) {
		if _, err := p.Query(patient(t), block[1]); err != nil {
			t.Errorf("docs/runbooks.md: %v", err)
		}
	}

	if err := l.leader.Stop(patient(t)); err != nil {
		t.Fatal(err)
	}
	awaitLeader(t, l.Installation, func(holder string) bool { return holder != "" && holder != l.leader.Name() })
	for name, view := range views {
		awaitNothing(t, name+": another one leads", func(ctx context.Context) (string, error) {
			leaders, err := p.Query(ctx, fmt.Sprintf("count(max_over_time(token_refresher_leader{job=%[1]q}[1h]) == 1) == 2 and sum(token_refresher_leader{job=%[1]q}) == 1", view.Job))
			return missing(len(leaders), "two that led, one that leads"), err
		})
	}
	if *picture {
		view := views["scraped"]
		view.End = time.Now()
		if err := view.Draw(patient(t), dashboard, pictureFile); err != nil {
			t.Fatal(err)
		}
	}
}

// startPrometheus starts one that evaluates our rules.
func startPrometheus(t *testing.T) *prometheus.Prometheus {
	t.Helper()
	binary, err := toolchain.Prometheus.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	p, err := prometheus.Start(patient(t), binary, rulesFile, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return p
}

func scrape(t *testing.T, p *prometheus.Prometheus, replicas ...*replica.Replica) {
	t.Helper()
	pods := map[string]string{}
	for _, r := range replicas {
		address, err := r.Address(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		pods[r.Name()] = address
	}
	if err := p.Scrape(pods); err != nil {
		t.Fatal(err)
	}
}

// awaitNothing waits until nothing is missing any more: Prometheus cannot be watched.
func awaitNothing(t *testing.T, what string, look func(context.Context) (missing string, err error)) {
	t.Helper()
	last := ""
	if err := wait.PollUntilContextCancel(patient(t), prometheus.Every/2, true, func(ctx context.Context) (bool, error) {
		missing, err := look(ctx)
		if ctx.Err() == nil {
			last = missing
		}
		return missing == "", err
	}); err != nil {
		t.Fatalf("%s: %v; missing: %s", what, err, last)
	}
}

func missing(n int, what string) string {
	if n == 0 {
		return what
	}
	return ""
}

// unseen names the queries of panels that have no data, or nameless; of those that count, nothing but zeros is none.
func unseen(ctx context.Context, view grafana.View, dashboard *grafana.Dashboard) (string, error) {
	var missing []string
	for _, panel := range dashboard.Asking("prometheus") {
		answers, err := view.Ask(ctx, panel)
		if err != nil {
			return "", err
		}
		for i, target := range panel.Targets {
			counts := strings.Contains(target.Expr, "$__interval")
			if !slices.ContainsFunc(answers[i], func(s prometheus.Series) bool {
				return slices.ContainsFunc(s.Points, func(p prometheus.Point) bool { return !math.IsNaN(p.Value) && (p.Value > 0 || !counts) })
			}) {
				missing = append(missing, panel.Title+" "+target.RefID)
			}
			if slices.ContainsFunc(answers[i], func(s prometheus.Series) bool { return !target.Named(s) }) {
				missing = append(missing, panel.Title+" "+target.RefID+": a label of "+target.LegendFormat)
			}
		}
	}
	return strings.Join(missing, ", "), nil
}

// expectExemplars: panels that lead to traces lead to traces that there are, and those that search for traces search for spans that there are.
func expectExemplars(t *testing.T, l *loop, view grafana.View, dashboard *grafana.Dashboard) {
	t.Helper()
	showing := 0
	for _, panel := range dashboard.Asking("prometheus") {
		exemplars, err := view.Exemplars(patient(t), panel)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range exemplars {
			if _, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return s.TraceID == e.TraceID }); err != nil {
				t.Errorf("panel %q leads to the trace %q: %v", panel.Title, e.TraceID, err)
			}
		}
		showing += min(1, len(exemplars))
	}
	if showing != 3 {
		t.Errorf("%d panels of %s have exemplars, want those of the three histograms", showing, view.Job)
	}
	for _, panel := range append(dashboard.Asking("jaeger"), dashboard.Asking("tempo")...) {
		for _, target := range panel.Targets {
			found := l.spans.Spans(func(s otlp.Span) bool {
				service := s.Resource["service.name"]
				return s.Name == target.Operation && service == target.Service ||
					target.Query == fmt.Sprintf("{ resource.service.name = %q && name = %q }", service, s.Name)
			})
			if len(found) == 0 {
				t.Errorf("panel %q finds nothing", panel.Title)
			}
		}
	}
	jobs, err := view.Prometheus.LabelValues(patient(t), "token_refresher_build_info", "job")
	if err != nil || !slices.Contains(jobs, view.Job) {
		t.Errorf("the variable job has the values %v, %v; want %s", jobs, err, view.Job)
	}
}

// selector is one of a rule.
var selector = regexp.MustCompile(`token_refresher_\w+(?:\{[^}]*\})?`)

// expectAlerts: the rules speak of series that there are, and say what is wrong: a token that ends within ten minutes, a stranger.
func expectAlerts(t *testing.T, view grafana.View) {
	t.Helper()
	ctx := patient(t)
	for _, selector := range selector.FindAllString(string(read(t, rulesFile)), -1) {
		if strings.Contains(selector, "TokenRejected") {
			continue // nobody rejected one here
		}
		found, err := view.Prometheus.Query(ctx, selector)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(found, func(s prometheus.Series) bool { return s.Labels["job"] == view.Job }) {
			t.Errorf("%s has no %s", view.Job, selector)
		}
	}
	awaitNothing(t, view.Job+": the alerts", func(ctx context.Context) (string, error) {
		states, err := view.Prometheus.Alerts(ctx, view.Job)
		for _, late := range []string{"TokenRefresherTokenExpiring", "TokenRefresherRefreshFailing"} { // pending, or firing already
			delete(states, late)
		}
		return cmp.Diff(map[string]string{"TokenRefresherEventsRefused": "firing"}, states), err
	})
}
