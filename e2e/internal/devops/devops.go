// Package devops emulates the Git servers of Azure DevOps Services: over TLS it serves repositories by smart HTTP (clone, fetch,
// push) to those who bring a good token of an emulated Entra, refuses the others as Azure DevOps does, and keeps a record
// of who asked for what. It listens on a real port, for source-controller and git as they are.
package devops

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"

	"flux-token-refresher/e2e/internal/loopback"
	"flux-token-refresher/e2e/internal/netproxy"
	"flux-token-refresher/refresh/azure/azuretest"
)

// Config is how a Server behaves. The zero value but for Entra takes each good token.
type Config struct {
	// Entra is where good tokens come from. It cannot be changed later.
	Entra *azuretest.Entra
	// Address (IP:PORT) to listen on; 127.0.0.1 and a free port when empty. Host is a name to stand in URLs in its place, and in the
	// certificate beside loopback. They cannot be changed later.
	Address, Host string
	// Refusal answers a token that is no good; Unauthorized when it is the zero value.
	Refusal Answer
	// Outsiders are the client ids that the organization does not know, or that have no licence: good tokens of
	// theirs are refused like bad ones.
	Outsiders []string
	// Outage is the answer to every request while it is set.
	Outage *Answer
}

// Server is a running emulator. Its methods are safe for concurrent use.
type Server struct {
	// Network stands in front of the server: while it is cut, the server is down.
	Network *netproxy.Proxy

	git     string // the program
	dir     string // of the repositories
	host    string // in URLs
	ca      []byte
	http    *httptest.Server
	closing chan struct{}

	mu           sync.Mutex // guards what follows
	config       Config
	repositories map[string]*Repository // by path
	revoked      map[string]bool        // tokens
	requests     []Request
	grown        chan struct{} // closed, and made anew, when requests grows
}

// Start serves until Close. It needs git.
func Start(config Config) (*Server, error) {
	git, err := exec.LookPath("git")
	if err != nil {
		return nil, fmt.Errorf("emulator of Azure DevOps: %w", err)
	}
	dir, err := os.MkdirTemp("", "flux-token-refresher-devops-")
	if err != nil {
		return nil, fmt.Errorf("emulator of Azure DevOps: %w", err)
	}
	s := &Server{
		git: git, dir: dir, config: config, closing: make(chan struct{}), grown: make(chan struct{}),
		repositories: map[string]*Repository{}, revoked: map[string]bool{},
	}
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.http.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // clients that do not trust the CA are part of tests
	if err := s.listen(config); err != nil {
		return nil, fmt.Errorf("emulator of Azure DevOps: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	return s, nil
}

func (s *Server) listen(config Config) error {
	if config.Address == "" {
		free, err := loopback.Address()
		if err != nil {
			return err
		}
		config.Address = free
	}
	s.host = cmp.Or(config.Host, config.Address)
	ca, certificate, err := azuretest.NewCertificate(config.Host)
	if err != nil {
		return err
	}
	s.ca, s.http.TLS = ca, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	s.http.StartTLS()
	if s.Network, err = netproxy.StartAt(config.Address, s.http.Listener.Addr().String()); err != nil {
		s.http.Close()
	}
	return err
}

// Close breaks every connection, waits for what was being answered, and removes the repositories.
func (s *Server) Close() error {
	close(s.closing)
	err := s.Network.Close()
	s.http.CloseClientConnections()
	s.http.Close()
	return errors.Join(err, os.RemoveAll(s.dir))
}

// URL is https://HOST, without a path.
func (s *Server) URL() string { return "https://" + s.host }

// CA is the certificate (PEM) to trust.
func (s *Server) CA() []byte { return s.ca }

// Change alters how the server behaves, from the next request on.
func (s *Server) Change(change func(*Config)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.config)
}

// Revoke refuses a token from now on, of which Entra knows no harm: as after a sign-out everywhere, or when the organization's
// policy changes.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked[token] = true
}
