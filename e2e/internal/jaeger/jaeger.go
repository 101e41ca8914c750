// Package jaeger runs Jaeger, with its spans in memory: a backend that knows nothing of what it receives over OTLP, and gives it back
// through its API.
package jaeger

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"flux-token-refresher/e2e/internal/loopback"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/process"
)

// Jaeger is a running Jaeger on loopback.
type Jaeger struct {
	process *process.Process
	// receiver takes OTLP/HTTP, api answers questions; both are host:port.
	receiver, api string
}

// Start returns when Jaeger serves. The caller must Stop it.
func Start(ctx context.Context, binary string) (*Jaeger, error) {
	j := &Jaeger{}
	var args []string
	for flag, address := range map[string]*string{
		"collector.otlp.http.host-port": &j.receiver, "query.http-server.host-port": &j.api,
		// What it opens beside.
		"admin.http.host-port": new(string), "query.grpc-server.host-port": new(string), "collector.otlp.grpc.host-port": new(string),
		"collector.http-server.host-port": new(string), "collector.grpc-server.host-port": new(string), "http-server.host-port": new(string),
	} {
		var err error
		if *address, err = loopback.Address(); err != nil {
			return nil, err
		}
		args = append(args, "--"+flag+"="+*address)
	}
	// Its old UDP agent would listen on all interfaces.
	for _, protocol := range []string{"jaeger-compact", "jaeger-binary", "zipkin-compact"} {
		args = append(args, "--processor."+protocol+".server-host-port=127.0.0.1:0")
	}
	command := exec.Command(binary, args...)
	command.Env = []string{"SPAN_STORAGE_TYPE=memory", "OTEL_TRACES_SAMPLER=always_off"} // its own are nobody's business
	var err error
	j.process, _, err = process.StartReady(ctx, command, func(r process.Record) bool { return r["status"] == "ready" })
	if err != nil {
		return nil, err
	}
	return j, nil
}

// Stop ends Jaeger, and with it what it received.
func (j *Jaeger) Stop(ctx context.Context) error { return j.process.Stop(ctx) }

// Endpoint is where spans are sent to: the value of OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, for http/protobuf.
func (j *Jaeger) Endpoint() string { return "http://" + j.receiver + "/v1/traces" }

// Trace gives the spans of a trace that Jaeger has so far; none of a trace that it does not know.
func (j *Jaeger) Trace(ctx context.Context, id string) ([]otlp.Span, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+j.api+"/api/traces/"+url.PathEscape(id), http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask Jaeger for trace %s: %w", id, err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, nil
	default:
		return nil, fmt.Errorf("ask Jaeger for trace %s: %s", id, response.Status)
	}
	var answer struct{ Data []trace }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("ask Jaeger for trace %s: %w", id, err)
	}
	var spans []otlp.Span
	for _, t := range answer.Data {
		for _, s := range t.Spans {
			spans = append(spans, s.span(t.Processes[s.ProcessID].Tags))
		}
	}
	return spans, nil
}

// client keeps no connection, whose goroutine would outlive a test.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// trace is a trace in the JSON of Jaeger's API.
type trace struct {
	Spans     []span
	Processes map[string]struct{ Tags tags }
}

type span struct {
	TraceID, SpanID, OperationName, ProcessID string
	References                                []struct{ RefType, TraceID, SpanID string }
	StartTime, Duration                       int64 // in microseconds
	Tags                                      tags
}

type tags []struct {
	Key   string
	Value any
}

func (t tags) texts() map[string]string {
	texts := make(map[string]string, len(t))
	for _, tag := range t {
		texts[tag.Key] = fmt.Sprint(tag.Value)
	}
	return texts
}

// span gives it as OTLP has it. Jaeger's tags for what is no attribute there (span.kind, otel.status_code) are no attributes here.
func (s span) span(process tags) otlp.Span {
	start := time.UnixMicro(s.StartTime)
	out := otlp.Span{
		TraceID: s.TraceID, ID: s.SpanID, Name: s.OperationName,
		Start: start, End: start.Add(time.Duration(s.Duration) * time.Microsecond),
		Attributes: s.Tags.texts(), Resource: process.texts(),
	}
	out.Kind = tracepb.Span_SpanKind(tracepb.Span_SpanKind_value["SPAN_KIND_"+strings.ToUpper(out.Attributes["span.kind"])])
	out.Status = tracepb.Status_StatusCode(tracepb.Status_StatusCode_value["STATUS_CODE_"+out.Attributes["otel.status_code"]])
	out.StatusText = out.Attributes["otel.status_description"]
	for _, key := range []string{"span.kind", "otel.status_code", "otel.status_description"} {
		delete(out.Attributes, key)
	}
	for _, reference := range s.References {
		if reference.RefType == "CHILD_OF" && reference.TraceID == s.TraceID {
			out.Parent = reference.SpanID
		} else {
			out.Links = append(out.Links, reference.TraceID)
		}
	}
	return out
}
