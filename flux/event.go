// Package flux is what the product knows of Flux: its events, which of their messages mean a rejected token, whose Secret an
// object reads, and how to wake the object.
package flux

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/go-json-experiment/json" // encoding/json/v2 of Go 1.27
	"github.com/go-json-experiment/json/jsontext"
)

// EventType is the CloudEvents type of a Flux event: its data is the JSON that Flux's notification-controller posts.
const EventType = "io.fluxcd.event"

// Event is what is read of an event of Flux. What else it holds (metadata, the reporting controller; action and
// relatedObject since Flux 2.10) may have any form and is ignored.
type Event struct {
	// InvolvedObject is what the event is about. Its names are valid Kubernetes names.
	InvolvedObject Object `json:"involvedObject"`
	// Severity is trace, info or error.
	Severity string `json:"severity"`
	// Timestamp is when it happened; never zero.
	Timestamp time.Time `json:"timestamp"`
	// Message may hold what a Git server sent, and the password of a URL (go-git before 5.19.3): it is read by Classify and shown
	// to nobody.
	Message Message `json:"message"`
	// Reason is a CamelCase word, such as GitOperationFailed.
	Reason string `json:"reason"`
}

// Message is the text of an event. Of one that is long in JSON, as 90 kB of HTML are, it keeps the beginning, which has all that Classify reads.
type Message string

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (m *Message) UnmarshalJSONFrom(decoder *jsontext.Decoder) error {
	const escape = len(`\u003c`)
	const longest = (prefix + 1) * escape
	value, err := decoder.ReadValue()
	if err != nil {
		return err
	}
	if len(value) <= longest || value.Kind() != jsontext.KindString {
		return json.Unmarshal(value, (*string)(m), lenient)
	}
	for end := longest; ; end-- { // not within an escape sequence
		err := json.Unmarshal(append(value[:end:end], '"'), (*string)(m), lenient)
		if err == nil || end == longest-escape {
			return err
		}
	}
}

// Object names a Kubernetes object. APIVersion and UID may be empty.
type Object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

// Decode reads the JSON that Flux posts, and makes a CloudEvent of it, which keeps body as its data. The id is the hash of the body, so
// that every replica and every redelivery gives the event the same one. Errors name the attribute that is wrong and quote nothing.
func Decode(body []byte) (event.Event, Event, error) {
	e, err := parse(body)
	if err != nil {
		return event.Event{}, Event{}, err
	}
	sum := sha256.Sum256(body)
	o, mediaType := e.InvolvedObject, event.ApplicationJSON
	subject := o.Namespace + "/" + o.Kind + "/" + o.Name
	return event.Event{
		// Not by its setters, which read again what is known to be right; and not SetData, which would send JSON as base64.
		Context: &event.EventContextV1{
			Type: EventType, ID: hex.EncodeToString(sum[:]), Source: types.URIRef{URL: url.URL{Path: o.source()}}, Subject: &subject,
			Time: &types.Timestamp{Time: e.Timestamp}, DataContentType: &mediaType,
		},
		DataEncoded: body,
	}, e, nil
}

// lenient takes a message that was cut off within a character, and names that are there twice: to see that takes more than ten times the memory of
// the body.
var lenient = json.JoinOptions(jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true))

// parse takes what Flux has sent in any of its versions, and refuses what names no object or has no time. The texts of the JSON package and
// of time quote what cannot be read, so none of them gets out.
func parse(body []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(body, &e, lenient); err != nil {
		mistyped, isJSON := errors.AsType[*json.SemanticError](err)
		switch {
		case !isJSON:
			return Event{}, errors.New("the event is not JSON")
		case mistyped.JSONPointer == "":
			return Event{}, errors.New("the event is not a JSON object")
		case mistyped.JSONPointer == "/timestamp":
			return Event{}, errors.New("timestamp: not a time as of RFC 3339")
		default: // a member of Event, so its name is ours
			return Event{}, fmt.Errorf("%s: wrong type", strings.ReplaceAll(string(mistyped.JSONPointer[1:]), "/", "."))
		}
	}
	if err := e.InvolvedObject.validate(); err != nil {
		return Event{}, fmt.Errorf("involvedObject.%w", err)
	}
	if e.Timestamp.IsZero() {
		return Event{}, errors.New("timestamp: missing")
	}
	return e, nil
}

// validate holds the names to what an API server takes, so that they are safe in a URI, a path and a log.
func (o Object) validate() error {
	group, version, grouped := strings.Cut(o.APIVersion, "/")
	if !grouped {
		group, version = "", group
	}
	switch {
	case o.Kind == "":
		return errors.New("kind: missing")
	case !isIdentifier(strings.ToLower(o.Kind)):
		return errors.New("kind: not a name of a kind")
	case o.Namespace == "":
		return errors.New("namespace: missing")
	case len(o.Namespace) > maxLabel || !isLabel(o.Namespace):
		return errors.New("namespace: not a name of a namespace")
	case o.Name == "":
		return errors.New("name: missing")
	case !isSubdomain(o.Name):
		return errors.New("name: not a name of an object")
	case grouped && !isSubdomain(group), o.APIVersion != "" && !isIdentifier(version):
		return errors.New("apiVersion: not group/version")
	}
	return nil
}

// The names of Kubernetes, as k8s.io/apimachinery/pkg/util/validation has them: its regular expressions take longer than all the rest that
// is done to read an event.

const (
	maxLabel     = 63
	maxSubdomain = 253
)

// isLabel tells whether s is a label of RFC 1123, of any length.
func isLabel(s string) bool {
	for i := range len(s) {
		inside := s[i] == '-' && i > 0 && i < len(s)-1
		if !inside && (s[i] < 'a' || s[i] > 'z') && (s[i] < '0' || s[i] > '9') {
			return false
		}
	}
	return s != ""
}

// isIdentifier tells whether s is a label of RFC 1035, which begins with a letter.
func isIdentifier(s string) bool {
	return isLabel(s) && len(s) <= maxLabel && s[0] >= 'a'
}

// isSubdomain tells whether s is a subdomain of RFC 1123, with dots between its labels.
func isSubdomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return len(s) <= maxSubdomain
}

// source is the object as a URI reference, in the manner of the API server's paths.
func (o Object) source() string {
	path := "/namespaces/" + o.Namespace + "/" + o.Kind + "/" + o.Name
	if o.APIVersion == "" {
		return path
	}
	return "/apis/" + o.APIVersion + path
}
