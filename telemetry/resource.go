// Who is speaking: the resource that goes with every span and metric.

package telemetry

import (
	"context"
	"runtime/debug"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"

	// The version that the SDK's own detectors use: resources with different schema URLs do not merge.
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// newResource takes OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES (k8s.cluster.name, …) over our own. The command line is
// left out: it is nobody's business.
func newResource(ctx context.Context, cfg Config) *resource.Resource {
	own := []attribute.KeyValue{semconv.ServiceName("flux-token-refresher"), semconv.ServiceVersion(version(cfg.ServiceVersion))}
	if cfg.PodName != "" {
		own = append(own,
			semconv.ServiceNamespace(cfg.PodNamespace), // with the name, a Prometheus that is fed over OTLP makes the label job of it
			semconv.ServiceInstanceID(cfg.PodNamespace+"."+cfg.PodName),
			semconv.K8SNamespaceName(cfg.PodNamespace),
			semconv.K8SPodName(cfg.PodName))
	}
	r, err := resource.New(ctx,
		resource.WithService(), // a random service.instance.id, for outside of a pod
		resource.WithAttributes(own...),
		resource.WithTelemetrySDK(),
		resource.WithProcessRuntimeName(),
		resource.WithProcessRuntimeVersion(),
		resource.WithFromEnv(),
	)
	if err != nil {
		// A part that cannot be read (OTEL_RESOURCE_ATTRIBUTES malformed) leaves the others standing.
		otel.Handle(err)
	}
	return r
}

// version is v, or the version of the main module as the Go tool stamped it.
func version(v string) string {
	if v != "" {
		return v
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
