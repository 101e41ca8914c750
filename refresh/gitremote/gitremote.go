// Package gitremote asks a Git server whether it takes a token: the first request of a fetch (gitprotocol-http, smart clients), which
// changes nothing and is answered before anything is packed.
//
// The token goes to the hosts of Config.Hosts and nowhere else: over https, to the address that was compared with them, and after no
// redirect. What a server answers is read as a status, a media type, a redirect's path and the codes that Azure DevOps gives its
// refusals; no other word of it gets into an Answer.
package gitremote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"flux-token-refresher/internal/outbound"
	"flux-token-refresher/refresh"
)

// DefaultTimeout bounds one question where Config does not, the answer's body included.
const DefaultTimeout = 5 * time.Second

// Config says who may be asked.
type Config struct {
	// Hosts are the only ones that a token is shown to, each as ValidHost has it. None: nobody is asked.
	Hosts []string
	// CAFile names CA certificates (PEM) that are trusted for Hosts, beside the system's; "" is none. It is read for
	// each question.
	CAFile string
	// Timeout bounds one question; DefaultTimeout when zero.
	Timeout time.Duration
}

// Remote asks Git servers. Safe for concurrent use.
type Remote struct {
	hosts   []host
	caFile  string
	timeout time.Duration
}

// New makes a Remote. Its error is a mistake in config.
func New(config Config) (*Remote, error) {
	r := &Remote{caFile: config.CAFile, timeout: config.Timeout}
	if r.timeout == 0 {
		r.timeout = DefaultTimeout
	}
	for _, pattern := range config.Hosts {
		h, ok := parseHost(pattern)
		if !ok {
			return nil, fmt.Errorf("%q is no host", pattern)
		}
		r.hosts = append(r.hosts, h)
	}
	return r, nil
}

// bearer is what can be sent as a bearer token (RFC 6750 section 2.1).
var bearer = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// Ask shows token to the Git server of a repository, whose URL is as somebody wrote it: user info, query and fragment are left
// out.
func (r *Remote) Ask(ctx context.Context, repository string, token refresh.Token) Answer {
	to, why := r.address(repository)
	if why != "" {
		return Answer{Verdict: NotAllowed, Why: why}
	}
	if !bearer.MatchString(token.Reveal()) {
		return Answer{Verdict: Rejected, Kind: Malformed, Why: "what is there is no bearer token, and was not sent"}
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, to.infoRefs(), http.NoBody)
	if err != nil {
		return Answer{Verdict: NotAllowed, Why: notAURL}
	}
	request.Header.Set("Authorization", "Bearer "+token.Reveal())
	request.Header.Set("User-Agent", "git/1.0 (flux-token-refresher)") // a browser would be shown pages
	transport, err := r.transport(ctx)
	if err != nil {
		return Answer{Verdict: Silent, Why: err.Error()}
	}
	// Not by an http.Client: a transport alone follows no redirect. The trace does not travel to a server that is not ours.
	response, err := outbound.Transport(transport, outbound.Method, propagation.NewCompositeTextMapPropagator()).RoundTrip(request)
	if err != nil {
		return to.unreachable(ctx, err)
	}
	defer func() { _ = response.Body.Close() }() // it was read as far as it says something
	return to.read(ctx, response)
}

// transport is for one question, and ends with its ctx. It takes proxies from the environment. It speaks HTTP/1.1, because
// GODEBUG=http2debug would print the frames that carry the token.
func (r *Remote) transport(ctx context.Context) (*http.Transport, error) {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		// A transport goes on dialing, and shaking hands, for requests to come.
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			context.AfterFunc(ctx, func() { _ = conn.Close() })
			return conn, nil
		},
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxBody,
	}
	if r.caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(r.caFile)
	if err != nil {
		return nil, fmt.Errorf("verifyCAFile cannot be read: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("verifyCAFile " + r.caFile + " holds no certificate (PEM)")
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}
