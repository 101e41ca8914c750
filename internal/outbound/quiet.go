package outbound

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"

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
	given := trace.NewSpanStartConfig(options...)
	ctx, span := t.Tracer.Start(ctx, name, trace.WithSpanKind(given.SpanKind()), trace.WithAttributes(presentable(given.Attributes())...))
	quiet := newQuietSpan(span)
	return trace.ContextWithSpan(ctx, quiet), quiet
}

type quietSpan struct {
	trace.Span
	typed *atomic.Bool // it has an error.type
}

func newQuietSpan(span trace.Span) quietSpan { return quietSpan{span, new(atomic.Bool)} }

func (s quietSpan) TracerProvider() trace.TracerProvider { return Quiet(s.Span.TracerProvider()) }

// SetStatus names what failed without an HTTP status by the conventions' word for what has no name.
func (s quietSpan) SetStatus(code codes.Code, _ string) {
	if code == codes.Error && !s.typed.Load() {
		s.Span.SetAttributes(semconv.ErrorTypeOther)
	}
	s.Span.SetStatus(code, "")
}
func (s quietSpan) RecordError(error, ...trace.EventOption) {}
func (s quietSpan) AddEvent(string, ...trace.EventOption)   {}
func (s quietSpan) SetAttributes(attributes ...attribute.KeyValue) {
	shown := presentable(attributes)
	if slices.ContainsFunc(shown, func(a attribute.KeyValue) bool { return a.Key == semconv.ErrorTypeKey }) {
		s.typed.Store(true)
	}
	s.Span.SetAttributes(shown...)
}

// presentable gives attributes without what a server chose, user info and queries, and in the words of the conventions that everything else here
// follows: azcore knows those of 2023 (http.url, net.peer.name).
func presentable(attributes []attribute.KeyValue) []attribute.KeyValue {
	var out []attribute.KeyValue
	for _, a := range attributes {
		switch a.Key {
		case "az.service_request_id":
			// The one attribute that a server fills in (from x-ms-request-id) has to be the id that it is said to be.
			if uuid.Validate(a.Value.AsString()) == nil {
				out = append(out, a)
			}
		case semconv.URLFullKey, "http.url":
			if u, err := url.Parse(a.Value.AsString()); err == nil {
				out = append(out, semconv.URLFull((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()))
			}
		case "http.method":
			out = append(out, semconv.HTTPRequestMethodKey.String(a.Value.AsString()))
		case "http.user_agent":
			out = append(out, semconv.UserAgentOriginal(a.Value.AsString()))
		case "http.status_code":
			status := int(a.Value.AsInt64())
			out = append(out, semconv.HTTPResponseStatusCode(status))
			if status >= http.StatusBadRequest {
				out = append(out, semconv.ErrorTypeKey.String(strconv.Itoa(status)))
			}
		case "net.peer.name":
			host, port, err := net.SplitHostPort(a.Value.AsString())
			if err != nil {
				host = a.Value.AsString()
			}
			out = append(out, semconv.ServerAddress(host))
			if number, err := strconv.Atoi(port); err == nil {
				out = append(out, semconv.ServerPort(number))
			}
		default:
			out = append(out, a)
		}
	}
	return out
}
