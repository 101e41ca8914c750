package otlp_test

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"flux-token-refresher/e2e/internal/otlp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReceiver(t *testing.T) {
	t.Parallel()
	r, err := otlp.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	waited := make(chan otlp.Span, 1)
	go func() {
		defer close(waited)
		if span, err := r.Wait(ctx, func(s otlp.Span) bool { return s.Name == "refresh" }); err == nil {
			waited <- span
		}
	}()
	status := export(ctx, t, r, &tracepb.Span{
		TraceId: []byte{1}, SpanId: []byte{2}, ParentSpanId: []byte{3}, Name: "refresh",
		StartTimeUnixNano: 1_000_000_000, EndTimeUnixNano: 3_000_000_000,
		Attributes: []*commonpb.KeyValue{
			{Key: "refresh.outcome", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: "Refreshed"}}},
		},
		Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_OK},
		Links:  []*tracepb.Span_Link{{TraceId: []byte{4}}},
	})
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	want := otlp.Span{
		TraceID: "01", ID: "02", Parent: "03", Name: "refresh", Start: time.Unix(1, 0), End: time.Unix(3, 0),
		Attributes: map[string]string{"refresh.outcome": "Refreshed"},
		Resource:   map[string]string{"service.name": "a"},
		Status:     tracepb.Status_STATUS_CODE_OK, Links: []string{"04"},
	}
	if diff := cmp.Diff(want, <-waited); diff != "" {
		t.Error(diff)
	}
	if bodies := r.Bodies(); len(bodies) != 1 || !bytes.Contains(bodies[0], []byte("Refreshed")) {
		t.Errorf("bodies: %q", bodies)
	}

	short, cancelShort := context.WithCancel(ctx)
	cancelShort()
	if _, err := r.Wait(short, func(s otlp.Span) bool { return s.Name == "other" }); err == nil {
		t.Error("a span that never came was found")
	}
}

// export sends one span, and gives the status of the answer.
func export(ctx context.Context, t *testing.T, r *otlp.Receiver, span *tracepb.Span) int {
	t.Helper()
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
			{Key: "service.name", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: "a"}}},
		}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	url := r.Env()["OTEL_EXPORTER_OTLP_ENDPOINT"] + "/v1/traces"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-protobuf")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	return response.StatusCode
}

func TestWriteTree(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli
	var got strings.Builder
	err := otlp.WriteTree(&got, []otlp.Span{
		{ID: "d", Parent: "a", Name: "secret.apply", Start: at(30), End: at(34)},
		{ID: "c", Parent: "b", Name: "HTTP POST", Start: at(12), End: at(20)},
		{ID: "b", Parent: "a", Name: "token.acquire", Start: at(10), End: at(25), Status: tracepb.Status_STATUS_CODE_ERROR},
		{ID: "a", Parent: "of another process", Name: "refresh", Start: at(0), End: at(40), Attributes: map[string]string{"reason": "RefreshDue", "outcome": "Refreshed"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `
refresh                 40ms  outcome=Refreshed reason=RefreshDue
├─ token.acquire        15ms  error
│  └─ HTTP POST          8ms
└─ secret.apply          4ms
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestWriteTreeNamesThePods(t *testing.T) {
	t.Parallel()
	at, on := time.UnixMilli, func(pod string) map[string]string { return map[string]string{"k8s.pod.name": pod} }
	var got strings.Builder
	err := otlp.WriteTree(&got, []otlp.Span{
		{ID: "a", Name: "POST /events", Start: at(0), End: at(5), Resource: on("one")},
		{ID: "b", Parent: "a", Name: "refresh", Start: at(6), End: at(9), Resource: on("another")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `
POST /events  one             5ms
└─ refresh    another         3ms
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got.String()); diff != "" {
		t.Error(diff)
	}
}
