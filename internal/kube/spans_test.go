package kube_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"k8s.io/client-go/rest"

	"flux-token-refresher/internal/kube"
)

func TestSpansAreNamedWithoutNames(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	access := &rest.Config{Host: server.URL}
	kube.Trace(access)
	client, err := rest.HTTPClientFor(access)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	spans := tracetest.NewSpanRecorder()
	ctx, span := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test").Start(t.Context(), "refresh")
	defer span.End()
	tests := []struct{ path, want string }{
		{"/api/v1/namespaces/apps/secrets/repos", "GET /api/v1/namespaces/{namespace}/secrets/{name}"},
		{"/api/v1/namespaces/apps/events", "GET /api/v1/namespaces/{namespace}/events"},
		{"/api/v1/namespaces/apps", "GET /api/v1/namespaces/{name}"},
		{"/apis/source.toolkit.fluxcd.io/v1/namespaces/apps/gitrepositories/repos", "GET /apis/source.toolkit.fluxcd.io/v1/namespaces/{namespace}/gitrepositories/{name}"},
		{"/apis/source.toolkit.fluxcd.io/v1/namespaces/apps/gitrepositories/repos/status", "GET /apis/source.toolkit.fluxcd.io/v1/namespaces/{namespace}/gitrepositories/{name}/status"},
		{"/apis/source.toolkit.fluxcd.io/v1", "GET /apis/source.toolkit.fluxcd.io/v1"},
		{"/apis/source.toolkit.fluxcd.io", "GET /apis/source.toolkit.fluxcd.io"},
		{"/api", "GET /api"},
		{"/", "GET /"},
	}
	var want, got []string
	for _, test := range tests {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+test.path+"?fieldManager=x", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		want = append(want, test.want)
	}
	for _, s := range spans.Ended() {
		got = append(got, s.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
