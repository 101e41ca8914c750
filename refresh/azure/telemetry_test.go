// The metrics and spans that a mint leaves.

package azure_test

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"flux-token-refresher/refresh/azure/azuretest"
)

func TestMetricsAsPrometheusShowsThem(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
	must(err)
	b := newBench(t, func(b *bench) {
		b.config.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter))
	})
	first := b.token(t, workload, "")
	b.token(t, workload, "") // held: no request
	b.token(t, workload, first.Hash)
	b.Next(azuretest.Throttled("1"), azuretest.Broken(http.StatusBadGateway), azuretest.AADSTS(7000215))
	for range 3 {
		_ = b.failure(t, bySecret)
	}

	families, err := registry.Gather()
	must(err)
	var shown bytes.Buffer
	for _, family := range families {
		_, err := expfmt.MetricFamilyToText(&shown, family)
		must(err)
	}
	lines := strings.Split(shown.String(), "\n")
	for _, want := range []string{
		`# TYPE token_refresher_token_requests_total counter`,
		`token_refresher_token_requests_total{identity="workload",outcome="success"} 2`,
		`token_refresher_token_requests_total{identity="secret",outcome="throttled"} 1`,
		`token_refresher_token_requests_total{identity="secret",outcome="unavailable"} 1`,
		`token_refresher_token_requests_total{identity="secret",outcome="misconfigured"} 1`,
		`# TYPE token_refresher_token_request_duration_seconds histogram`,
		`token_refresher_token_request_duration_seconds_bucket{le="30"} 5`,
		`token_refresher_token_request_duration_seconds_count 5`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("not there: %s", want)
		}
	}
	for _, bound := range []string{"0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "20", "30", "+Inf"} {
		if !strings.Contains(shown.String(), `_bucket{le="`+bound+`"}`) {
			t.Errorf("no bucket up to %s s", bound)
		}
	}
	if t.Failed() {
		t.Log(shown.String())
	}
}

func TestSpansStandBelowTheCallers(t *testing.T) {
	t.Parallel()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	b := newBench(t, func(b *bench) { b.config.TracerProvider = provider })
	for _, c := range []struct {
		name   string
		answer []azuretest.Answer
		status codes.Code
	}{
		{"a token", nil, codes.Unset},
		{"a refusal", []azuretest.Answer{azuretest.AADSTS(700213)}, codes.Error},
	} {
		exporter.Reset()
		b.Next(c.answer...)
		ctx, root := provider.Tracer("test").Start(deadline(t), "token.acquire")
		held, _ := b.source.Held(workload)
		_, _ = b.source.Token(ctx, workload, held.Hash)
		root.End()

		spans := map[string]tracetest.SpanStub{}
		for _, s := range exporter.GetSpans() {
			spans[s.Name] = s
			if s.SpanContext.TraceID() != root.SpanContext().TraceID() {
				t.Errorf("%s: %s is in another trace", c.name, s.Name)
			}
		}
		getToken, post := spans["ClientAssertionCredential.GetToken"], spans["HTTP POST"]
		if getToken.Parent.SpanID() != root.SpanContext().SpanID() || post.Parent.SpanID() != getToken.SpanContext.SpanID() {
			t.Errorf("%s: not one below the other: %v", c.name, exporter.GetSpans())
		}
		if post.SpanKind != trace.SpanKindClient || post.Status.Code != c.status || getToken.Status.Code != c.status {
			t.Errorf("%s: %+v, %+v", c.name, post.Status, getToken.Status)
		}
		if c.status == codes.Error && !slices.ContainsFunc(post.Attributes, func(a attribute.KeyValue) bool { return a.Key == "az.service_request_id" }) {
			t.Errorf("%s: Entra's trace id is not there: %v", c.name, post.Attributes)
		}
	}
}
