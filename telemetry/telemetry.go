// Package telemetry sets up what the process says about itself: traces and metrics through the
// OpenTelemetry SDK, and logs through log/slog, which go to OpenTelemetry too where OTEL_LOGS_EXPORTER asks. The rest of the product uses the OpenTelemetry API with the
// providers that Start gives, and *slog.Logger.
//
// OpenTelemetry is configured by the environment variables of its specification (OTEL_*) alone. While none
// names an exporter or an endpoint, nothing leaves the process; /metrics is always served. Spans are sampled as
// OTEL_TRACES_SAMPLER says; unset: all, but those below a parent that was not. Where nothing exports them, none is: it would cost memory, and
// be an exemplar of a trace that is nowhere.
//
// Instruments are named with dots and carry their unit by UCUM ("s", "{refresh}"): token_refresher.refresh.duration in
// seconds becomes token_refresher_refresh_duration_seconds on /metrics. A unit of "1" on a gauge would
// append _ratio: leave the unit out where there is none.
//
// Trace context travels as W3C traceparent only (propagation.TraceContext). Baggage is neither read nor sent:
// it would let a stranger's key-value pairs travel on to Azure and Kubernetes.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/metric"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
)

// Config is what OTEL_* does not say. The zero Config works.
type Config struct {
	// ServiceVersion is the version of the program; empty: that of the build's main module.
	ServiceVersion string
	// Revision is that of its sources; empty: unknown.
	Revision string
	// PodNamespace and PodName name this replica (downward API); empty outside of a pod.
	PodNamespace, PodName string

	// LogWriter takes the log, one line per call of Write, one call at a time; nil: standard error.
	LogWriter io.Writer
	// LogFormat is JSON unless set.
	LogFormat LogFormat
	// LogLevel is the lowest level that is written; Info unless set.
	LogLevel slog.Level
}

// Telemetry holds the providers of one process.
type Telemetry struct {
	tracers  trace.TracerProvider
	meters   metric.MeterProvider
	logger   *slog.Logger
	metrics  http.Handler
	shutdown []func(context.Context) error
}

// Start sets everything up. It opens no connection itself: exporters connect when they first export. An OTEL_* variable
// that asks for something unknown is an error, so that a rollout stops while the old pods still run.
//
// Call it once per process, before goroutines start: OpenTelemetry's error handler and logger, klog's
// logger and the log of the Azure SDK are global to the process, and autoexport reads its variables from the
// process's environment. The global tracer and meter providers stay unset.
func Start(ctx context.Context, cfg Config) (*Telemetry, error) {
	logger, err := newLogger(cfg)
	if err != nil {
		return nil, err
	}
	problems := &problems{logger: logger, limit: newLimiter()}
	captureLibraries(logger, problems)

	t := &Telemetry{logger: logger}
	registry := newRegistry()
	t.metrics = metricsHandler(registry, problems)

	// A no-op SDK for every signal, by the specification of OTEL_SDK_DISABLED; what /metrics has left is
	// the Go runtime and the process.
	if strings.EqualFold(strings.TrimSpace(os.Getenv("OTEL_SDK_DISABLED")), "true") {
		t.tracers, t.meters = nooptrace.NewTracerProvider(), noopmetric.NewMeterProvider()
		logger.Debug("OpenTelemetry is disabled by OTEL_SDK_DISABLED")
		return t, nil
	}

	spans, err1 := spanExporters(ctx)
	readers, err2 := metricReaders(ctx)
	logs, err3 := logExporters(ctx)
	exposition, err4 := newExposition(registry)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, errors.Join(err, stopAll(ctx, slices.Concat(shutdownOf(spans), shutdownOf(readers), shutdownOf(logs))))
	}
	readers = append(readers, exposition)

	resource := newResource(ctx, cfg)
	traceOptions := []sdktrace.TracerProviderOption{sdktrace.WithResource(resource)}
	if len(spans) == 0 {
		// Their ids still join the log lines of one refresh, and a parent that was sampled is passed on as such.
		traceOptions = append(traceOptions, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
	}
	for _, exporter := range spans {
		traceOptions = append(traceOptions, sdktrace.WithBatcher(exporter))
	}
	meterOptions := []sdkmetric.Option{sdkmetric.WithResource(resource), sdkmetric.WithCardinalityLimit(cardinalityLimit)}
	for _, reader := range readers {
		meterOptions = append(meterOptions, sdkmetric.WithReader(reader))
	}
	tracers, meters := sdktrace.NewTracerProvider(traceOptions...), sdkmetric.NewMeterProvider(meterOptions...)
	t.tracers, t.meters = tracers, meters
	t.shutdown = []func(context.Context) error{interrupting(tracers.Shutdown, spans), meters.Shutdown}
	if len(logs) > 0 {
		logOptions := []sdklog.LoggerProviderOption{sdklog.WithResource(resource)}
		for _, exporter := range logs {
			logOptions = append(logOptions, sdklog.WithProcessor(sdklog.NewBatchProcessor(exporter)))
		}
		provider := sdklog.NewLoggerProvider(logOptions...)
		t.shutdown = append(t.shutdown, interrupting(provider.Shutdown, logs))
		// What libraries and exporters say stays in the process's own log: that an export fails must not become the next export.
		t.logger = alsoTo(provider, logger, cfg.LogLevel)
	}
	if err := recordBuild(meters, cfg); err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	logger.Debug("OpenTelemetry is set up", "spanExporters", len(spans), "metricReaders", len(readers), "logExporters", len(logs))
	return t, nil
}

// TracerProvider makes the tracers of the product.
func (t *Telemetry) TracerProvider() trace.TracerProvider { return t.tracers }

// MeterProvider makes the meters of the product.
func (t *Telemetry) MeterProvider() metric.MeterProvider { return t.meters }

// Logger is the process's log. It adds the trace and span id of the context it is given.
func (t *Telemetry) Logger() *slog.Logger { return t.logger }

// MetricsHandler serves /metrics in the Prometheus text format, or in OpenMetrics (with exemplars) to those who
// ask for it.
func (t *Telemetry) MetricsHandler() http.Handler { return t.metrics }

// Shutdown exports what is left and ends all exporters, all signals at once, before ctx ends: give it a
// deadline. What did not get out by then is lost, and the error says so.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if err := stopAll(ctx, t.shutdown); err != nil {
		return fmt.Errorf("flush telemetry: %s", redact(err))
	}
	return nil
}

// interrupting makes a batch processor's shutdown end in time: at its deadline it leaves an export that hangs to itself, and
// stopping the exporter interrupts that, which tells only the same again.
func interrupting[T interface{ Shutdown(context.Context) error }](shutdown func(context.Context) error, exporters []T) func(context.Context) error {
	return func(ctx context.Context) error {
		err := shutdown(ctx)
		if err != nil {
			_ = stopAll(ctx, shutdownOf(exporters))
		}
		return err
	}
}

// stopAll calls all at once, so that one that hangs does not take the time of the others.
func stopAll(ctx context.Context, stop []func(context.Context) error) error {
	errs := make([]error, len(stop))
	var all sync.WaitGroup
	for i, f := range stop {
		all.Go(func() { errs[i] = f(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func shutdownOf[T interface{ Shutdown(context.Context) error }](some []T) []func(context.Context) error {
	stop := make([]func(context.Context) error, len(some))
	for i, s := range some {
		stop[i] = s.Shutdown
	}
	return stop
}
