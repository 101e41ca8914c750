// Package prometheus runs Prometheus, which scrapes replicas and takes what they export over OTLP, and asks it.
package prometheus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"flux-token-refresher/e2e/internal/loopback"
	"flux-token-refresher/e2e/internal/process"
)

// Scraped is the job of what is scraped, as the Prometheus operator makes it of our PodMonitor.
const Scraped = "flux-system/flux-token-refresher"

// Every is how often replicas are scraped and rules are evaluated.
const Every = time.Second

// Prometheus is a running Prometheus on loopback.
type Prometheus struct {
	process      *process.Process
	dir, address string
}

// Start returns when Prometheus serves. It evaluates rules, the path of a file, and keeps its files in dir. The caller must Stop it.
func Start(ctx context.Context, binary, rules, dir string) (*Prometheus, error) {
	address, err := loopback.Address()
	if err != nil {
		return nil, err
	}
	if rules, err = filepath.Abs(rules); err != nil {
		return nil, err
	}
	p := &Prometheus{dir: dir, address: address}
	config := filepath.Join(dir, "prometheus.yml")
	if err := errors.Join(p.Scrape(nil), os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: %[1]s, evaluation_interval: %[1]s}
rule_files: [%[2]q]
scrape_configs:
  - job_name: %[3]s
    honor_labels: true # as our PodMonitor has it
    file_sd_configs: [{files: [replicas.json]}]
`, Every, rules, Scraped), 0o600)); err != nil {
		return nil, err
	}
	command := exec.Command(binary, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address,
		"--web.enable-otlp-receiver", "--enable-feature=exemplar-storage", "--log.format=json")
	p.process, _, err = process.StartReady(ctx, command, func(r process.Record) bool { return r["msg"] == "Server is ready to receive web requests." })
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Stop ends Prometheus.
func (p *Prometheus) Stop(ctx context.Context) error { return p.process.Stop(ctx) }

// OTLP is where metrics are sent to: the value of OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, for http/protobuf.
func (p *Prometheus) OTLP() string { return "http://" + p.address + "/api/v1/otlp/v1/metrics" }

// Scrape has these addresses scraped from now on, by the names of their pods.
func (p *Prometheus) Scrape(pods map[string]string) error {
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	groups := []group{}
	for pod, address := range pods {
		groups = append(groups, group{[]string{address}, map[string]string{"pod": pod, "namespace": "flux-system"}})
	}
	content, err := json.Marshal(groups)
	if err != nil {
		return err
	}
	// Prometheus watches the file, and would read half of it.
	file := filepath.Join(p.dir, "replicas.json")
	if err := os.WriteFile(file+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// Series is one of an answer.
type Series struct {
	Labels map[string]string
	Points []Point
}

// Point is a value at a time.
type Point struct {
	At    time.Time
	Value float64
}

// UnmarshalJSON reads [seconds, "value"].
func (p *Point) UnmarshalJSON(data []byte) error {
	var pair [2]any
	if err := json.Unmarshal(data, &pair); err != nil {
		return err
	}
	seconds, ok1 := pair[0].(float64)
	text, ok2 := pair[1].(string)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s is no point", data)
	}
	value, err := strconv.ParseFloat(text, 64)
	*p = Point{At: time.UnixMilli(int64(seconds * 1000)), Value: value}
	return err
}

type result []struct {
	Metric map[string]string
	Value  *Point
	Values []Point
}

func (r result) series() []Series {
	all := make([]Series, len(r))
	for i, s := range r {
		all[i] = Series{Labels: s.Metric, Points: s.Values}
		if s.Value != nil {
			all[i].Points = []Point{*s.Value}
		}
	}
	return all
}

// Query gives what an expression is now.
func (p *Prometheus) Query(ctx context.Context, expr string) ([]Series, error) {
	var data struct{ Result result }
	err := p.ask(ctx, "query", url.Values{"query": {expr}}, &data)
	return data.Result.series(), err
}

// QueryRange gives what an expression was from start to end, step by step.
func (p *Prometheus) QueryRange(ctx context.Context, expr string, start, end time.Time, step time.Duration) ([]Series, error) {
	var data struct{ Result result }
	err := p.ask(ctx, "query_range", url.Values{
		"query": {expr}, "start": {stamp(start)}, "end": {stamp(end)}, "step": {strconv.FormatFloat(step.Seconds(), 'f', -1, 64)},
	}, &data)
	return data.Result.series(), err
}

// Exemplar is an observation that a histogram kept as an example.
type Exemplar struct {
	TraceID string
	Point   Point
}

// Exemplars gives those of the series that are in an expression.
func (p *Prometheus) Exemplars(ctx context.Context, expr string, start, end time.Time) ([]Exemplar, error) {
	var data []struct {
		Exemplars []struct {
			Labels    map[string]string
			Value     float64 `json:",string"`
			Timestamp float64 // in seconds
		}
	}
	if err := p.ask(ctx, "query_exemplars", url.Values{"query": {expr}, "start": {stamp(start)}, "end": {stamp(end)}}, &data); err != nil {
		return nil, err
	}
	var all []Exemplar
	for _, series := range data {
		for _, e := range series.Exemplars {
			all = append(all, Exemplar{e.Labels["trace_id"], Point{time.UnixMilli(int64(e.Timestamp * 1000)), e.Value}})
		}
	}
	return all, nil
}

// LabelValues gives the values of a label of a metric.
func (p *Prometheus) LabelValues(ctx context.Context, metric, label string) ([]string, error) {
	var values []string
	err := p.ask(ctx, "label/"+label+"/values", url.Values{"match[]": {metric}}, &values)
	return values, err
}

// Alerts gives the states (pending, firing) of the alerts of a job, by their names; an error where a rule could not be evaluated.
func (p *Prometheus) Alerts(ctx context.Context, job string) (map[string]string, error) {
	var data struct {
		Groups []struct {
			Rules []struct {
				Name, Health, LastError string
				Alerts                  []struct {
					State  string
					Labels map[string]string
				}
			}
		}
	}
	if err := p.ask(ctx, "rules", nil, &data); err != nil {
		return nil, err
	}
	states := map[string]string{}
	for _, group := range data.Groups {
		for _, rule := range group.Rules {
			if rule.Health == "err" {
				return nil, fmt.Errorf("rule %s: %s", rule.Name, rule.LastError)
			}
			for _, alert := range rule.Alerts {
				if alert.Labels["job"] == job {
					states[rule.Name] = alert.State
				}
			}
		}
	}
	return states, nil
}

// client keeps no connection, whose goroutine would outlive a test.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func (p *Prometheus) ask(ctx context.Context, path string, form url.Values, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+"/api/v1/"+path+"?"+form.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask Prometheus: %w", err)
	}
	defer response.Body.Close()
	var answer struct {
		Status, Error string
		Warnings      []string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("ask Prometheus: %s: %w", response.Status, err)
	}
	if answer.Status != "success" || len(answer.Warnings) > 0 {
		return fmt.Errorf("ask Prometheus for %s: %s%s", form.Get("query"), answer.Error, strings.Join(answer.Warnings, ", "))
	}
	return json.Unmarshal(answer.Data, into)
}

func stamp(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }
