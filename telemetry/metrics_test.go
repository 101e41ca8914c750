// /metrics as Prometheus sees it.

package telemetry_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"flux-token-refresher/telemetry"
)

func scrape(t *testing.T, tel *telemetry.Telemetry, accept string) (contentType, body string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("/metrics: status %d: %s", w.Code, w.Body)
	}
	return w.Header().Get("Content-Type"), w.Body.String()
}

// measure makes one instrument of each kind that the product has.
func measure(t *testing.T, tel *telemetry.Telemetry) {
	t.Helper()
	meter := tel.MeterProvider().Meter("test")
	counter, err := meter.Int64Counter("token_refresher.refreshes", metric.WithUnit("{refresh}"), metric.WithDescription("Refreshes."))
	if err != nil {
		t.Fatal(err)
	}
	histogram, err := meter.Float64Histogram("token_refresher.refresh.duration", metric.WithUnit("s"), metric.WithDescription("How long."),
		metric.WithExplicitBucketBoundaries(0.1, 1, 10))
	if err != nil {
		t.Fatal(err)
	}
	_, err = meter.Float64ObservableGauge("token_refresher.token_expiry_timestamp", metric.WithUnit("s"), metric.WithDescription("The end."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			o.Observe(1.5e9, metric.WithAttributes(attribute.String("namespace", "flux-system"), attribute.String("secret", "repos")))
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
	defer span.End()
	counter.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", "RefreshDue"), attribute.String("outcome", "Refreshed")))
	histogram.Record(ctx, 0.5)
}

func TestNamesAndLabels(t *testing.T) {
	tel, _ := start(t, telemetry.Config{ServiceVersion: "1.2.3", Revision: "0a1b2c"})
	measure(t, tel)
	// What a scraper that takes UTF-8 names asks for must not bring dots into them.
	for _, accept := range []string{"", "text/plain;version=1.0.0;escaping=allow-utf-8"} {
		_, body := scrape(t, tel, accept)
		for _, want := range []string{
			`token_refresher_refreshes_total{outcome="Refreshed",reason="RefreshDue"} 1`,
			`token_refresher_refresh_duration_seconds_bucket{le="1"} 1`,
			`token_refresher_refresh_duration_seconds_count 1`,
			`token_refresher_token_expiry_timestamp_seconds{namespace="flux-system",secret="repos"} 1.5e+09`,
			fmt.Sprintf(`token_refresher_build_info{goversion="%s",revision="0a1b2c",version="1.2.3"} 1`, runtime.Version()),
			`service_name="flux-token-refresher"`,
			`go_goroutines `,
			`process_resident_memory_bytes `,
		} {
			if !strings.Contains(body, want) {
				t.Errorf("Accept %q: no %s in\n%s", accept, want, body)
			}
		}
		if strings.Contains(body, "otel_scope") {
			t.Errorf("Accept %q: series carry the scope", accept)
		}
	}
	_, body := scrape(t, tel, "")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "token_refresher") {
			t.Errorf("promlint: %s: %s", p.Metric, p.Text)
		}
	}
}

// TestOpenMetricsLeadFromASeriesToItsTrace: while traces are exported; else there is none to lead to.
func TestOpenMetricsLeadFromASeriesToItsTrace(t *testing.T) {
	for endpoint, want := range map[string]bool{newCollector(t).URL + "/v1/traces": true, "": false} {
		t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
		tel, _ := start(t, telemetry.Config{})
		measure(t, tel)
		contentType, body := scrape(t, tel, "application/openmetrics-text;version=1.0.0")
		if !strings.HasPrefix(contentType, "application/openmetrics-text") || !strings.HasSuffix(body, "# EOF\n") {
			t.Errorf("got content type %s, want OpenMetrics", contentType)
		}
		leads := false
		for line := range strings.Lines(body) {
			leads = leads || strings.HasPrefix(line, `token_refresher_refresh_duration_seconds_bucket{le="1.0"}`) && strings.Contains(line, `trace_id="`)
		}
		if leads != want {
			t.Errorf("with the endpoint %q, exemplars with a trace id: %t, want %t in\n%s", endpoint, leads, want, body)
		}
	}
}

func TestThousandsOfTargets(t *testing.T) {
	tel, _ := start(t, telemetry.Config{})
	const targets = 5000 // the SDK folds what is over 2,000 into one series unless told otherwise
	_, err := tel.MeterProvider().Meter("test").Int64ObservableGauge("token_refresher.targets",
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			for i := range targets {
				o.Observe(1, metric.WithAttributes(attribute.Int("secret", i)))
			}
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	_, body := scrape(t, tel, "")
	if got := strings.Count(body, "token_refresher_targets{"); got != targets {
		t.Errorf("got %d series, want %d", got, targets)
	}
}

func TestDisabledStillShowsTheProcess(t *testing.T) {
	t.Setenv("OTEL_SDK_DISABLED", "true")
	tel, _ := start(t, telemetry.Config{})
	measure(t, tel)
	_, body := scrape(t, tel, "")
	if !strings.Contains(body, "go_goroutines") || strings.Contains(body, "token_refresher") {
		t.Errorf("want the Go runtime's metrics alone, got\n%s", body)
	}
}
