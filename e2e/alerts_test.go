package e2e

// The alerts' rules: promtool's own checks and tests, the same in each form, and a runbook for each.

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"

	"flux-token-refresher/e2e/internal/grafana"
	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/toolchain"
)

// TestAlerts: each alert fires when it should, and is quiet else, as deploy/alerts/rules_test.yaml has it.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool, err := toolchain.Promtool.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"},
		{"test", "rules", "rules_test.yaml"},
	} {
		command := exec.CommandContext(patient(t), promtool, args...)
		command.Dir = filepath.Dir(rulesFile)
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	var cases struct {
		Tests []struct {
			Alerts []struct {
				Alert string `json:"alertname"`
				Want  []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	if err := yaml.Unmarshal(read(t, filepath.Join(filepath.Dir(rulesFile), "rules_test.yaml")), &cases); err != nil {
		t.Fatal(err)
	}
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range cases.Tests {
		for _, a := range test.Alerts {
			fires[a.Alert] = fires[a.Alert] || len(a.Want) > 0
			quiet[a.Alert] = quiet[a.Alert] || len(a.Want) == 0
		}
	}
	for _, rule := range rulesOf(t, read(t, rulesFile)).Groups[0].Rules {
		if !fires[rule.Alert] || !quiet[rule.Alert] {
			t.Errorf("%s has no test in which it fires, or none in which it is quiet", rule.Alert)
		}
	}
}

// expectAlertsSeries: the leader has a series of the credential for which an alert asks so.
func (l *loop) expectAlertsSeries(t *testing.T, alert, metric, label string) {
	t.Helper()
	for _, rule := range rulesOf(t, read(t, rulesFile)).Groups[0].Rules {
		if rule.Alert == alert && !strings.Contains(rule.Expr.String(), metric+"{"+label+"}") {
			t.Errorf("%s does not ask for %s{%s}", alert, metric, label)
		}
	}
	metrics, err := l.leader.Get(patient(t), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(metrics)) {
		if strings.HasPrefix(line, metric+"{") && strings.Contains(line, label) &&
			strings.Contains(line, fmt.Sprintf("namespace=%q", l.Namespace)) && strings.Contains(line, fmt.Sprintf("secret=%q", credential)) {
			return
		}
	}
	t.Errorf("no series %s{%s} about %s/%s:\n%s", metric, label, l.Namespace, credential, metrics)
}

// TestRefusalsHaveARunbook: each reason for which a replica refuses events, which its metrics name from the start, is either left out of
// TokenRefresherEventsRefused or in the table of its runbook.
func TestRefusalsHaveARunbook(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	replica := startReplica(t, l.Installation, "refresher-0", "")
	if _, err := replica.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == "receiving events" }); err != nil {
		t.Fatal(err)
	}
	metrics, err := replica.Get(patient(t), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	var counted []string
	outcome := regexp.MustCompile(`outcome="([^"]+)"`)
	for line := range strings.Lines(string(metrics)) {
		if strings.HasPrefix(line, "token_refresher_events_total{") && strings.Contains(line, `verdict="none"`) {
			counted = append(counted, outcome.FindStringSubmatch(line)[1])
		}
	}
	slices.Sort(counted)
	var known []string
	for _, rule := range rulesOf(t, read(t, rulesFile)).Groups[0].Rules {
		if left := regexp.MustCompile(`outcome!~"([^"]+)"`).FindStringSubmatch(rule.Expr.String()); left != nil {
			known = strings.Split(left[1], "|")
		}
	}
	_, runbook, _ := strings.Cut(string(read(t, "../docs/runbooks.md")), "\n## TokenRefresherEventsRefused\n")
	runbook, _, _ = strings.Cut(runbook, "\n## ")
	for line := range strings.Lines(runbook) {
		if reasons, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | "); ok && strings.HasPrefix(reasons, "`") {
			for reason := range strings.SplitSeq(reasons, ", ") {
				known = append(known, strings.Trim(reason, "`"))
			}
		}
	}
	slices.Sort(known)
	if diff := cmp.Diff(counted, known); diff != "" {
		t.Errorf("(-counted, +known to the alert or its runbook)\n%s", diff)
	}
}

func rulesOf(t *testing.T, content []byte) monitoringv1.PrometheusRuleSpec {
	t.Helper()
	var spec monitoringv1.PrometheusRuleSpec
	if err := yaml.UnmarshalStrict(content, &spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

// TestAlertsForTheOperator: the PrometheusRule has the rules of the plain file.
func TestAlertsForTheOperator(t *testing.T) {
	t.Parallel()
	objects, err := manifests.Parse(read(t, filepath.Join(filepath.Dir(rulesFile), "prometheusrule.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	var rule monitoringv1.PrometheusRule
	convert(t, find(t, objects, "PrometheusRule"), &rule)
	if diff := cmp.Diff(rulesOf(t, read(t, rulesFile)), rule.Spec); diff != "" {
		t.Errorf("-rules.yaml +prometheusrule.yaml\n%s", diff)
	}
}

// TestChartCopies: Helm takes no file from outside of a chart, and no symbolic link survives in what Flux makes of a Git repository.
func TestChartCopies(t *testing.T) {
	t.Parallel()
	for original, name := range map[string]string{rulesFile: "rules.yaml", dashboardFile: "dashboard.json"} {
		if file := filepath.Join(chartDir, "files", name); !bytes.Equal(read(t, original), read(t, file)) {
			t.Errorf("%s is not what it is a copy of: cp %s %s", file, original, file)
		}
	}
}

// TestRunbooks: each alert has one, and each one that a rule or a panel names is there.
func TestRunbooks(t *testing.T) {
	t.Parallel()
	runbooks := map[string]bool{}
	for line := range strings.Lines(string(read(t, "../docs/runbooks.md"))) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			runbooks["docs/runbooks.md#"+strings.ToLower(strings.TrimSpace(title))] = false
		}
	}
	refers := func(from, to string) {
		t.Helper()
		if _, ok := runbooks[to]; !ok {
			t.Errorf("%s refers to %s, which is not there", from, to)
		}
	}
	for _, rule := range rulesOf(t, read(t, rulesFile)).Groups[0].Rules {
		url := rule.Annotations["runbook_url"]
		refers(rule.Alert, url)
		if url != "docs/runbooks.md#"+strings.ToLower(rule.Alert) {
			t.Errorf("%s has the runbook %s", rule.Alert, url)
		}
		runbooks[url] = true
	}
	for runbook, used := range runbooks {
		if !used {
			t.Errorf("%s is no alert's", runbook)
		}
	}
	dashboard, err := grafana.Load(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	picture := string(read(t, pictureFile))
	for _, panel := range dashboard.All() {
		for word := range strings.FieldsSeq(panel.Description) {
			if word = strings.Trim(word, "().,:"); strings.HasPrefix(word, "docs/runbooks.md#") {
				refers("panel "+panel.Title, word)
			}
		}
		if panel.Datasource == nil || panel.Datasource.Type == "prometheus" {
			if !strings.Contains(picture, ">"+strings.ReplaceAll(panel.Title, "'", "&#39;")+"<") {
				t.Errorf("%s shows no panel %q: go test -run '^TestDashboard$' . -picture", pictureFile, panel.Title)
			}
		}
	}
}
