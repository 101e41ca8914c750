package kube

import (
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/propagation"
	"k8s.io/client-go/rest"

	"flux-token-refresher/internal/outbound"
)

// Trace makes a client span of each request that clients of config make within a trace.
func Trace(config *rest.Config) {
	config.Wrap(func(base http.RoundTripper) http.RoundTripper {
		return outbound.Transport(base, spanName, propagation.TraceContext{})
	})
}

// spanName is the method and the path without the names in it, of which there is no end.
func spanName(r *http.Request) string {
	path := strings.Split(r.URL.Path, "/")
	// /api/VERSION/… and /apis/GROUP/VERSION/…, then namespaces/NAME where there is one, then RESOURCE/NAME.
	i := 3
	if len(path) > 1 && path[1] == "apis" {
		i = 4
	}
	if len(path) > i+2 && path[i] == "namespaces" {
		path[i+1] = "{namespace}"
		i += 2
	}
	if len(path) > i+1 {
		path[i+1] = "{name}"
	}
	return r.Method + " " + strings.Join(path, "/")
}
