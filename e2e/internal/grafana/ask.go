package grafana

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"flux-token-refresher/e2e/internal/prometheus"
)

// View is what the reader of a dashboard chose.
type View struct {
	Prometheus *prometheus.Prometheus
	// Job is the value of the variable job.
	Job        string
	Start, End time.Time
	// Step is what Grafana makes of the width of a panel and its interval.
	Step time.Duration
}

// variable is one of Grafana's, but not $1, which is the regular expression's of a label_replace.
var variable = regexp.MustCompile(`\$(?:[a-zA-Z_]\w*|\{\w+\})`)

// Expr puts values in the place of an expression's variables, as Grafana does.
func (v View) Expr(expr string) (string, error) {
	var unknown []string
	expr = variable.ReplaceAllStringFunc(expr, func(name string) string {
		switch strings.Trim(name, "${}") {
		case "job":
			return v.Job
		case "__interval":
			return fmt.Sprintf("%dms", v.Step.Milliseconds())
		case "__range":
			return fmt.Sprintf("%dms", v.End.Sub(v.Start).Milliseconds())
		default:
			unknown = append(unknown, name)
			return name
		}
	})
	if len(unknown) > 0 {
		return "", fmt.Errorf("no value for %s in %s", strings.Join(unknown, ", "), expr)
	}
	return expr, nil
}

// Ask gives the answers to the queries of a panel, one for each.
func (v View) Ask(ctx context.Context, p Panel) ([][]prometheus.Series, error) {
	answers := make([][]prometheus.Series, len(p.Targets))
	for i, t := range p.Targets {
		expr, err := v.Expr(t.Expr)
		if err != nil {
			return nil, fmt.Errorf("panel %q: %w", p.Title, err)
		}
		if t.Instant {
			answers[i], err = v.Prometheus.Query(ctx, expr)
		} else {
			answers[i], err = v.Prometheus.QueryRange(ctx, expr, v.Start, v.End, v.Step)
		}
		if err != nil {
			return nil, fmt.Errorf("panel %q: %w", p.Title, err)
		}
	}
	return answers, nil
}

// Exemplars gives those that a panel shows.
func (v View) Exemplars(ctx context.Context, p Panel) ([]prometheus.Exemplar, error) {
	var all []prometheus.Exemplar
	for _, t := range p.Targets {
		if !t.Exemplar {
			continue
		}
		expr, err := v.Expr(t.Expr)
		if err != nil {
			return nil, err
		}
		found, err := v.Prometheus.Exemplars(ctx, expr, v.Start, v.End)
		if err != nil {
			return nil, fmt.Errorf("panel %q: %w", p.Title, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

var inLegend = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)

// Named tells whether a series has the labels that its name is made of.
func (t Target) Named(s prometheus.Series) bool {
	return !slices.ContainsFunc(inLegend.FindAllStringSubmatch(t.LegendFormat, -1), func(label []string) bool { return s.Labels[label[1]] == "" })
}

// Legend is the name that a series has in a panel.
func (t Target) Legend(s prometheus.Series) string {
	return inLegend.ReplaceAllStringFunc(t.LegendFormat, func(label string) string {
		return s.Labels[inLegend.FindStringSubmatch(label)[1]]
	})
}
