package e2e

// The alerts' rules: promtool's own checks and tests, the same in each form, and a runbook for each.

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"

	"flux-token-refresher/e2e/internal/grafana"
	"flux-token-refresher/e2e/internal/manifests"
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
	rules, tests := rulesOf(t, read(t, rulesFile)), string(read(t, filepath.Join(filepath.Dir(rulesFile), "rules_test.yaml")))
	for _, rule := range rules.Groups[0].Rules {
		firing := strings.Contains(tests, "alertname: "+rule.Alert+"\n")
		quiet := strings.Contains(tests, "alertname: "+rule.Alert+"}")
		if !firing || !quiet {
			t.Errorf("%s has no test in which it fires, or none in which it is quiet", rule.Alert)
		}
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
