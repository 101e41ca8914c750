package replica

// What a replica measures.

import (
	"bytes"
	"context"
	"fmt"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics is a scrape of /metrics: families by name.
type Metrics map[string]*dto.MetricFamily

// Metrics scrapes the replica.
func (r *Replica) Metrics(ctx context.Context) (Metrics, error) {
	body, err := r.Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("metrics of replica %s: %w", r.name, err)
	}
	return families, nil
}

// OpenMetrics gives a scrape as it comes to those who ask for OpenMetrics 1.0.
func (r *Replica) OpenMetrics(ctx context.Context) ([]byte, error) {
	return r.get(ctx, "/metrics", "application/openmetrics-text; version=1.0.0")
}

// Sum adds up the series of a family that have these labels, whatever others they have: counters and gauges by their value,
// histograms by their count. ok is false when there is no such series.
func (m Metrics) Sum(family string, labels map[string]string) (sum float64, ok bool) {
	for _, series := range m[family].GetMetric() {
		if !has(series, labels) {
			continue
		}
		ok = true
		// The getters of the kinds that a series is not give zero.
		sum += series.GetCounter().GetValue() + series.GetGauge().GetValue() + float64(series.GetHistogram().GetSampleCount())
	}
	return sum, ok
}

func has(series *dto.Metric, labels map[string]string) bool {
	n := 0
	for _, pair := range series.GetLabel() {
		if value, wanted := labels[pair.GetName()]; wanted && value == pair.GetValue() {
			n++
		}
	}
	return n == len(labels)
}
