// Package outbound makes the spans of requests to other servers, without a word of theirs: what a server, or a proxy on the way,
// answers could hold anything, and a trace is read by many.
package outbound

import (
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Transport makes a client span (OpenTelemetry, "Semantic conventions for HTTP client spans") of each request whose context holds a
// span, by the provider of that span. A request without one, as a watch or the renewal of a Lease, passes as it is: it would be the
// root of a trace that answers no question. name gives a span its name.
//
// propagator says what of the trace travels along. A server outside of the installation is to get none of it.
func Transport(base http.RoundTripper, name func(*http.Request) string, propagator propagation.TextMapPropagator) http.RoundTripper {
	return transport{base: base, traced: otelhttp.NewTransport(base,
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return name(r) }),
		otelhttp.WithPropagators(propagator),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()),
	)}
}

type transport struct{ base, traced http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	span := trace.SpanFromContext(r.Context())
	if !span.SpanContext().IsValid() {
		return t.base.RoundTrip(r)
	}
	// otelhttp makes its span by the provider of this one.
	return t.traced.RoundTrip(r.WithContext(trace.ContextWithSpan(r.Context(), newQuietSpan(span))))
}

// Method names a span by the request's method alone: a path has no bounds.
func Method(r *http.Request) string { return r.Method }
