// /metrics, and which build is running.

package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
)

// cardinalityLimit is how many series one instrument may have; the rest would fall together into one without
// labels. The SDK's 2,000 are too few for thousands of targets by reason and outcome. All labels come from closed lists and from the
// configuration, so this is a guard, not a budget.
const cardinalityLimit = 100_000

// newRegistry is a registry of our own: what other packages put into the default one is not ours to show.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// newExposition shows the product's instruments in registry. Series carry no otel_scope_* labels, which would double every
// line and tell a dashboard nothing; target_info stays and joins them with service_version and the like.
func newExposition(registry *prometheus.Registry) (sdkmetric.Reader, error) {
	r, err := otelprometheus.New(
		otelprometheus.WithRegisterer(registry),
		otelprometheus.WithoutScopeInfo(),
		// The exporter's default keeps dots in names where the scraper takes UTF-8.
		otelprometheus.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes),
	)
	if err != nil {
		return nil, fmt.Errorf("set up /metrics: %w", err)
	}
	return r, nil
}

func metricsHandler(registry *prometheus.Registry, problems *problems) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		// One broken collector must not hide the others.
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      scrapeErrors{problems},
	})
}

// scrapeErrors is promhttp's logger.
type scrapeErrors struct{ problems *problems }

func (s scrapeErrors) Println(v ...any) { s.problems.Handle(errors.New(fmt.Sprint(v...))) }

// recordBuild is token_refresher_build_info, always 1.
func recordBuild(meters metric.MeterProvider, cfg Config) error {
	labels := metric.WithAttributeSet(attribute.NewSet(
		attribute.String("version", version(cfg.ServiceVersion)),
		attribute.String("goversion", runtime.Version()),
		attribute.String("revision", cmp.Or(cfg.Revision, "unknown")),
	))
	_, err := meters.Meter("flux-token-refresher/telemetry").Int64ObservableGauge("token_refresher.build_info",
		metric.WithDescription("The build that is running; always 1."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(1, labels)
			return nil
		}))
	if err != nil {
		return fmt.Errorf("set up token_refresher_build_info: %w", err)
	}
	return nil
}
