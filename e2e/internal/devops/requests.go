package devops

// The record of requests.

import (
	"context"
	"fmt"
	"time"
)

// Request is what was asked, and how that ended.
type Request struct {
	// Repository is /ORG/PROJECT/_git/REPO.
	Repository  string
	Method, URI string
	// Scheme of the credentials is Bearer, Basic or empty; TokenHash is refresh.Hash of the token.
	Scheme, TokenHash string
	// Refused says why; nil when the request went to git.
	Refused error
	// Status of the answer; 0 when the server hangs.
	Status int
	// Answered is when the answer began.
	Answered time.Time
}

// String gives the request as a line for the message of a failed test.
func (r Request) String() string {
	return fmt.Sprintf("%s %s by %s token %s: %d (%v)", r.Method, r.URI, r.Scheme, r.TokenHash, r.Status, r.Refused)
}

// Requests gives the record from a position on; 0 is the start, and a position the length of an earlier record.
func (s *Server) Requests(from int) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests[from:]...)
}

// Wait gives the matching requests from a position on, as soon as there are n of them. When ctx ends first it gives those that
// there are, and an error.
func (s *Server) Wait(ctx context.Context, from, n int, match func(Request) bool) ([]Request, error) {
	for {
		s.mu.Lock()
		var found []Request
		for _, r := range s.requests[from:] {
			if match(r) {
				found = append(found, r)
			}
		}
		grown := s.grown
		s.mu.Unlock()
		if len(found) >= n {
			return found, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return found, fmt.Errorf("%d of %d requests to Azure DevOps: %w", len(found), n, context.Cause(ctx))
		}
	}
}

func (s *Server) record(r Request) {
	r.Answered = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
	close(s.grown)
	s.grown = make(chan struct{})
}
