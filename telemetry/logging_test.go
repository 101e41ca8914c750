// The log, and what libraries may add to it.

package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"

	azlog "github.com/Azure/azure-sdk-for-go/sdk/azcore/log"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	azruntime "github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	"k8s.io/klog/v2"

	"flux-token-refresher/telemetry"
)

func TestHandlerIsASlogHandler(t *testing.T) {
	var out *output
	slogtest.Run(t, func(t *testing.T) slog.Handler {
		var tel *telemetry.Telemetry
		tel, out = start(t, telemetry.Config{})
		return tel.Logger().Handler()
	}, func(t *testing.T) map[string]any {
		return out.lines(t, atLeast(slog.LevelInfo))[0]
	})
}

func TestLinesCarryTheirTrace(t *testing.T) {
	tel, out := start(t, telemetry.Config{}) // no exporter is needed
	ctx, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
	defer span.End()
	plain := tel.Logger().With("target", "flux-system/repos")
	for _, logger := range []*slog.Logger{plain, plain.WithGroup("group").With("a", 1)} {
		logger.InfoContext(ctx, "refreshed", "b", 2)
	}
	lines := out.lines(t, atLeast(slog.LevelInfo))
	if len(lines) != 2 {
		t.Fatalf("got %d lines, want 2", len(lines))
	}
	for _, line := range lines {
		if line["trace_id"] != span.SpanContext().TraceID().String() || line["span_id"] != span.SpanContext().SpanID().String() || line["target"] != "flux-system/repos" {
			t.Errorf("got %v, want the ids of %v and the target at the top", line, span.SpanContext())
		}
	}
	if got := fmt.Sprint(lines[1]["group"]); got != "map[a:1 b:2]" {
		t.Errorf("got group %s, want a and b", got)
	}
	tel.Logger().InfoContext(context.Background(), "started")
	if last := out.lines(t, atLeast(slog.LevelInfo))[2]; last["trace_id"] != nil {
		t.Errorf("a line without a span has a trace id: %v", last)
	}
}

func TestLinesGoToACollectorToo(t *testing.T) {
	c := newCollector(t)
	setenv(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_LOGS_EXPORTER": "otlp"})
	tel, out := start(t, telemetry.Config{PodNamespace: "flux-system", PodName: "refresher-0"})
	ctx, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
	log := tel.Logger().With("target", "flux-system/repos")
	log.DebugContext(ctx, "below the level")
	log.WarnContext(ctx, "refresh failed", "reason", "RefreshDue", slog.Group("token", "hash", "0123"))
	// What exporters complain of is not exported: it could go on for ever.
	otel.Handle(errors.New("logs export: connection refused"))
	span.End()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.logs) != 1 || len(c.logs[0].ResourceLogs[0].ScopeLogs[0].LogRecords) != 1 {
		t.Fatalf("got %v, want one line", c.logs)
	}
	from := c.logs[0].ResourceLogs[0]
	if !slices.ContainsFunc(from.Resource.Attributes, func(a *commonpb.KeyValue) bool {
		return a.Key == "k8s.pod.name" && a.Value.GetStringValue() == "refresher-0"
	}) {
		t.Errorf("no pod in the resource: %v", from.Resource)
	}
	got, traceID, spanID := from.ScopeLogs[0].LogRecords[0], span.SpanContext().TraceID(), span.SpanContext().SpanID()
	if got.Body.GetStringValue() != "refresh failed" || got.SeverityText != "WARN" ||
		!bytes.Equal(got.TraceId, traceID[:]) || !bytes.Equal(got.SpanId, spanID[:]) {
		t.Errorf("got %v, want the warning of trace %s and span %s", got, traceID, spanID)
	}
	var keys []string
	for _, a := range got.Attributes {
		keys = append(keys, a.Key)
	}
	if diff := cmp.Diff([]string{"target", "reason", "token"}, keys); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if lines := out.lines(t, atLeast(slog.LevelWarn)); len(lines) != 2 || lines[0]["target"] != "flux-system/repos" {
		t.Errorf("got log\n%swant both warnings", out)
	}
}

func TestTextAndLevel(t *testing.T) {
	tel, out := start(t, telemetry.Config{LogFormat: telemetry.Text, LogLevel: slog.LevelWarn})
	tel.Logger().Info("not written")
	tel.Logger().Warn("written", "target", "flux-system/repos")
	if got := out.String(); strings.Contains(got, "not written") || !strings.HasSuffix(got, "level=WARN msg=written target=flux-system/repos\n") {
		t.Errorf("got %q", got)
	}
}

// klogVerbosity sets klog's -v for the test.
func klogVerbosity(t *testing.T, v string) {
	t.Helper()
	flags := flag.NewFlagSet("", flag.PanicOnError)
	klog.InitFlags(flags)
	if err := flags.Set("v", v); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flags.Set("v", "0") })
}

func TestBodiesOfClientGoAreNeverLogged(t *testing.T) {
	klogVerbosity(t, "10")
	for _, level := range []slog.Level{slog.LevelDebug, -100} {
		_, out := start(t, telemetry.Config{LogLevel: level})
		klog.V(4).Info("allowed")
		for v := klog.Level(5); v <= 10; v++ {
			klog.V(v).Info("Response Body: s3cret")
			klog.V(v).InfoS("Response Body", "body", "s3cret")
			klog.V(v).ErrorS(nil, "allowed") // an error has no verbosity
			klog.FromContext(t.Context()).V(int(v)).Info("Response Body", "body", "s3cret")
			klog.FromContext(t.Context()).WithValues("a", 1).WithName("n").V(int(v)).Info("Response Body", "body", "s3cret")
		}
		if got := out.String(); strings.Contains(got, "s3cret") || !strings.Contains(got, "allowed") {
			t.Errorf("level %v: got\n%s", level, got)
		}
	}
}

func TestKlogBelongsToDebugUnlessItFails(t *testing.T) {
	tests := []struct {
		level  slog.Level
		errors int
		all    int
	}{{slog.LevelInfo, 2, 2}, {slog.LevelDebug, 2, 13}}
	for _, tt := range tests {
		t.Run(tt.level.String(), func(t *testing.T) {
			_, out := start(t, telemetry.Config{LogLevel: tt.level})
			already := len(out.lines(t, atLeast(slog.LevelDebug)))
			synctest.Test(t, func(t *testing.T) {
				klog.InfoS("Attempting to acquire leader lease", "lease", "flux-system/flux-token-refresher")
				klog.Warning("deprecated")
				for i := range 11 {
					if i == 10 {
						time.Sleep(time.Minute)
					}
					klog.ErrorS(errors.New("connection refused"), "Failed to watch", "attempt", i)
				}
			})
			if got := len(out.lines(t, atLeast(slog.LevelDebug))) - already; got != tt.all {
				t.Errorf("got %d lines, want %d:\n%s", got, tt.all, out)
			}
			failures := out.lines(t, atLeast(slog.LevelInfo))
			if len(failures) != tt.errors {
				t.Fatalf("got %d lines above debug, want %d:\n%s", len(failures), tt.errors, out)
			}
			first, last := failures[0], failures[1]
			source, _ := first["source"].(map[string]any)
			if first["level"] != "ERROR" || first["logger"] != "klog" || first["err"] != "connection refused" || source["file"] != "logging_test.go" {
				t.Errorf("got %v, want an ERROR of klog with its error and source", first)
			}
			if last["unsaid"] != 9. {
				t.Errorf("got unsaid %v, want 9", last["unsaid"])
			}
		})
	}
}

func TestTheLogOfTheAzureSDKIsCutOff(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	call := func() {
		pipeline := azruntime.NewPipeline("test", "v1", azruntime.PipelineOptions{}, &policy.ClientOptions{Transport: server.Client()})
		request, err := azruntime.NewRequest(t.Context(), http.MethodGet, server.URL)
		if err != nil {
			t.Fatal(err)
		}
		response, err := pipeline.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
	}
	heard := 0
	azlog.SetListener(func(azlog.Event, string) { heard++ }) // as AZURE_SDK_GO_LOGGING=all does
	call()
	if heard == 0 {
		t.Fatal("the SDK logs nothing: this test shows nothing")
	}
	heard = 0
	start(t, telemetry.Config{LogLevel: slog.LevelDebug})
	call()
	if heard != 0 {
		t.Errorf("%d lines of the Azure SDK after Start", heard)
	}
}
