package events

// A request's body, and under a token its headers, as CloudEvents.
//
// The JSON format is read here and set attribute by attribute through sdk-go. Its own reader (2.16.2, measured) panics on a
// data_base64 that is not a string, refuses one with white space before it, and stops at an empty key without an error.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/go-json-experiment/json" // encoding/json/v2 of Go 1.27
	"github.com/go-json-experiment/json/jsontext"
)

const (
	mediaJSON       = "application/json"
	mediaStructured = "application/cloudevents+json"
	mediaBatch      = "application/cloudevents-batch+json"
	// prefix is that of the headers that hold the attributes of a binary event, as net/http spells it.
	prefix = "Ce-"
	// fluxHeader names the controller in requests of Flux. A Provider can add ce-* headers to them, but only ones that are the same for every
	// event, so beside this header they mean nothing.
	fluxHeader = "Gotk-Component"
)

// decode gives the events of a request that was authenticated; batch says that there may be other than one.
// Which event a body is, it says itself: an array is a batch, an object with a specversion a CloudEvent, and any other is Flux's. The
// media type can only contradict, so that whoever repeats a signed body under other headers gets nothing else out of it.
// Binary events are the exception: under a signature, requests with ce-* headers do not come this far.
func decode(header http.Header, body []byte, flux Decoder) (events []Event, batch bool, err error) {
	media, err := mediaType(header)
	if err != nil {
		return nil, false, err
	}
	formatted := media == mediaStructured || media == mediaBatch
	if !formatted && hasAttributes(header) && header.Get(fluxHeader) == "" {
		e, err := fromHeaders(header, body)
		return []Event{e}, false, err
	}
	if !formatted && media != mediaJSON {
		return nil, false, refuse(unsupported, "the media type must be "+mediaJSON+", "+mediaStructured+" or "+mediaBatch)
	}
	if media == mediaJSON && !mayHaveSpecversion(body) {
		if e, err := flux(body); err == nil {
			return []Event{e}, false, nil
		}
	}
	if bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("[")) {
		if media == mediaStructured {
			return nil, false, refuse(invalid, "an array is a batch: its media type is "+mediaBatch)
		}
		events, err = fromArray(body)
		return events, true, err
	}
	fields, err := membersOf(body)
	if err != nil {
		return nil, false, err
	}
	var e Event
	switch _, isCloudEvent := fields["specversion"]; {
	case media == mediaBatch:
		return nil, false, refuse(invalid, "the body is not a JSON array")
	case isCloudEvent || media == mediaStructured:
		e, err = fromFields(fields)
	default:
		if e, err = flux(body); err != nil {
			err = refuse(invalid, "the body is neither a CloudEvent nor an event of Flux")
		}
	}
	return []Event{e}, false, err
}

// mayHaveSpecversion is false of a JSON text that cannot have that member, as most of what Flux posts: then it is read only once. The name
// can be spelled with escapes too, and those of its letters begin with \u006 or \u007.
func mayHaveSpecversion(body []byte) bool {
	return bytes.Contains(body, []byte("specversion")) || bytes.Contains(body, []byte(`\u006`)) || bytes.Contains(body, []byte(`\u007`))
}

// mediaType is "" where there is no body that needs one.
func mediaType(header http.Header) (string, error) {
	if encoding := header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return "", refuse(unsupported, "a body must not be encoded")
	}
	value := header.Get("Content-Type")
	if value == "" || value == mediaJSON { // as Flux has it
		return value, nil
	}
	media, parameters, err := mime.ParseMediaType(value)
	if err != nil {
		return "", refuse(unsupported, "the media type cannot be read")
	}
	if charset, ok := parameters["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return "", refuse(unsupported, "the charset must be utf-8")
	}
	if strings.HasPrefix(media, "application/cloudevents") && media != mediaStructured && media != mediaBatch {
		return "", refuse(unsupported, "of the formats of CloudEvents, only JSON is understood")
	}
	return media, nil
}

func hasAttributes(header http.Header) bool {
	for name := range header {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// fromArray reads no more elements than there may be.
func fromArray(body []byte) ([]Event, error) {
	var elements []jsontext.Value
	err := walk(body, jsontext.KindBeginArray, func(read func() (jsontext.Value, error)) error {
		if len(elements) == maxBatch {
			return refuse(tooLarge, fmt.Sprintf("more than %d events in one request", maxBatch))
		}
		element, err := read()
		elements = append(elements, element)
		return err
	})
	if err != nil {
		return nil, err
	}
	events := make([]Event, len(elements))
	attributes := 0
	for i, element := range elements {
		fields, err := membersOf(element)
		if attributes += len(fields); attributes > maxBatchAttributes {
			return nil, refuse(tooLarge, fmt.Sprintf("more than %d attributes in one request", maxBatchAttributes))
		}
		if err == nil {
			events[i], err = fromFields(fields)
		}
		if err != nil {
			return nil, ofBatch(i, err)
		}
	}
	return events, nil
}

// membersOf gives the members of a JSON object, and reads no more of them than an event may have.
func membersOf(object []byte) (map[string]jsontext.Value, error) {
	members := map[string]jsontext.Value{}
	return members, walk(object, jsontext.KindBeginObject, func(read func() (jsontext.Value, error)) error {
		quoted, err := read()
		if err != nil {
			return err
		}
		var name string
		if err := json.Unmarshal(quoted, &name); err != nil {
			return err
		}
		if _, twice := members[name]; twice {
			return errNotJSON
		}
		if len(members) == maxAttributes {
			return refuse(invalid, fmt.Sprintf("more than %d attributes", maxAttributes))
		}
		members[name], err = read()
		return err
	})
}

// walk reads a JSON text that is an array or an object, as open says: next is called for each element or member, and reads it, as values that are
// parts of the text.
func walk(text []byte, open jsontext.Kind, next func(read func() (jsontext.Value, error)) error) error {
	decoder := jsontext.NewDecoder(bytes.NewBuffer(text), anyNames)
	read := func() (jsontext.Value, error) {
		value, err := decoder.ReadValue() // which is there until the next one is read
		end := int(decoder.InputOffset())
		return text[end-len(value) : end], err
	}
	if token, err := decoder.ReadToken(); err != nil || token.Kind() != open {
		return errNotJSON
	}
	for kind := decoder.PeekKind(); kind != jsontext.KindEndArray && kind != jsontext.KindEndObject; kind = decoder.PeekKind() {
		if err := next(read); err != nil {
			if refusal, ok := errors.AsType[*refusal](err); ok {
				return refusal
			}
			return errNotJSON
		}
	}
	if _, err := decoder.ReadToken(); err != nil { // its end
		return errNotJSON
	}
	if _, err := decoder.ReadToken(); !errors.Is(err, io.EOF) {
		return errNotJSON
	}
	return nil
}

// anyNames lets a name be there twice, somewhere in an event: to see that takes more than ten times the memory of the body.
var anyNames = jsontext.AllowDuplicateNames(true)

var errNotJSON = refuse(invalid, "not a JSON object with each name once, nor an array of them")

// fromFields follows the JSON Event Format for CloudEvents 1.0.2, sections 2 and 3.
func fromFields(fields map[string]jsontext.Value) (Event, error) {
	attributes := map[string]any{}
	for name, raw := range fields {
		if name == "data" || name == "data_base64" {
			continue
		}
		if raw[0] == '[' || raw[0] == '{' { // of no type that an attribute has, whatever is in it
			attributes[name] = raw
			continue
		}
		var value any
		if json.Unmarshal(raw, &value) != nil {
			return Event{}, refuse(invalid, "an attribute is a number that is out of range")
		}
		if value != nil { // null is absent
			attributes[name] = value
		}
	}
	e, err := fromAttributes(attributes)
	if err != nil {
		return Event{}, err
	}
	if err := setData(&e, fields); err != nil {
		return Event{}, refuse(invalid, err.Error())
	}
	return e, nil
}

func setData(e *Event, fields map[string]jsontext.Value) error {
	data, plain := fields["data"]
	encoded, binary := fields["data_base64"]
	media := strings.ToLower(e.DataMediaType())
	switch {
	case plain && binary:
		return errors.New("data and data_base64 exclude each other")
	case binary:
		if json.Unmarshal(encoded, &e.DataEncoded) != nil {
			return errors.New("data_base64 is not a string in base64")
		}
		e.DataBase64 = true
	case media == "" || strings.HasSuffix(media, "/json") || strings.HasSuffix(media, "+json"):
		e.DataEncoded = data
	case plain:
		var text string
		if json.Unmarshal(data, &text) != nil {
			return errors.New("data is not a string, though its media type is not JSON")
		}
		e.DataEncoded = []byte(text)
	}
	return nil
}

// fromHeaders follows the HTTP Protocol Binding for CloudEvents 1.0.2, section 3.1.
func fromHeaders(header http.Header, body []byte) (Event, error) {
	attributes := map[string]any{}
	for header, values := range header {
		name, ok := strings.CutPrefix(header, prefix)
		if !ok {
			continue
		}
		// sdk-go would take the first of two, and nothing says that whoever stands in front of us did.
		value, err := headerValue(values[0])
		if name = strings.ToLower(name); len(values) != 1 || err != nil || name == "datacontenttype" {
			return Event{}, refuse(invalid, "a ce-* header is there twice, or not encoded as the HTTP binding says, or is ce-datacontenttype")
		}
		attributes[name] = value
	}
	if contentType := header.Get("Content-Type"); contentType != "" {
		attributes["datacontenttype"] = contentType
	}
	e, err := fromAttributes(attributes)
	if len(body) > 0 {
		e.DataEncoded = body
	}
	return e, err
}

// headerValue undoes the encoding of section 3.1.3.2: strings in double quotes first, then one round of percent-decoding.
func headerValue(raw string) (string, error) {
	var plain strings.Builder
	quoted := false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted && i+1 < len(raw):
			i++
			plain.WriteByte(raw[i])
		default:
			plain.WriteByte(c)
		}
	}
	value, err := url.PathUnescape(plain.String())
	if err == nil && (quoted || !utf8.ValidString(value)) {
		err = errors.New("not a header value of CloudEvents")
	}
	return value, err
}

// fromAttributes makes an event that is valid but for its data. What is wrong is named, never quoted: of extensions not even
// the name, which the sender chose.
func fromAttributes(attributes map[string]any) (Event, error) {
	if len(attributes) > maxAttributes {
		return Event{}, refuse(invalid, fmt.Sprintf("more than %d attributes", maxAttributes))
	}
	if attributes["specversion"] != event.CloudEventsVersionV1 {
		return Event{}, refuse(invalid, "the attribute specversion must be "+event.CloudEventsVersionV1)
	}
	e := Event{Event: event.New(event.CloudEventsVersionV1)}
	wrong := map[string]bool{}
	for name, value := range attributes {
		known := spec.V1.Attribute(name) != nil
		if !isName(name) || !isValue(value) || spec.V1.SetAttribute(e.Context, name, value) != nil {
			if known {
				wrong[strings.ToLower(name)] = true
			} else {
				wrong["an extension"] = true
			}
		}
	}
	violations, _ := errors.AsType[event.ValidationError](e.Validate())
	for name := range violations {
		wrong[name] = true
	}
	if len(wrong) > 0 {
		names := slices.Sorted(maps.Keys(wrong))
		return Event{}, refuse(invalid, "missing, or not as CloudEvents 1.0 defines it: "+strings.Join(names, ", "))
	}
	if len(e.ID()) > maxIdentity || len(e.Source()) > maxIdentity {
		return Event{}, refuse(invalid, fmt.Sprintf("the attributes id and source may have %d bytes each", maxIdentity))
	}
	return e, nil
}

// isName tells whether it is made of a to z and 0 to 9 (CloudEvents 1.0.2, attribute naming convention); sdk-go would make it so.
func isName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}

// isValue tells whether it is of the type system of CloudEvents 1.0.2, where sdk-go would let it pass, or cut it to size: no fractions, and no
// control characters or noncharacters of Unicode in strings.
func isValue(value any) bool {
	switch v := value.(type) {
	case float64:
		return v == math.Trunc(v)
	case jsontext.Value:
		return false
	case string:
		return !strings.ContainsFunc(v, func(r rune) bool {
			return unicode.IsControl(r) || r&0xfffe == 0xfffe || r >= 0xfdd0 && r <= 0xfdef
		})
	}
	return true
}

// check refuses an event that is not of now, and one whose type is understood and whose content is not. It fills in the Content of
// those that did not come from a Decoder.
func check(e *Event, flux Decoder, now time.Time, maxAge time.Duration) error {
	switch at := e.Time(); {
	case at.IsZero():
		return refuse(stale, "the attribute time is missing: nothing says how old the event is")
	case at.Before(now.Add(-maxAge)):
		return refuse(stale, fmt.Sprintf("the attribute time is more than %s ago", maxAge))
	case at.After(now.Add(maxAhead)):
		return refuse(stale, fmt.Sprintf("the attribute time is more than %s ahead", maxAhead))
	}
	switch e.Type() {
	case TypeFlux:
		if e.Content == nil {
			read, err := flux(e.Data())
			if err != nil {
				return refuse(invalid, "the data is no event of Flux")
			}
			e.Content = read.Content
		}
	case TypeRefreshRequested:
		if namespace, name, _ := strings.Cut(e.Subject(), "/"); namespace == "" || name == "" || strings.Contains(name, "/") {
			return refuse(invalid, "the attribute subject must be namespace/name of a Secret")
		}
	}
	return nil
}
