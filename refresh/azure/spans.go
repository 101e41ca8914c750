// azidentity's spans, without what Entra answered.

package azure

import (
	"context"
	"slices"

	sdktracing "github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/tracing/azotel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// tracing gives azidentity's spans a place below the caller's.
func tracing(provider trace.TracerProvider) sdktracing.Provider {
	return azotel.NewTracingProvider(quietProvider{provider}, nil)
}

// quietProvider makes spans that take no text from outside: azidentity puts whole error bodies into the
// description of a span's status.
type quietProvider struct{ trace.TracerProvider }

func (p quietProvider) Tracer(name string, options ...trace.TracerOption) trace.Tracer {
	return quietTracer{p.TracerProvider.Tracer(name, options...)}
}

type quietTracer struct{ trace.Tracer }

func (t quietTracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	ctx, span := t.Tracer.Start(ctx, name, options...)
	quiet := quietSpan{span}
	return trace.ContextWithSpan(ctx, quiet), quiet
}

type quietSpan struct{ trace.Span }

func (s quietSpan) SetStatus(code codes.Code, _ string)     { s.Span.SetStatus(code, "") }
func (s quietSpan) RecordError(error, ...trace.EventOption) {}
func (s quietSpan) AddEvent(string, ...trace.EventOption)   {}
func (s quietSpan) SetAttributes(attributes ...attribute.KeyValue) {
	// The one attribute that a server fills in (from x-ms-request-id) has to be the id that it is said to be.
	s.Span.SetAttributes(slices.DeleteFunc(attributes, func(a attribute.KeyValue) bool {
		return a.Key == "az.service_request_id" && !uuid.MatchString(a.Value.AsString())
	})...)
}
