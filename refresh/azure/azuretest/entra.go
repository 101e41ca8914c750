// The server: its start and end, and what a test does with it.

package azuretest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Entra is a running emulator. Its methods are safe for concurrent use.
type Entra struct {
	url    string
	ca     []byte
	server *http.Server
	signer *signer
	served chan struct{} // closed when the listener is
	conns  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	config   Config
	script   []Answer
	requests int
	arrived  chan struct{} // closed and replaced at each token request
	issued   map[string]*Issued
	counts   map[[2]string]int
}

// Start serves until Close.
func Start(config Config) (*Entra, error) {
	if config.Address == "" {
		config.Address = "127.0.0.1:0"
	}
	signer, err := newSigner()
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", config.Address)
	if err != nil {
		return nil, fmt.Errorf("emulator of Entra: %w", err)
	}
	address := listener.Addr().(*net.TCPAddr)
	ca, certificate, err := NewCertificate(cmp.Or(config.Host, address.IP.String()))
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	e := &Entra{
		url:     "https://" + cmp.Or(config.Host, address.String()) + "/",
		ca:      ca,
		signer:  signer,
		served:  make(chan struct{}),
		config:  config,
		arrived: make(chan struct{}),
		issued:  map[string]*Issued{},
		counts:  map[[2]string]int{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", e.discovery)
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", e.token)
	e.server = &http.Server{
		Handler:           mux,
		Protocols:         new(http.Protocols),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, 0), // clients that do not trust the CA are part of tests
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				e.conns.Add(1)
			case http.StateClosed: // its handler has returned
				e.conns.Done()
			}
		},
	}
	e.server.Protocols.SetHTTP1(true) // where a connection ends after its handler
	go func() {
		defer close(e.served)
		_ = e.server.ServeTLS(listener, "", "") // until Close
	}()
	return e, nil
}

// Close breaks every connection and waits for what was being answered. It may be called again.
func (e *Entra) Close() {
	_ = e.server.Close()
	<-e.served
	e.conns.Wait()
}

// URL is the authority host: https, with a slash at its end.
func (e *Entra) URL() string { return e.url }

// CA is the certificate (PEM) that signed the server's.
func (e *Entra) CA() []byte { return e.ca }

// Change alters what Entra knows and how it behaves, from the next request on.
func (e *Entra) Change(change func(*Config)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.config)
}

// Next scripts the answers to the next token requests, one each, after those that are scripted already.
func (e *Entra) Next(answers ...Answer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.script = append(e.script, answers...)
}

// Requests counts the requests to the token endpoint, whatever came of them.
func (e *Entra) Requests() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.requests
}

// Await returns when the token endpoint has got n requests since the start. It fails with the context's error.
func (e *Entra) Await(ctx context.Context, n int) error {
	for {
		e.mu.Lock()
		got, arrived := e.requests, e.arrived
		e.mu.Unlock()
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

// Minted counts the tokens that a client got for a scope.
func (e *Entra) Minted(clientID, scope string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.counts[[2]string{clientID, scope}]
}

// Tokens gives every token that was issued, in no order: for a search of places where none may be.
func (e *Entra) Tokens() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(e.issued))
}

// Revoke ends a token before its time, as an administrator may.
func (e *Entra) Revoke(token string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := e.issued[token]; i != nil {
		i.Revoked = true
	}
}

// RevokeAll ends every token that was issued so far.
func (e *Entra) RevokeAll() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, i := range e.issued {
		i.Revoked = true
	}
}

// What makes a token no good.
var (
	ErrUnknown  = errors.New("this Entra did not issue the token")
	ErrAudience = errors.New("the token is for another resource")
	ErrRevoked  = errors.New("the token was revoked")
	ErrExpired  = errors.New("the token has expired")
)

// Validate tells whose token it is, if it is good for a resource now; else one of the errors above.
func (e *Entra) Validate(token, resource string) (Issued, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := e.issued[token]
	switch {
	case i == nil:
		return Issued{}, ErrUnknown
	case i.Resource != resource:
		return Issued{}, ErrAudience
	case i.Revoked:
		return Issued{}, ErrRevoked
	case !time.Now().Before(i.Expires):
		return Issued{}, ErrExpired
	}
	return *i, nil
}
