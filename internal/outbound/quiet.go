package outbound

import (
	"context"
	"slices"
	"strings"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Quiet makes spans that take no text from outside: libraries put errors, and azidentity whole bodies, into the description of a
// span's status.
func Quiet(provider trace.TracerProvider) trace.TracerProvider { return quietProvider{provider} }

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

func (s quietSpan) TracerProvider() trace.TracerProvider    { return Quiet(s.Span.TracerProvider()) }
func (s quietSpan) SetStatus(code codes.Code, _ string)     { s.Span.SetStatus(code, "") }
func (s quietSpan) RecordError(error, ...trace.EventOption) {}
func (s quietSpan) AddEvent(string, ...trace.EventOption)   {}
func (s quietSpan) SetAttributes(attributes ...attribute.KeyValue) {
	attributes = slices.DeleteFunc(attributes, func(a attribute.KeyValue) bool {
		// The one attribute that a server fills in (from x-ms-request-id) has to be the id that it is said to be.
		return a.Key == "az.service_request_id" && uuid.Validate(a.Value.AsString()) != nil
	})
	for i, a := range attributes {
		if a.Key == semconv.URLFullKey {
			path, _, _ := strings.Cut(a.Value.AsString(), "?")
			attributes[i] = semconv.URLFull(path)
		}
	}
	s.Span.SetAttributes(attributes...)
}
