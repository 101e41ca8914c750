package main

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// health answers the kubelet and the scraper. A replica is ready as long as its loops run: a follower too, because it
// can take over, and one without an API server too, because ending it would mend nothing.
type health struct {
	alive   atomic.Bool
	metrics http.Handler
}

func (h *health) server() *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", h)
	mux.Handle("GET /readyz", h)
	mux.Handle("GET /metrics", h.metrics)
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

// ServeHTTP answers 200 while the loops run, else 503.
func (h *health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !h.alive.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "shutting down\n")
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}
