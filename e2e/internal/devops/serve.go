package devops

// Who may do what: from a request to git, or to a refusal.

import (
	"errors"
	"net/http"
	"net/http/cgi" //nolint:gosec // it passes no Proxy header on, since Go 1.6.3
	"slices"
	"strings"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
)

// Why a request was refused, beside azuretest's errors for a token that is no good.
var (
	ErrAnonymous    = errors.New("no credentials")
	ErrRevoked      = errors.New("the token was revoked at Azure DevOps")
	ErrOutsider     = errors.New("the organization does not know the identity")
	ErrNoRepository = errors.New("no such repository")
	ErrForbidden    = errors.New("the identity may not read the repository")
	ErrOutage       = errors.New("outage")
)

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == signIn {
		SignInPage(http.StatusOK).write(w) // whoever follows a redirect gets a page
		return
	}
	scheme, token := credentials(r)
	request := Request{Repository: repositoryOf(r.URL.Path), Method: r.Method, URI: r.URL.RequestURI(), Scheme: scheme}
	if token != "" {
		request.TokenHash = refresh.Hash(token)
	}
	var refusal Answer
	refusal, request.Refused = s.judge(token, request.Repository)
	recorder := &recorder{ResponseWriter: w, server: s, request: request}
	switch {
	case request.Refused == nil:
		s.backend(recorder, r)
	case refusal.Hang:
		s.record(request)
		select {
		case <-r.Context().Done():
		case <-s.closing:
		}
	default:
		refusal.write(recorder)
	}
}

// credentials reads a token from the Authorization header: a bearer token, or the password of basic authentication, whose
// username may be any but the empty one.
func credentials(r *http.Request) (scheme, token string) {
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return "Bearer", bearer
	}
	if username, password, ok := r.BasicAuth(); ok && username != "" {
		return "Basic", password
	}
	return "", ""
}

// repositoryOf is the repository's part of a path: /ORG/PROJECT/_git/REPO.
func repositoryOf(path string) string {
	parts := strings.SplitN(path, "/", 6) // "", ORG, PROJECT, _git, REPO, the rest
	return strings.Join(parts[:min(len(parts), 5)], "/")
}

// judge says why a token may not read a repository, and with what that is answered.
func (s *Server) judge(token, repository string) (refusal Answer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.config.Outage != nil {
		return *s.config.Outage, ErrOutage
	}
	if token == "" {
		return Anonymous(), ErrAnonymous
	}
	if refusal = s.config.Refusal; refusal.Status == 0 && !refusal.Hang {
		refusal = Unauthorized()
	}
	issued, err := s.config.Entra.Validate(token, azuretest.AzureDevOps)
	switch {
	case err != nil:
		return refusal, err
	case s.revoked[token]:
		return refusal, ErrRevoked
	case slices.Contains(s.config.Outsiders, issued.ClientID):
		return refusal, ErrOutsider
	}
	r := s.repositories[repository]
	switch {
	case r == nil:
		return NotFound(), ErrNoRepository
	case r.forbidden != nil:
		return *r.forbidden, ErrForbidden
	}
	return Answer{}, nil
}

// backend lets git serve the repository.
func (s *Server) backend(w http.ResponseWriter, r *http.Request) {
	r.Header.Del("Authorization") // it would be in git's environment
	handler := &cgi.Handler{
		Path: s.git, Args: []string{"http-backend"}, Dir: s.dir,
		// REMOTE_USER says that somebody was authenticated, whom alone git lets push.
		Env: append(gitEnv(), "GIT_PROJECT_ROOT="+s.dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=token"),
	}
	handler.ServeHTTP(w, r)
}

// recorder records a request with its status before its client can read that.
type recorder struct {
	http.ResponseWriter
	server  *Server
	request Request
}

func (r *recorder) WriteHeader(status int) {
	r.request.Status = status
	r.server.record(r.request)
	r.ResponseWriter.WriteHeader(status)
}
