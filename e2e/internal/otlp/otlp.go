// Package otlp receives what processes export over OTLP/HTTP, for tests that look at it: spans, and metrics and logs as they came.
package otlp

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a finished span, as its process exported it.
type Span struct {
	// TraceID, ID and Parent are hex digits; Parent is "" for a root.
	TraceID, ID, Parent string
	Name                string
	Kind                tracepb.Span_SpanKind
	Start, End          time.Time
	// Attributes and Resource are all printed as text.
	Attributes, Resource map[string]string
	Status               tracepb.Status_StatusCode
	// StatusText is the description that came with Status.
	StatusText string
	// Links are the trace ids that the span links to.
	Links []string
}

// Receiver is an OTLP/HTTP endpoint on loopback that keeps all spans. Safe for concurrent use.
type Receiver struct {
	server *http.Server
	url    string
	served chan error

	mu     sync.Mutex
	spans  []Span
	bodies [][]byte
	grown  chan struct{} // closed, and made anew, when spans grows
}

// Start starts a receiver. The caller must Close it.
func Start() (*Receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Receiver{
		url: "http://" + listener.Addr().String(), served: make(chan error, 1), grown: make(chan struct{}),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", r.traces)
	mux.HandleFunc("POST /v1/metrics", r.keep)
	mux.HandleFunc("POST /v1/logs", r.keep)
	r.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { r.served <- r.server.Serve(listener) }()
	return r, nil
}

// Close ends the receiver and its connections.
func (r *Receiver) Close() error {
	err := r.server.Close()
	if served := <-r.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Env are the environment variables that make a process export its spans here, every 100 ms, and its metrics, every
// minute and at its end.
func (r *Receiver) Env() map[string]string {
	return map[string]string{
		"OTEL_TRACES_EXPORTER":        "otlp",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		"OTEL_EXPORTER_OTLP_ENDPOINT": r.url,
		"OTEL_BSP_SCHEDULE_DELAY":     "100",
	}
}

// Spans gives the matching spans, in the order in which they came.
func (r *Receiver) Spans(match func(Span) bool) []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return filter(r.spans, match)
}

// Wait gives the first matching span as soon as it has come. A span ends after those below it, so these have come too, except
// what another process still holds.
func (r *Receiver) Wait(ctx context.Context, match func(Span) bool) (Span, error) {
	for {
		r.mu.Lock()
		found, grown := filter(r.spans, match), r.grown
		r.mu.Unlock()
		if len(found) > 0 {
			return found[0], nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return Span{}, fmt.Errorf("no such span: %w", context.Cause(ctx))
		}
	}
}

// Bodies gives every request as it came, for a search of what must never be sent.
func (r *Receiver) Bodies() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.bodies)
}

func filter(spans []Span, match func(Span) bool) []Span {
	var found []Span
	for _, s := range spans {
		if match(s) {
			found = append(found, s)
		}
	}
	return found
}

func (r *Receiver) traces(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// TracesData is ExportTraceServiceRequest on the wire, whose own package brings gRPC along.
	var export tracepb.TracesData
	if err := proto.Unmarshal(body, &export); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.bodies = append(r.bodies, body)
	for _, resource := range export.GetResourceSpans() {
		of := texts(resource.GetResource().GetAttributes())
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				r.spans = append(r.spans, newSpan(of, span))
			}
		}
	}
	close(r.grown)
	r.grown = make(chan struct{})
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// keep keeps the request alone: what metrics and logs say, /metrics and the process's output say as well.
func (r *Receiver) keep(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies = append(r.bodies, body)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func newSpan(resource map[string]string, span *tracepb.Span) Span {
	s := Span{
		TraceID: hex.EncodeToString(span.GetTraceId()), ID: hex.EncodeToString(span.GetSpanId()),
		Parent: hex.EncodeToString(span.GetParentSpanId()),
		Name:   span.GetName(), Kind: span.GetKind(),
		Start:      time.Unix(0, int64(span.GetStartTimeUnixNano())),
		End:        time.Unix(0, int64(span.GetEndTimeUnixNano())),
		Attributes: texts(span.GetAttributes()), Resource: resource,
		Status: span.GetStatus().GetCode(), StatusText: span.GetStatus().GetMessage(),
	}
	for _, link := range span.GetLinks() {
		s.Links = append(s.Links, hex.EncodeToString(link.GetTraceId()))
	}
	return s
}

func texts(attributes []*commonpb.KeyValue) map[string]string {
	out := make(map[string]string, len(attributes))
	for _, a := range attributes {
		out[a.GetKey()] = text(a.GetValue())
	}
	return out
}

func text(value *commonpb.AnyValue) string {
	switch v := value.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_BoolValue:
		return fmt.Sprint(v.BoolValue)
	case *commonpb.AnyValue_IntValue:
		return fmt.Sprint(v.IntValue)
	case *commonpb.AnyValue_DoubleValue:
		return fmt.Sprint(v.DoubleValue)
	case *commonpb.AnyValue_ArrayValue:
		var elements []string
		for _, element := range v.ArrayValue.GetValues() {
			elements = append(elements, text(element))
		}
		return "[" + strings.Join(elements, " ") + "]"
	default:
		return value.String()
	}
}
