package refresh

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

const scope = "flux-token-refresher/refresh"

// instruments are the spans and metrics of one term. What is about a target is observed at each collection, so
// that it goes with the target and with the term.
type instruments struct {
	tracer   trace.Tracer
	duration metric.Float64Histogram
	repaired metric.Float64Histogram // event to Secret
	observer metric.Registration
}

func newInstruments(mp metric.MeterProvider, tp trace.TracerProvider, entries map[Name]*entry) (*instruments, error) {
	meter := mp.Meter(scope)
	duration, err1 := meter.Float64Histogram("token_refresher.refresh.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from the decision to refresh a token until it stood in the Secret, its readers were told and, where somebody had asked, tried it; or until that failed."),
		metric.WithExplicitBucketBoundaries(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40))
	repaired, err5 := meter.Float64Histogram("token_refresher.event_to_secret", metric.WithUnit("s"),
		metric.WithDescription("Time from receiving an event until another token stood in the Secret that it was about."),
		metric.WithExplicitBucketBoundaries(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900))
	refreshes, err2 := meter.Int64ObservableCounter("token_refresher.refreshes", metric.WithUnit("{refresh}"),
		metric.WithDescription("Reconciliations of a Secret that did something, or had to wait for a change of it."))
	expiry, err3 := meter.Float64ObservableGauge("token_refresher.token.expiry.timestamp", metric.WithUnit("s"),
		metric.WithDescription("When the token in the Secret ends, in seconds since 1970; 0 when there is none, or the Secret was not seen yet."))
	next, err4 := meter.Float64ObservableGauge("token_refresher.next_refresh.timestamp", metric.WithUnit("s"),
		metric.WithDescription("When the token in the Secret is to be refreshed, in seconds since 1970."))
	failing, err6 := meter.Int64ObservableGauge("token_refresher.refresh.failing",
		metric.WithDescription("1 while the Secret needs a token that cannot be had or written, else 0."))
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		return nil, err
	}
	observer, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, e := range entries {
			e.report(func(labels attribute.Set, observed Observed, fails bool) {
				with := metric.WithAttributeSet(labels)
				// A failure is a level here, which stands at the first one and through a change of leader: a counter that is new with each term, and
				// begins with its first failure, tells increase() of neither.
				level := int64(0)
				if fails {
					level = 1
				}
				o.ObserveInt64(failing, level, with)
				// A target without a token has one that ended long ago, so that nobody has to watch for a missing series.
				ends := 0.0
				if at := observed.ExpiresAt; !at.IsZero() {
					ends = float64(at.Unix())
				}
				o.ObserveFloat64(expiry, ends, with)
				if at := observed.RefreshAt; !at.IsZero() {
					o.ObserveFloat64(next, float64(at.Unix()), with)
				}
			}, func(labels attribute.Set, n int64) {
				o.ObserveInt64(refreshes, n, metric.WithAttributeSet(labels))
			})
		}
		return nil
	}, refreshes, expiry, next, failing)
	if err != nil {
		return nil, err
	}
	return &instruments{tracer: tp.Tracer(scope), duration: duration, repaired: repaired, observer: observer}, nil
}

func (i *instruments) close() { _ = i.observer.Unregister() }

func (e *entry) report(state func(_ attribute.Set, _ Observed, failing bool), counter func(attribute.Set, int64)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	namespace := attribute.String("namespace", e.target.Name.Namespace)
	secret := attribute.String("secret", e.target.Name.Name)
	state(attribute.NewSet(namespace, secret), e.observed, e.failing)
	for c, n := range e.counts {
		counter(attribute.NewSet(namespace, secret, attribute.String("reason", string(c.reason)), attribute.String("outcome", string(c.outcome))), n)
	}
}

func (i *instruments) took(ctx context.Context, reason Reason, outcome Outcome, d time.Duration) {
	i.duration.Record(ctx, d.Seconds(), metric.WithAttributes(
		attribute.String("reason", string(reason)), attribute.String("outcome", string(outcome))))
}

// answered notes that another token stands there for an event. The clocks of the pods that received and wrote may differ.
func (i *instruments) answered(ctx context.Context, request Request) {
	if !request.Received.IsZero() {
		i.repaired.Record(ctx, max(0, time.Since(request.Received).Seconds()))
	}
}

// refreshSpan is the span of one reconciliation that acts.
type refreshSpan struct{ trace.Span }

// start opens the span. Where a request is answered, that is a message that the Secret carried: the span is below the event that asked, if its
// trace came along, and its attributes are those of messaging.
func (i *instruments) start(ctx context.Context, target Target, request Request, d Decision) (context.Context, refreshSpan) {
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": request.TraceParent})
	options := []trace.SpanStartOption{trace.WithAttributes(
		attribute.String("refresh.target", target.Name.String()), attribute.String("refresh.reason", string(d.Reason)))}
	if request.Open() {
		options = append(options, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
			semconv.MessagingSystemKey.String("kubernetes"), semconv.MessagingDestinationName(target.Name.String()),
			semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("refresh")))
	}
	ctx, span := i.tracer.Start(ctx, "refresh", options...)
	return ctx, refreshSpan{span}
}

func (s refreshSpan) end(outcome Outcome, token Token, err error) {
	s.SetAttributes(attribute.String("refresh.outcome", string(outcome)))
	if !token.IsZero() {
		s.SetAttributes(attribute.String("token.expires_at", token.Expires.UTC().Format(time.RFC3339)))
	}
	switch {
	case err != nil:
		failed(s, err)
	case outcome == TokenRejected:
		s.SetStatus(codes.Error, sentences[outcome])
		s.SetAttributes(semconv.ErrorTypeKey.String("token_rejected"))
	}
	s.End()
}

func (s refreshSpan) gaveUp() {
	failed(s, errTermEnded)
	s.End()
}

// failed marks a span with what may be told of err.
func failed(span trace.Span, err error) {
	err = shown(err)
	span.RecordError(err)
	span.SetStatus(codes.Error, err.Error())
	span.SetAttributes(semconv.ErrorTypeKey.String(errorType(err)))
}

// errorType is one of a few words for what shown gives.
func errorType(err error) string {
	switch {
	case errors.Is(err, ErrConflict):
		return "conflict"
	case errors.Is(err, errNotLeading), errors.Is(err, errTermEnded):
		return "not_leading"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	default:
		return string(known(err).Class)
	}
}

func setAttributes(ctx context.Context, attrs ...attribute.KeyValue) {
	trace.SpanFromContext(ctx).SetAttributes(attrs...)
}

// span runs one step of a reconciliation as a span of its own.
func (i *instruments) span(ctx context.Context, name string, step func(context.Context) error, attrs ...attribute.KeyValue) error {
	ctx, span := i.tracer.Start(ctx, name, trace.WithAttributes(attrs...))
	defer span.End()
	err := step(ctx)
	if err != nil {
		failed(span, err)
	}
	return err
}
