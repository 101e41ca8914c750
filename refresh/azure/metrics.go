// What a mint tells the metrics.

package azure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"flux-token-refresher/refresh"
)

type metrics struct {
	requests metric.Int64Counter
	duration metric.Float64Histogram
}

// newMetrics names them so that Prometheus shows token_refresher_token_requests_total and
// token_refresher_token_request_duration_seconds.
func newMetrics(provider metric.MeterProvider) (metrics, error) {
	meter := provider.Meter("flux-token-refresher/refresh/azure")
	requests, err := meter.Int64Counter("token_refresher.token.requests", metric.WithUnit("{request}"),
		metric.WithDescription("Tokens asked of Entra, by identity and outcome (success, or the class of the failure)."))
	if err != nil {
		return metrics{}, fmt.Errorf("counter of token requests: %w", err)
	}
	duration, err := meter.Float64Histogram("token_refresher.token_request.duration", metric.WithUnit("s"),
		metric.WithDescription("How long Entra took to answer, or not to."),
		metric.WithExplicitBucketBoundaries(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30))
	if err != nil {
		return metrics{}, fmt.Errorf("histogram of token requests: %w", err)
	}
	return metrics{requests: requests, duration: duration}, nil
}

func (m metrics) record(ctx context.Context, identity string, took time.Duration, err error) {
	outcome := "success"
	if failure, ok := errors.AsType[*refresh.Error](err); ok {
		outcome = string(failure.Class)
	}
	m.requests.Add(ctx, 1, metric.WithAttributes(attribute.String("identity", identity), attribute.String("outcome", outcome)))
	m.duration.Record(ctx, took.Seconds())
}
