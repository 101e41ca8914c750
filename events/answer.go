package events

// What a sender is told.

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json" // encoding/json/v2 of Go 1.27
)

// Answer says what became of an event that was taken; it is the body of a 202.
type Answer struct {
	ID      string  `json:"id"`
	Verdict Verdict `json:"verdict"`
	// Rule names what decided.
	Rule string `json:"rule"`
	// Targets are the Secrets that the event concerns as namespace/name, sorted; never nil.
	Targets []string `json:"targets"`
	Outcome Outcome  `json:"outcome"`
}

// concern gives an answer its targets. Until more is known, what concerns one is asked for already.
func (a *Answer) concern(targets []string) {
	if len(targets) > 0 {
		a.Targets, a.Outcome = targets, Coalesced
	}
}

// ErrInvalid is what is wrong with the events themselves: it will be wrong the next time too.
var ErrInvalid = errors.New("invalid events")

// refused is why a request was not taken: the value of the label outcome.
type refused string

const (
	notAllowed      refused = "method-not-allowed"
	tooMany         refused = "too-many-requests"
	cutOff          refused = "cut-off"
	incomplete      refused = "incomplete"
	tooLarge        refused = "too-large"
	unauthenticated refused = "unauthenticated"
	unsupported     refused = "unsupported-media-type"
	invalid         refused = "invalid"
	stale           refused = "stale"
	unavailable     refused = "unavailable"
)

var statuses = map[refused]int{
	notAllowed:      http.StatusMethodNotAllowed,
	tooMany:         http.StatusTooManyRequests,
	cutOff:          http.StatusTooManyRequests,
	incomplete:      http.StatusBadRequest,
	tooLarge:        http.StatusRequestEntityTooLarge,
	unauthenticated: http.StatusUnauthorized,
	unsupported:     http.StatusUnsupportedMediaType,
	invalid:         http.StatusBadRequest,
	stale:           http.StatusBadRequest,
	unavailable:     http.StatusServiceUnavailable,
}

// headers that HTTP wants beside a status (RFC 9110, sections 10.2.1, 10.2.3 and 11.6.1). A sender of Flux tries again up to four
// times, and waits as long as Retry-After says: 3 s spread them over the 12 s that a restart of an API server may take.
var headers = map[refused][2]string{
	notAllowed:      {"Allow", allowed},
	tooMany:         {"Retry-After", "1"},
	cutOff:          {"Retry-After", "1"},
	unauthenticated: {"WWW-Authenticate", "Bearer"},
	unavailable:     {"Retry-After", "3"},
}

const allowed = "POST, OPTIONS"

// strangers are answers that a request can get without a proof, or before its body is there: its connection is closed. Before, what is
// still sent is taken, for the server's ReadTimeout: what is closed with bytes unread is reset, and the answer is lost (RFC 9112, section
// 9.6). net/http does that itself, but not for a request that says "Connection: close" (Go 1.26, measured).
var strangers = map[refused]bool{notAllowed: true, tooMany: true, cutOff: true, incomplete: true, tooLarge: true, unauthenticated: true}

// refusal is an error that its sender may read: its text quotes nothing of the request.
type refusal struct {
	why  refused
	text string
	// cause is for the log only.
	cause error
}

func refuse(why refused, text string) *refusal { return &refusal{why: why, text: text} }

func (r *refusal) because(cause error) *refusal { return &refusal{r.why, r.text, cause} }

func (r *refusal) Error() string { return r.text }

// Is makes ErrInvalid of all that the sender got wrong.
func (r *refusal) Is(target error) bool {
	return target == ErrInvalid && statuses[r.why] < http.StatusInternalServerError
}

// asRefusal gives the refusal in err; anything else is a failure of ours, which a sender may try again.
func asRefusal(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	return refuse(unavailable, "this failed here; try again").because(err)
}

// ofBatch says which event of a batch it is about, counted from 1.
func ofBatch(i int, err error) error {
	r := asRefusal(err)
	return &refusal{r.why, fmt.Sprintf("event %d: %s", i+1, r.text), r.cause}
}

func (r *refusal) write(w http.ResponseWriter) {
	if strangers[r.why] {
		w.Header().Set("Connection", "close")
	}
	if h, ok := headers[r.why]; ok {
		w.Header().Set(h[0], h[1])
	}
	write(w, statuses[r.why], map[string]string{"error": r.text})
}

// accept answers with 202. A sender that says "Prefer: reply", as Knative's brokers and channels do, takes the body of an answer for another
// event, and what is none for a failure (Knative Eventing Data Plane Contract, derived events): it gets none.
func accept(w http.ResponseWriter, header http.Header, answer any) {
	for _, preferences := range header.Values("Prefer") {
		for preference := range strings.SplitSeq(preferences, ",") {
			if name, _, _ := strings.Cut(preference, ";"); strings.EqualFold(strings.TrimSpace(name), "reply") {
				w.WriteHeader(http.StatusAccepted)
				return
			}
		}
	}
	write(w, http.StatusAccepted, answer)
}

func write(w http.ResponseWriter, status int, body any) {
	var content bytes.Buffer
	_ = json.MarshalWrite(&content, body) // of strings: it cannot fail
	content.WriteByte('\n')
	w.Header().Set("Content-Type", mediaJSON)
	w.Header().Set("Content-Length", strconv.Itoa(content.Len()))
	w.WriteHeader(status)
	_, _ = content.WriteTo(w) // whoever does not read the answer gets none
}

// handshake is the validation of CloudEvents' Web Hooks for Event Delivery 1.0.2, section 4. It is not authenticated: it
// says that events are expected here at all, and delivering them takes a proof whatever it says. Consent is in the two headers, and is withheld from a
// request that is not as the specification has it. There is no limit by the minute: a sender that is too fast gets 429. A callback
// is never made: it would send requests wherever anybody likes.
func handshake(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Allow", allowed)
	_, asksForRate := r.Header[http.CanonicalHeaderKey(requestRate)]
	if origin := only(r.Header, requestOrigin); isDomain(origin) && (!asksForRate || isRate(only(r.Header, requestRate))) {
		w.Header().Set("WebHook-Allowed-Origin", origin)
		w.Header().Set("WebHook-Allowed-Rate", "*")
	}
	w.WriteHeader(http.StatusOK)
}

const (
	requestOrigin = "WebHook-Request-Origin"
	requestRate   = "WebHook-Request-Rate"
)

// isDomain tells whether it can be a DNS name, or an expression of such.
func isDomain(s string) bool {
	const longest = 253
	return s != "" && len(s) <= longest && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._*", r)
	})
}

// isRate tells whether it is a positive whole number, of requests per minute.
func isRate(s string) bool {
	rate, err := strconv.ParseUint(s, 10, 64)
	return err == nil && rate > 0
}
