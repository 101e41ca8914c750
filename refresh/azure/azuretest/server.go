// What the emulators have in common: a server whose end leaves nothing behind, and answers that are told beforehand.

package azuretest

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// server listens on a real port until Close.
type server struct {
	http   *http.Server
	served chan struct{} // closed when the listener is
	conns  sync.WaitGroup
}

// serve begins to listen, and gives where; with a certificate it speaks TLS.
func (s *server) serve(address string, handler http.Handler, certificate *tls.Certificate) (net.Addr, error) {
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("emulator: %w", err)
	}
	s.served = make(chan struct{})
	s.http = &http.Server{
		Handler:           handler,
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, 0), // clients that do not trust the CA are part of tests
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.conns.Add(1)
			case http.StateClosed: // its handler has returned
				s.conns.Done()
			}
		},
	}
	s.http.Protocols.SetHTTP1(true) // where a connection ends after its handler
	go func() {
		defer close(s.served)
		if certificate == nil {
			_ = s.http.Serve(listener) // until Close
			return
		}
		s.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS12}
		_ = s.http.ServeTLS(listener, "", "") // until Close
	}()
	return listener.Addr(), nil
}

// Close breaks every connection and waits for what was being answered. It may be called again.
func (s *server) Close() {
	_ = s.http.Close()
	<-s.served
	s.conns.Wait()
}

// desk is where token requests come in.
type desk struct {
	mu       sync.Mutex // guards what follows, and what an emulator says of it
	script   []Answer
	requests int
	arrived  chan struct{} // closed and replaced at each request
}

// Next scripts the answers to the next token requests, one each, after those that are scripted already.
func (d *desk) Next(answers ...Answer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.script = append(d.script, answers...)
}

// Requests counts the token requests, whatever came of them.
func (d *desk) Requests() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.requests
}

// Await returns when n token requests have come in since the start. It fails with the context's error.
func (d *desk) Await(ctx context.Context, n int) error {
	for {
		d.mu.Lock()
		got, arrived := d.requests, d.arrived
		d.mu.Unlock()
		if got >= n {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return fmt.Errorf("waiting for token request %d, got %d: %w", n, got, context.Cause(ctx))
		}
	}
}

// arrive counts a request, and gives the answer that is scripted for it. It needs d.mu.
func (d *desk) arrive() *Answer {
	d.requests++
	close(d.arrived)
	d.arrived = make(chan struct{})
	if len(d.script) == 0 {
		return nil
	}
	answer := d.script[0]
	d.script = d.script[1:]
	return &answer
}

// wait lets the latency pass; false when the client left meanwhile, or is to be left waiting until it does.
func wait(r *http.Request, latency time.Duration, hang bool) bool {
	if hang {
		<-r.Context().Done()
		return false
	}
	if latency <= 0 {
		return true
	}
	timer := time.NewTimer(latency)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}
