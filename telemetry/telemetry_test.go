// What leaves the process, and what does not.

package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	collog "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetric "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"flux-token-refresher/telemetry"
)

// console is the environment variable under which TestConsole runs itself.
const console = "TELEMETRY_TEST_CONSOLE"

// TestMain clears OTEL_*, so that no test depends on where it runs, and looks for goroutines left behind.
func TestMain(m *testing.M) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "OTEL_") {
			_ = os.Unsetenv(name)
		}
	}
	goleak.VerifyTestMain(m)
}

// output is a LogWriter that can be read while others write.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// lines are the JSON lines of the log for which keep holds.
func (o *output) lines(t *testing.T, keep func(map[string]any) bool) []map[string]any {
	t.Helper()
	var kept []map[string]any
	for line := range strings.Lines(o.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		if keep(m) {
			kept = append(kept, m)
		}
	}
	return kept
}

func atLeast(level slog.Level) func(map[string]any) bool {
	return func(m map[string]any) bool {
		var l slog.Level
		return l.UnmarshalText([]byte(m["level"].(string))) == nil && l >= level
	}
}

// start gives a running Telemetry that is shut down with the test.
func start(t *testing.T, cfg telemetry.Config) (*telemetry.Telemetry, *output) {
	t.Helper()
	out := &output{}
	cfg.LogWriter = out
	tel, err := telemetry.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = tel.Shutdown(ctx) // tests that care about the error call it themselves; a second call does nothing
	})
	return tel, out
}

func setenv(t *testing.T, env map[string]string) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
}

// collector receives OTLP over HTTP.
type collector struct {
	*httptest.Server
	mu      sync.Mutex
	traces  []*coltrace.ExportTraceServiceRequest
	metrics []*colmetric.ExportMetricsServiceRequest
	logs    []*collog.ExportLogsServiceRequest
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		switch r.URL.Path {
		case "/v1/traces":
			m := &coltrace.ExportTraceServiceRequest{}
			err = proto.Unmarshal(body, m)
			c.traces = append(c.traces, m)
		case "/v1/metrics":
			m := &colmetric.ExportMetricsServiceRequest{}
			err = proto.Unmarshal(body, m)
			c.metrics = append(c.metrics, m)
		case "/v1/logs":
			m := &collog.ExportLogsServiceRequest{}
			err = proto.Unmarshal(body, m)
			c.logs = append(c.logs, m)
		default:
			err = fmt.Errorf("unexpected path %s", r.URL.Path)
		}
		if err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(c.Close)
	return c
}

func TestAnEndpointIsEnough(t *testing.T) {
	c := newCollector(t)
	setenv(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL,
		"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		"OTEL_RESOURCE_ATTRIBUTES":    "k8s.cluster.name=production,service.version=from-environment",
	})
	tel, _ := start(t, telemetry.Config{ServiceVersion: "1.2.3", PodNamespace: "flux-system", PodName: "refresher-0"})
	_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
	span.End()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}

	if len(c.traces) != 1 || len(c.traces[0].ResourceSpans) != 1 {
		t.Fatalf("got traces %v, want one resource", c.traces)
	}
	got := c.traces[0].ResourceSpans[0]
	if name := got.ScopeSpans[0].Spans[0].Name; name != "refresh" {
		t.Errorf("got span %q, want refresh", name)
	}
	attributes := map[string]string{}
	for _, kv := range got.Resource.Attributes {
		attributes[kv.Key] = kv.Value.GetStringValue()
	}
	for key, want := range map[string]string{
		"service.name":            "flux-token-refresher",
		"service.namespace":       "flux-system",
		"service.version":         "from-environment",
		"service.instance.id":     "flux-system.refresher-0",
		"k8s.namespace.name":      "flux-system",
		"k8s.pod.name":            "refresher-0",
		"k8s.cluster.name":        "production",
		"process.runtime.version": runtime.Version(),
		"telemetry.sdk.language":  "go",
	} {
		if attributes[key] != want {
			t.Errorf("resource attribute %s: got %q, want %q", key, attributes[key], want)
		}
	}
	if _, ok := attributes["process.command_args"]; ok {
		t.Error("the command line is in the resource")
	}

	var names []string
	for _, m := range c.metrics {
		for _, sm := range m.ResourceMetrics[0].ScopeMetrics {
			for _, metric := range sm.Metrics {
				names = append(names, metric.Name)
			}
		}
	}
	if diff := cmp.Diff([]string{"token_refresher.build_info"}, names); diff != "" {
		t.Errorf("metrics over OTLP (-want +got):\n%s", diff)
	}
}

// Each exporter makes one request of what one span, one collection and one line give.
func TestWhichExporters(t *testing.T) {
	// A port that is taken: whoever tried to serve the prometheus exporter here would fail.
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	host, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name                  string
		env                   map[string]string // COLLECTOR stands for the collector's URL
		traces, metrics, logs int
	}{
		{"nothing set", nil, 0, 0, 0},
		{"a protocol alone is no wish", map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, 0, 0, 0},
		{"endpoint", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "COLLECTOR"}, 1, 1, 0},
		{"endpoint of traces", map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "COLLECTOR/v1/traces"}, 1, 0, 0},
		{"endpoint of metrics", map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "COLLECTOR/v1/metrics"}, 0, 1, 0},
		{"endpoint of logs", map[string]string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "COLLECTOR/v1/logs"}, 0, 0, 1},
		{"logs as well", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "COLLECTOR", "OTEL_LOGS_EXPORTER": "otlp"}, 1, 1, 1},
		{"none in spite of an endpoint", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "COLLECTOR", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}, 0, 0, 0},
		{"prometheus is /metrics", map[string]string{"OTEL_METRICS_EXPORTER": "prometheus"}, 0, 0, 0},
		{"prometheus in spite of an endpoint", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "COLLECTOR", "OTEL_METRICS_EXPORTER": "prometheus"}, 1, 0, 0},
		{"lists", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "COLLECTOR", "OTEL_TRACES_EXPORTER": "otlp, otlp,", "OTEL_METRICS_EXPORTER": "prometheus, otlp", "OTEL_LOGS_EXPORTER": "otlp,otlp"}, 1, 1, 1},
		{"disabled", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "COLLECTOR", "OTEL_LOGS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "TRUE"}, 0, 0, 0},
		{"not disabled", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "COLLECTOR", "OTEL_SDK_DISABLED": "1"}, 1, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCollector(t)
			setenv(t, map[string]string{"OTEL_EXPORTER_PROMETHEUS_HOST": host, "OTEL_EXPORTER_PROMETHEUS_PORT": port})
			for name, value := range tt.env {
				t.Setenv(name, strings.Replace(value, "COLLECTOR", c.URL, 1))
			}
			tel, out := start(t, telemetry.Config{})
			for _, variable := range []string{"OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"} {
				if got, want := os.Getenv(variable), tt.env[variable]; got != want {
					t.Errorf("Start left %s=%q, want %q", variable, got, want)
				}
			}
			_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
			span.End()
			tel.Logger().Info("refreshed")
			// An exporter that nobody asked for would find nobody on localhost, and say so here or in the log.
			if err := tel.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if got := out.lines(t, func(map[string]any) bool { return true }); len(got) != 1 || got[0]["msg"] != "refreshed" {
				t.Errorf("got log\n%swant one line", out)
			}
			got, want := [...]int{len(c.traces), len(c.metrics), len(c.logs)}, [...]int{tt.traces, tt.metrics, tt.logs}
			if got != want {
				t.Errorf("the collector got %v requests with traces, metrics and logs, want %v", got, want)
			}
		})
	}
}

// grpcTraces, grpcMetrics and grpcLogs receive over OTLP/gRPC.
type (
	grpcTraces struct {
		coltrace.UnimplementedTraceServiceServer
		got chan *coltrace.ExportTraceServiceRequest
	}
	grpcMetrics struct {
		colmetric.UnimplementedMetricsServiceServer
		got chan *colmetric.ExportMetricsServiceRequest
	}
	grpcLogs struct {
		collog.UnimplementedLogsServiceServer
		got chan *collog.ExportLogsServiceRequest
	}
)

func (c *grpcTraces) Export(_ context.Context, r *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	c.got <- r
	return &coltrace.ExportTraceServiceResponse{}, nil
}

func (c *grpcMetrics) Export(_ context.Context, r *colmetric.ExportMetricsServiceRequest) (*colmetric.ExportMetricsServiceResponse, error) {
	c.got <- r
	return &colmetric.ExportMetricsServiceResponse{}, nil
}

func (c *grpcLogs) Export(_ context.Context, r *collog.ExportLogsServiceRequest) (*collog.ExportLogsServiceResponse, error) {
	c.got <- r
	return &collog.ExportLogsServiceResponse{}, nil
}

func TestGRPC(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	traces := &grpcTraces{got: make(chan *coltrace.ExportTraceServiceRequest, 1)}
	metrics := &grpcMetrics{got: make(chan *colmetric.ExportMetricsServiceRequest, 1)}
	logs := &grpcLogs{got: make(chan *collog.ExportLogsServiceRequest, 1)}
	server := grpc.NewServer()
	coltrace.RegisterTraceServiceServer(server, traces)
	colmetric.RegisterMetricsServiceServer(server, metrics)
	collog.RegisterLogsServiceServer(server, logs)
	var serving errgroup.Group
	serving.Go(func() error { return server.Serve(listener) })
	defer func() {
		server.Stop()
		if err := serving.Wait(); err != nil {
			t.Error(err)
		}
	}()

	endpoint := "http://" + listener.Addr().String()
	setenv(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_LOGS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
	tel, _ := start(t, telemetry.Config{})
	_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
	span.End()
	tel.Logger().Info("refreshed")
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := (<-metrics.got).ResourceMetrics[0].ScopeMetrics; len(got) == 0 {
		t.Error("got no metrics")
	}
	if line := (<-logs.got).ResourceLogs[0].ScopeLogs[0].LogRecords[0].Body.GetStringValue(); line != "refreshed" {
		t.Errorf("got line %q, want refreshed", line)
	}
	if name := (<-traces.got).ResourceSpans[0].ScopeSpans[0].Spans[0].Name; name != "refresh" {
		t.Errorf("got span %q, want refresh", name)
	}
}

// TestConsole runs itself as another process: some exporters take hold of standard output before a test can exchange it.
func TestConsole(t *testing.T) {
	if os.Getenv(console) == "" {
		command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConsole$")
		command.Env = append(os.Environ(), console+"=1")
		stdout, err := command.Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"a span", "token_refresher.build_info", "a line"} {
			if !bytes.Contains(stdout, []byte(want)) {
				t.Errorf("no %q on standard output:\n%s", want, stdout)
			}
		}
		return
	}
	setenv(t, map[string]string{"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console", "OTEL_LOGS_EXPORTER": "console"})
	tel, _ := start(t, telemetry.Config{})
	_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "a span")
	span.End()
	tel.Logger().Info("a line")
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestTheParentDecidesWhatIsSampled: an event whose sender did not sample its trace leaves no span here either.
func TestTheParentDecidesWhatIsSampled(t *testing.T) {
	for sampler, want := range map[string][]string{"": {"sampled", "root"}, "parentbased_always_off": {"sampled"}, "always_on": {"sampled", "unsampled", "root"}} {
		t.Run(sampler, func(t *testing.T) {
			c := newCollector(t)
			setenv(t, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.URL + "/v1/traces", "OTEL_TRACES_SAMPLER": sampler})
			tel, _ := start(t, telemetry.Config{})
			for _, span := range []struct{ name, flags string }{{"sampled", "01"}, {"unsampled", "00"}, {"root", ""}} {
				parent := propagation.MapCarrier{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-" + span.flags}
				_, s := tel.TracerProvider().Tracer("test").Start(propagation.TraceContext{}.Extract(t.Context(), parent), span.name)
				s.End()
			}
			if err := tel.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, request := range c.traces {
				for _, span := range request.ResourceSpans[0].ScopeSpans[0].Spans {
					got = append(got, span.Name)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("exported (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNothingIsRecordedForNobody: without an exporter, spans have ids, for the log, and a parent's decision is passed on.
func TestNothingIsRecordedForNobody(t *testing.T) {
	t.Setenv("OTEL_TRACES_SAMPLER", "always_on")
	tel, _ := start(t, telemetry.Config{})
	tracer := tel.TracerProvider().Tracer("test")
	_, root := tracer.Start(t.Context(), "root")
	if !root.SpanContext().IsValid() || root.IsRecording() || root.SpanContext().IsSampled() {
		t.Errorf("a root: %+v, recording %t", root.SpanContext(), root.IsRecording())
	}
	for flags, want := range map[string]bool{"00": false, "01": true} {
		parent := propagation.MapCarrier{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-" + flags}
		_, child := tracer.Start(propagation.TraceContext{}.Extract(t.Context(), parent), "child")
		if child.SpanContext().IsSampled() != want {
			t.Errorf("below a parent with the flags %s: sampled %t", flags, !want)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		cfg  telemetry.Config
		want string
	}{
		{"unknown exporter of traces", map[string]string{"OTEL_TRACES_EXPORTER": "otlp,zipkin"}, telemetry.Config{}, `OTEL_TRACES_EXPORTER: exporter "zipkin" (use otlp, console or none)`},
		{"unknown exporter of metrics", map[string]string{"OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "otlp,statsd"}, telemetry.Config{}, `OTEL_METRICS_EXPORTER: exporter "statsd"`},
		{"unknown exporter of logs", map[string]string{"OTEL_LOGS_EXPORTER": "syslog"}, telemetry.Config{}, `OTEL_LOGS_EXPORTER: exporter "syslog" (use otlp, console or none)`},
		{"unknown protocol", map[string]string{"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/xml"}, telemetry.Config{}, "invalid OTLP protocol"},
		{"log format", nil, telemetry.Config{LogFormat: "logfmt"}, `log format "logfmt": use text or json`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			setenv(t, tt.env)
			_, err := telemetry.Start(t.Context(), tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestACollectorThatIsNotThereCostsOneLine(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	setenv(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT":    gone.URL,
		"OTEL_METRICS_EXPORTER":          "none",
		"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1",
	})
	tel, out := start(t, telemetry.Config{})
	for range 5 {
		_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
		span.End()
	}
	_ = tel.Shutdown(t.Context())
	lines := out.lines(t, atLeast(slog.LevelInfo))
	if len(lines) != 1 || lines[0]["level"] != "WARN" || !strings.Contains(fmt.Sprint(lines[0]["error"]), "connection refused") {
		t.Errorf("got log\n%swant one warning with the reason", out)
	}
}

func TestShutdownKeepsItsDeadline(t *testing.T) {
	release := make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer hung.Close()
	defer close(release)
	setenv(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": hung.URL, "OTEL_LOGS_EXPORTER": "otlp"})
	tel, _ := start(t, telemetry.Config{})
	_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
	span.End()
	tel.Logger().Info("refreshed")

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := tel.Shutdown(ctx)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Shutdown took %v with a deadline of 100 ms", took)
	}
	if err == nil {
		t.Error("Shutdown lost a span and a line, and returned no error")
	}
}

func TestRepeatedErrorsAreCounted(t *testing.T) {
	_, out := start(t, telemetry.Config{})
	synctest.Test(t, func(*testing.T) {
		for port := range 100 {
			otel.Handle(fmt.Errorf("this test's traces export: read tcp 127.0.0.1:%d: connection reset", port))
		}
		otel.Handle(errors.New("this test's metrics export: connection reset"))
		time.Sleep(time.Minute)
		otel.Handle(errors.New("this test's traces export: connection reset"))
	})
	// The handler is global: what an exporter of another test still has to say comes here too.
	var got []any
	for _, line := range out.lines(t, atLeast(slog.LevelInfo)) {
		if text, _ := line["error"].(string); strings.HasPrefix(text, "this test's") {
			got = append(got, line["unsaid"])
		}
	}
	if diff := cmp.Diff([]any{0., 0., 99.}, got); diff != "" {
		t.Errorf("unsaid of the lines (-want +got):\n%s", diff)
	}
}

func TestCredentialsOfTheCollectorStayOut(t *testing.T) {
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_ = r.Header.Write(w)
	}))
	defer echo.Close()
	const header, password, malformed = "hdr-5ecret-value", "url-5ecret-value", "bad-5ecret-value"
	setenv(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": strings.Replace(echo.URL, "http://", "http://user:"+password+"@", 1) + "?key=" + password,
		"OTEL_LOGS_EXPORTER":          "otlp",
		"OTEL_EXPORTER_OTLP_HEADERS":  "authorization=Bearer%20" + header + "," + malformed + ",x=%zz" + malformed,
	})
	tel, out := start(t, telemetry.Config{LogLevel: slog.LevelDebug})
	_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "refresh")
	span.End()
	err := tel.Shutdown(t.Context())
	otel.Handle(fmt.Errorf("proxy: http://user:%s@proxy/?%s said %s", password, password, header))
	otel.Handle(fmt.Errorf("url: parse \"http://user:%s@proxy:x\": invalid port", password))

	all := fmt.Sprintf("%s\n%v", out, err)
	if !strings.Contains(all, "403 Forbidden") || !strings.Contains(all, "parse headers") {
		t.Errorf("the log does not tell what is wrong:\n%s", all)
	}
	for _, secret := range []string{header, password, malformed} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is in the log:\n%s", secret, all)
		}
	}
}
