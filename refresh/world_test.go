package refresh_test

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a Refresher among simulated neighbours. It lives inside a synctest bubble, where time is fake and a day
// takes moments.
type world struct {
	*refresh.Refresher
	source   *refreshtest.Source
	store    *refreshtest.Store
	readers  *refreshtest.Readers
	recorder *refreshtest.Recorder
	spans    *tracetest.SpanRecorder
	metrics  *metric.ManualReader
	failure  atomic.Pointer[func(refresh.MintKey) error]
	logs     *bytes.Buffer
}

func newWorld(targets ...refresh.Target) *world {
	w := &world{
		source: &refreshtest.Source{}, store: refreshtest.NewStore(), readers: &refreshtest.Readers{}, recorder: &refreshtest.Recorder{},
		spans: tracetest.NewSpanRecorder(), metrics: metric.NewManualReader(), logs: &bytes.Buffer{},
	}
	w.Refresher = &refresh.Refresher{
		Targets: targets, Policy: policy, Source: w.source, Store: w.store, Readers: w.readers, Recorder: w.recorder,
		Logger:         slog.New(slog.NewJSONHandler(w.logs, nil)),
		TracerProvider: trace.NewTracerProvider(trace.WithSpanProcessor(w.spans)),
		MeterProvider:  metric.NewMeterProvider(metric.WithReader(w.metrics)),
	}
	w.source.Fail = func(key refresh.MintKey) error {
		if fail := w.failure.Load(); fail != nil {
			return (*fail)(key)
		}
		return nil
	}
	return w
}

// fail lets every mint end with what failure returns; nil ends that.
func (w *world) fail(failure func(refresh.MintKey) error) {
	if failure == nil {
		w.failure.Store(nil)
	} else {
		w.failure.Store(&failure)
	}
}

// lead runs a term of leadership and gives what ends it. The term has done all that there was to do at once.
func (w *world) lead(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the term ended with %v", err)
		}
	}
}

func (w *world) secret(t *testing.T, name refresh.Name) *corev1.Secret {
	t.Helper()
	s, err := w.store.Get(t.Context(), name)
	if err != nil || s == nil {
		t.Fatalf("get %s: %v, %v", name, s, err)
	}
	return s
}

func (w *world) edit(t *testing.T, name refresh.Name, change func(*corev1.Secret)) {
	t.Helper()
	if err := w.store.Edit(t.Context(), "somebody", name, change); err != nil {
		t.Fatal(err)
	}
}

func (w *world) request(t *testing.T, name refresh.Name, value string) {
	t.Helper()
	w.edit(t, name, func(s *corev1.Secret) { s.Annotations[secret.Request] = value })
}

// series collects the metrics: "name{label=value,…}" → value; histograms give their count.
func (w *world) series(t *testing.T) map[string]float64 {
	t.Helper()
	var collected metricdata.ResourceMetrics
	if err := w.metrics.Collect(t.Context(), &collected); err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, scope := range collected.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					all[m.Name+label(p.Attributes)] = float64(p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					all[m.Name+label(p.Attributes)] = float64(p.Value)
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					all[m.Name+label(p.Attributes)] = p.Value
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					all[m.Name+label(p.Attributes)] = float64(p.Count)
				}
			}
		}
	}
	return all
}

func label(set attribute.Set) string { return "{" + set.Encoded(attribute.DefaultEncoder()) + "}" }

// good gives a Secret that holds the token current as we would have written it 30 minutes ago.
func good() *corev1.Secret {
	start := time.Now()
	data := map[string][]byte{"bearerToken": []byte("current")}
	content := target.Format.ContentHash(data)
	stamp := func(d time.Duration) string { return start.Add(d).UTC().Format(time.RFC3339) }
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: target.Name.Namespace, Name: target.Name.Name, Annotations: map[string]string{
				secret.ExpiresAt: stamp(30 * time.Minute), secret.RefreshAt: stamp(15 * time.Minute), secret.RefreshedAt: stamp(-30 * time.Minute),
				secret.Reason: string(refresh.RefreshDue), secret.TokenHash: refresh.Hash("current"),
				secret.ContentHash: content, secret.ConfigHash: target.ConfigHash,
			},
		},
		Type: corev1.SecretTypeOpaque,
		Data: maps.Clone(data),
	}
}
