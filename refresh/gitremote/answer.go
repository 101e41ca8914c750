// What a Git server's answer says of the token.

package gitremote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"path"
	"regexp"
	"strings"
	"syscall"
)

// Answer is what became of a question. It may be shown to anybody.
type Answer struct {
	Verdict Verdict
	// Kind is how the token was refused; of Rejected only.
	Kind Kind
	// Why is a sentence: of Rejected, what most likely has to be changed; "" of Accepted.
	Why string
}

// Verdict is what an answer says of the token.
type Verdict string

const (
	// Accepted: the server let the token read the repository.
	Accepted Verdict = "accepted"
	// Rejected: the server did not.
	Rejected Verdict = "rejected"
	// Silent: no answer that says either: an outage, a limit, the network, or something in between.
	Silent Verdict = "silent"
	// NotAllowed: the token may not be shown to that server, and nobody was asked.
	NotAllowed Verdict = "not allowed"
)

// Kind is how a token was refused.
type Kind string

const (
	// SignIn: a redirect to the sign-in page.
	SignIn Kind = "sign-in"
	// Page: a page for people instead of refs, with the status 200 or 203.
	Page Kind = "page"
	// Unauthorized: the status 401.
	Unauthorized Kind = "unauthorized"
	// Forbidden: the status 403.
	Forbidden Kind = "forbidden"
	// NotFound: the status 404, which Azure DevOps also gives where an identity may not read.
	NotFound Kind = "not found"
	// Malformed: it cannot be sent as a bearer token, and was not.
	Malformed Kind = "malformed"
)

const (
	// advertisement is the media type of refs (gitprotocol-http, "Smart Server Response").
	advertisement = "application/x-git-upload-pack-advertisement"
	// maxBody is as much of an answer as is read, in bytes.
	maxBody = 64 << 10
)

// announcement is the first pkt-line of refs; clients must check it, and not the media type alone.
var announcement = regexp.MustCompile(`^[0-9a-f]{4}# service=git-upload-pack`)

// read judges by what came before the answer broke off, if it did: but for refs, the status line and the headers decide.
func (a address) read(ctx context.Context, response *http.Response) Answer {
	mediaType, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type")) // one that cannot be read is none
	refs := response.StatusCode == http.StatusOK && mediaType == advertisement
	limit := int64(maxBody)
	if refs {
		limit = int64(len("001e# service=git-upload-pack"))
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, limit))
	switch {
	case refs && announcement.Match(body):
		return Answer{Verdict: Accepted}
	case refs && err != nil:
		return a.unreachable(ctx, err)
	}
	kind := refusal(response, mediaType, body)
	code, meaning := explain(kind, response.Header, body)
	answered := strings.TrimSpace(a.host + " answered " + status(response) + " " + code)
	if kind == "" || meaning == "" {
		return Answer{Verdict: Silent, Why: answered + ", which says nothing of the token"}
	}
	return Answer{Verdict: Rejected, Kind: kind, Why: answered + ": " + meaning}
}

// refusal is the Kind of an answer, "" when it is none.
func refusal(response *http.Response, mediaType string, body []byte) Kind {
	switch response.StatusCode {
	case http.StatusUnauthorized:
		return Unauthorized
	case http.StatusForbidden:
		return Forbidden
	case http.StatusNotFound:
		return NotFound
	case http.StatusOK, http.StatusNonAuthoritativeInfo:
		if mediaType == "text/html" || strings.HasPrefix(http.DetectContentType(body), "text/html") {
			return Page
		}
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		// Any other redirect is about where the repository is.
		if to, err := response.Location(); err == nil && (strings.EqualFold(path.Base(to.Path), "_signin") || to.Host == "login.microsoftonline.com") {
			return SignIn
		}
	}
	return ""
}

// status is the status line, but for the server's own words.
func status(response *http.Response) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", response.StatusCode, http.StatusText(response.StatusCode)))
}

// unreachable is for questions without an answer. The network's own words stay inside, but for the errno.
func (a address) unreachable(ctx context.Context, err error) Answer {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var errno syscall.Errno
	why := a.host + " or the proxy to it broke the connection"
	switch {
	case ctx.Err() != nil:
		why = a.host + " did not answer in time; is there a way out to it, or a proxy?"
	case errors.As(err, &certificate):
		why = "the certificate of " + a.host + " is not trusted; name its CA in verifyCAFile, and compare the node's clock"
	case errors.As(err, &dns):
		why = a.host + " or the proxy to it cannot be resolved; see the cluster's DNS"
	case errors.As(err, &errno):
		why = a.host + " or the proxy to it cannot be reached: " + errno.Error()
	}
	return Answer{Verdict: Silent, Why: why}
}
