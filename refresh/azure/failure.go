// From what went over the wire to a sentence that may be shown to anybody.

package azure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"flux-token-refresher/refresh"
)

// maxRetryAfter bounds what a Retry-After can ask for; nothing that Entra limits lasts longer.
const maxRetryAfter = 24 * time.Hour

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// attempt is what was tried, for the words in braces.
type attempt struct {
	id      Identity
	scope   string
	timeout time.Duration

	claims      claims            // of an assertion
	certificate *x509.Certificate // that signed
	host        string            // that was asked
}

func (a *attempt) sentence(remedy string) string {
	return strings.NewReplacer(
		"{tenant}", shown(a.id.TenantID), "{client}", shown(a.id.ClientID),
		"{authority}", shown(a.id.host()), "{scope}", shown(a.scope),
		"{issuer}", shown(a.claims.issuer), "{subject}", shown(a.claims.subject), "{audience}", shown(a.claims.audience),
		"{notBefore}", shown(a.claims.notBefore), "{expires}", shown(a.claims.expires),
		"{secret}", a.id.CredentialSecret.String(), "{certificate}", describeCertificate(a.certificate, time.Now()),
		"{managed}", a.id.managedName(), "{endpoint}", shown(a.host),
	).Replace(remedy)
}

func (id Identity) fail(class refresh.Class, text string) *refresh.Error {
	return &refresh.Error{Class: class, Text: fmt.Sprintf("identity %s: %s", id.Name, text)}
}

// failure tells why there is no token. It says nothing that it does not recognize: of the answer come the
// numbers of the status and of error_codes, and ids that are UUIDs.
func (x *exchange) failure(ctx context.Context, a *attempt) *refresh.Error {
	a.host = x.host
	if x.err != nil {
		return x.unreachable(ctx, a)
	}
	if x.status == 0 {
		return a.id.unusable() // refused before anything was sent
	}
	var said struct {
		Error         string `json:"error"`
		Codes         []int  `json:"error_codes"`
		TraceID       string `json:"trace_id"`
		CorrelationID string `json:"correlation_id"`
		Correlation   string `json:"correlationId"` // the App Service form's
	}
	_ = json.Unmarshal(x.body, &said) // what does not parse says nothing

	code, m := x.classify(a.id, said.Error, said.Codes)
	text := a.sentence(m.remedy)
	switch {
	case uuid.MatchString(said.TraceID) && uuid.MatchString(said.CorrelationID):
		text += fmt.Sprintf(" (trace id %s, correlation id %s)", said.TraceID, said.CorrelationID)
	case uuid.MatchString(said.Correlation):
		text += fmt.Sprintf(" (correlation id %s)", said.Correlation)
	}
	failure := a.id.fail(m.class, text)
	failure.Code = code
	failure.RetryAfter = retryAfter(x.header, time.Now())
	return failure
}

// words are what a sentence calls those who are asked, and what it advises.
type words struct {
	asked   string
	full    string // they have enough requests
	wrong   string // they answered what nobody would who is asked
	orProxy string // who else may not have been reached
	mute    string // they did not answer
}

var entraWords = words{
	asked: "{authority}", full: busy, wrong: "correct authorityHost, or the proxy",
	orProxy: " or the proxy to it", mute: "is there a way out to it, or a proxy?",
}

var endpointWords = words{
	asked: "{endpoint}", full: "{endpoint} takes no more requests for now", wrong: "is it the endpoint of managed identities?",
	mute: "does it run on a machine in Azure, and does a NetworkPolicy let it out to there?",
}

func (id Identity) words() words {
	if id.Type == ManagedIdentity {
		return endpointWords
	}
	return entraWords
}

// classify goes by the HTTP status, then by error_codes and the OAuth error.
func (x *exchange) classify(id Identity, oauth string, numbers []int) (code string, m meaning) {
	say, status := id.words(), strings.TrimSpace(fmt.Sprintf("%d %s", x.status, http.StatusText(x.status)))
	code, m, known := entraCode(numbers, id.codes(), entraCodes)
	if code == "" {
		code = strconv.Itoa(x.status)
	}
	switch {
	case known:
	case id.Type != ManagedIdentity:
		m, known = oauthErrors[oauth]
	case oauth == "invalid_resource":
		m, known = meaning{refresh.Misconfigured, unknownResource}, true
	default:
		m, known = endpointAnswers[x.status]
	}
	switch {
	case x.status == http.StatusTooManyRequests:
		return code, meaning{refresh.Throttled, say.full}
	case x.status >= 500 || x.status == http.StatusRequestTimeout:
		return code, meaning{refresh.Unavailable, say.asked + " answered " + status}
	case x.status >= 400 && known:
		return code, m
	case x.status >= 300:
		return code, meaning{refresh.Misconfigured, say.asked + " answered " + status + "; " + say.wrong}
	default:
		return code, meaning{refresh.Unavailable, say.asked + " answered " + status + " without a token; is something between?"}
	}
}

// codes are the meanings of error_codes that are particular to the identity's type.
func (id Identity) codes() map[int]meaning {
	switch id.Type {
	case ManagedIdentity:
		return endpointCodes
	case ClientCertificate:
		return certificateCodes
	default:
		return nil
	}
}

// entraCode gives the first code that one of the tables knows, else the first one; "" is none. A code means what the first table
// says that has it.
func entraCode(numbers []int, tables ...map[int]meaning) (code string, m meaning, known bool) {
	for _, n := range numbers {
		if n <= 0 || n > 99_999_999 {
			continue
		}
		for _, table := range tables {
			if m, known := table[n]; known {
				return fmt.Sprintf("AADSTS%d", n), m, true
			}
		}
		if code == "" {
			code = fmt.Sprintf("AADSTS%d", n)
		}
	}
	return code, meaning{}, false
}

// unreachable is for requests without an answer. The network's own words stay inside, but for the errno.
func (x *exchange) unreachable(ctx context.Context, a *attempt) *refresh.Error {
	host, say := shown(x.host), a.id.words()
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var errno syscall.Errno
	switch {
	case errors.Is(x.err, errTooLong):
		return a.id.fail(refresh.Unavailable, host+" answered more than a token could be; is something between?")
	case ctx.Err() != nil:
		return a.id.fail(refresh.Unavailable, fmt.Sprintf("%s did not answer within %s; %s", host, a.timeout, say.mute))
	case errors.As(x.err, &certificate):
		return a.id.fail(refresh.Misconfigured, "the certificate of "+host+" is not trusted; name its CA in caFile, and compare the node's clock")
	case errors.As(x.err, &dns):
		return a.id.fail(refresh.Unavailable, host+say.orProxy+" cannot be resolved; see the cluster's DNS")
	case errors.As(x.err, &errno):
		return a.id.fail(refresh.Unavailable, host+say.orProxy+" cannot be reached: "+errno.Error())
	default:
		return a.id.fail(refresh.Unavailable, host+say.orProxy+" broke the connection")
	}
}

// retryAfter reads Retry-After (RFC 9110 section 10.2.3): seconds, or a date. It is 0 when there is none.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := header.Get("Retry-After")
	var after time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		after = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		after = date.Sub(now)
	}
	return min(max(after, 0), maxRetryAfter)
}
