// The HTTP of one mint.

package azure

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"flux-token-refresher/refresh"
)

// maxBody bounds an answer of Entra. Tokens are some KiB; discovery documents are 2 KiB.
const maxBody = 1 << 20

var errTooLong = errors.New("answer too long")

// exchange implements policy.Transporter for one mint and remembers how the last request went, which
// azidentity's errors do not always tell (they wrap nothing).
type exchange struct {
	transport *http.Transport

	host   string // that was asked
	err    error  // of the network, or
	status int    // what was answered
	header http.Header
	body   []byte
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newExchange takes proxies from the environment and CA certificates from the system and the identity's CAFile. It
// speaks HTTP/1.1: two requests need no more, and GODEBUG=http2debug would print the frames that carry the proof.
func newExchange(id Identity, dial dialer) (*exchange, error) {
	transport := &http.Transport{
		DialContext:     dial,
		Proxy:           http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if id.Type == ManagedIdentity {
		// The endpoint is the machine's own, over plain HTTP: a proxy would be asked for its own machine's identity, and read
		// the token.
		transport.Proxy = nil
	}
	if id.CAFile != "" {
		pem, err := os.ReadFile(id.CAFile)
		if err != nil {
			return nil, id.fail(refresh.Misconfigured, fmt.Sprintf("caFile cannot be read: %v", err))
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, id.fail(refresh.Misconfigured, fmt.Sprintf("caFile %s holds no certificate (PEM)", id.CAFile))
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return &exchange{transport: transport}, nil
}

// Do implements policy.Transporter. It follows no redirect: a 307 would carry the proof to wherever it points. (An
// http.Client that is told not to would rewind the body, which azcore shares, while it is still being sent.)
func (x *exchange) Do(req *http.Request) (*http.Response, error) {
	x.host, x.err, x.status, x.header, x.body = req.URL.Host, nil, 0, nil, nil
	resp, err := x.transport.RoundTrip(req)
	if err != nil {
		x.err = err
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end or is given up
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = errTooLong
	}
	if err != nil {
		x.err = err
		return nil, err
	}
	x.status, x.header, x.body = resp.StatusCode, resp.Header, body
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

func (x *exchange) close() { x.transport.CloseIdleConnections() }
