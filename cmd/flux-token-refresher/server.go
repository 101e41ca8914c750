package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// server is a listening HTTP server.
type server struct {
	*http.Server
	name     string
	listener net.Listener
	tls      bool
}

// listen opens an address; name is what the log and errors call it. With a certificate it speaks TLS 1.3, and reads both files for
// each handshake, so that a renewed certificate needs no restart.
func listen(name, address string, handler http.Handler, certFile, keyFile string, log *slog.Logger) (*server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s.address: %w", name, err)
	}
	s := &server{name: name, listener: listener, tls: certFile != "", Server: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // it quotes what peers send
	}}
	if s.tls {
		certificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(certFile, keyFile)
			return &pair, err
		}
		if _, err := certificate(nil); err != nil {
			return nil, errors.Join(fmt.Errorf("%s.tls: %w", name, err), listener.Close())
		}
		s.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certificate}
	}
	return s, nil
}

// serve returns nil when the server was shut down.
func (s *server) serve() error {
	var err error
	if s.tls {
		err = s.ServeTLS(s.listener, "", "")
	} else {
		err = s.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", s.name, err)
}
