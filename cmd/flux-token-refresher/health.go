package main

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// stuckAfter is how long the work of a term may go on after the term has ended. Every request of it has a deadline of 20
// seconds at the most.
const stuckAfter = time.Minute

// health answers the kubelet and the scraper. A replica is alive and ready as long as its loops run: a follower too, because it
// can take over, and one without an API server too, because ending it would mend nothing. Not alive is one whose work does not
// end with its term: it could never lead again.
type health struct {
	alive   atomic.Bool
	metrics http.Handler
}

func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", h)
	mux.Handle("GET /readyz", h)
	mux.Handle("GET /metrics", h.metrics)
	return mux
}

// term watches over the work of a term, from now until over is called.
func (h *health) term(ctx context.Context) (over func()) {
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-done:
			return
		case <-ctx.Done():
		}
		select {
		case <-done:
		case <-time.After(stuckAfter):
			h.alive.Store(false)
			<-done
			h.alive.Store(true)
		}
	})
	return func() {
		close(done)
		watching.Wait()
	}
}

// ServeHTTP answers 200 while the loops run, else 503.
func (h *health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !h.alive.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "its loops do not run\n")
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}
