// Which exporters OTEL_* asks for.

package telemetry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func spanExporters(ctx context.Context) ([]sdktrace.SpanExporter, error) {
	return create(ctx, "OTEL_TRACES_EXPORTER", chosen("TRACES", true), func(ctx context.Context) (sdktrace.SpanExporter, error) {
		return autoexport.NewSpanExporter(ctx)
	})
}

// metricReaders are the readers beside /metrics. That is the prometheus exporter: autoexport's own would listen on a
// second port, 9464.
func metricReaders(ctx context.Context) ([]sdkmetric.Reader, error) {
	names := slices.DeleteFunc(chosen("METRICS", true), func(name string) bool { return name == "prometheus" })
	return create(ctx, "OTEL_METRICS_EXPORTER", names, func(ctx context.Context) (sdkmetric.Reader, error) {
		return autoexport.NewMetricReader(ctx)
	})
}

// logExporters are there when OTEL_LOGS_EXPORTER or an endpoint of logs asks for them. The endpoint of all signals does not: the
// log of a pod is collected from its standard error already, and would come twice.
func logExporters(ctx context.Context) ([]sdklog.Exporter, error) {
	return create(ctx, "OTEL_LOGS_EXPORTER", chosen("LOGS", false), func(ctx context.Context) (sdklog.Exporter, error) {
		return autoexport.NewLogExporter(ctx)
	})
}

// chosen reads the list OTEL_<signal>_EXPORTER, without "none". Left empty it means otlp where an endpoint is set (that of the
// signal, or that of all where shared), as in the specification, and nothing where none is: the default of the specification, and of
// autoexport, is a collector on localhost, which a pod does not have.
func chosen(signal string, shared bool) []string {
	var names []string
	for name := range strings.SplitSeq(os.Getenv("OTEL_"+signal+"_EXPORTER"), ",") {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 && (shared && os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != "") {
		return []string{"otlp"}
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "none" })
}

// create makes one exporter for each name. autoexport takes its choice from the environment only, and knows no lists, so
// variable holds each name in turn while its exporter is made.
func create[T interface{ Shutdown(context.Context) error }](ctx context.Context, variable string, names []string, one func(context.Context) (T, error)) (made []T, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	if before, ok := os.LookupEnv(variable); ok {
		defer func() { err = errors.Join(err, os.Setenv(variable, before)) }()
	} else {
		defer func() { err = errors.Join(err, os.Unsetenv(variable)) }()
	}
	for _, name := range names {
		if err := os.Setenv(variable, name); err != nil {
			return nil, errors.Join(err, stopAll(ctx, shutdownOf(made)))
		}
		exporter, err := one(ctx)
		if err != nil {
			err = fmt.Errorf("%s: exporter %q (use otlp, console or none): %s", variable, name, redact(err))
			return nil, errors.Join(err, stopAll(ctx, shutdownOf(made)))
		}
		made = append(made, exporter)
	}
	return made, nil
}
