// The server: its start and end, and what a test does with it.

package azuretest

import (
	"cmp"
	"errors"
	"maps"
	"net/http"
	"slices"
	"time"
)

// Entra is a running emulator. Its methods are safe for concurrent use.
type Entra struct {
	server
	desk

	url    string
	ca     []byte
	signer *signer

	config Config // guarded by mu, as is what follows
	issued map[string]*Issued
	counts map[[2]string]int
	proofs map[string]bool
}

// Start serves until Close.
func Start(config Config) (*Entra, error) {
	ca, certificate, err := NewCertificate(config.Host)
	if err != nil {
		return nil, err
	}
	signer, err := newSigner()
	if err != nil {
		return nil, err
	}
	e := &Entra{
		ca:     ca,
		signer: signer,
		config: config,
		desk:   desk{arrived: make(chan struct{})},
		issued: map[string]*Issued{},
		counts: map[[2]string]int{},
		proofs: map[string]bool{},
	}
	// Its address is in its answers: nobody is answered before it is known.
	e.mu.Lock()
	defer e.mu.Unlock()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", e.discovery)
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", e.token)
	address, err := e.serve(config.Address, mux, &certificate)
	if err != nil {
		return nil, err
	}
	e.url = "https://" + cmp.Or(config.Host, address.String()) + "/"
	return e, nil
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

// Proofs gives every assertion and client secret that was sent, in no order: for a search of places where none may be.
func (e *Entra) Proofs() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(e.proofs))
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
