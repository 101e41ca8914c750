package events_test

// CloudEvents in their three modes, and Flux's JSON: what comes out, and what is refused.

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"flux-token-refresher/events"
)

// TestModes sends one event as sdk-go sends it, in each mode, and with each proof that the mode may have.
func TestModes(t *testing.T) {
	t.Parallel()
	data := fluxEvent("repos", "authentication required", time.Now())
	e := event.New()
	e.SetID("ü 1% \"quoted\"")
	e.SetSource("https://example.com/flux?a=b")
	e.SetType(events.TypeFlux)
	e.SetSubject("apps/repos")
	e.SetTime(time.Now().UTC())
	e.SetExtension("region", "Zürich")
	e.SetExtension("attempt", 3)
	if err := e.SetData(event.ApplicationJSON, json.RawMessage(data)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		write func(*http.Request) error
		proof func(*http.Request, []byte)
	}{
		{"structured, signed", structured(e), sign},
		{"structured, with a token", structured(e), authorize},
		{"binary, with a token", binary(e), authorize},
		{"batch, signed", batched(e), sign},
		{"batch, with a token", batched(e), authorize},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			r := newRequest(t.Context(), events.Path, "")
			r.Header.Del("Content-Type")
			if err := test.write(r); err != nil {
				t.Fatal(err)
			}
			var body bytes.Buffer
			if _, err := body.ReadFrom(r.Body); err != nil {
				t.Fatal(err)
			}
			test.proof(r, body.Bytes())
			r.Body = http.MaxBytesReader(nil, readCloser{&body}, 1<<20)
			wantStatus(t, b.do(r), http.StatusAccepted)
			got := b.router.routed[0]
			for name, values := range map[string][2]any{
				"id":      {e.ID(), got.ID()},
				"source":  {e.Source(), got.Source()},
				"type":    {e.Type(), got.Type()},
				"subject": {e.Subject(), got.Subject()},
				"time":    {e.Time(), got.Time()},
				"media":   {"application/json", got.DataContentType()},
				"data":    {data, string(got.Data())},
				"region":  {"Zürich", got.Extensions()["region"]},
				"attempt": {"3", fmt.Sprint(got.Extensions()["attempt"])},
			} {
				if values[0] != values[1] {
					t.Errorf("%s: got %v, want %v", name, values[1], values[0])
				}
			}
		})
	}
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }

func structured(e event.Event) func(*http.Request) error {
	return func(r *http.Request) error {
		return cehttp.WriteRequest(binding.WithForceStructured(r.Context()), (*binding.EventMessage)(&e), r)
	}
}

// binary encodes the headers, which sdk-go does not.
func binary(e event.Event) func(*http.Request) error {
	return func(r *http.Request) error {
		if err := cehttp.WriteRequest(binding.WithForceBinary(r.Context()), (*binding.EventMessage)(&e), r); err != nil {
			return err
		}
		for name := range r.Header {
			if strings.HasPrefix(name, "Ce-") {
				r.Header.Set(name, encoded(r.Header.Get(name)))
			}
		}
		return nil
	}
}

// encoded is a value as the HTTP Protocol Binding has it in a header (section 3.1.3.2).
func encoded(value string) string {
	var encoded strings.Builder
	for _, c := range []byte(value) {
		if c <= ' ' || c == '"' || c == '%' || c > '~' {
			fmt.Fprintf(&encoded, "%%%02x", c)
		} else {
			encoded.WriteByte(c)
		}
	}
	return encoded.String()
}

func batched(e event.Event) func(*http.Request) error {
	return func(r *http.Request) error {
		made, err := cehttp.NewHTTPRequestFromEvents(r.Context(), events.Path, []event.Event{e})
		if err != nil {
			return err
		}
		r.Body = made.Body
		maps.Copy(r.Header, made.Header)
		return nil
	}
}

func sign(r *http.Request, body []byte) { r.Header.Set("X-Signature", macOf(fluxKey, string(body))) }

func authorize(r *http.Request, _ []byte) { r.Header.Set("Authorization", "Bearer "+tokenKey) }

// TestWhatDecides: which event a request is, is not left to chance.
func TestWhatDecides(t *testing.T) {
	t.Parallel()
	flux := fluxEvent("flux", "authentication required", time.Now())
	structured := cloudEvent(map[string]any{"subject": "apps/structured"})
	binary := []with{
		bearer(tokenKey), header("ce-specversion", "1.0"), header("ce-id", "1"), header("ce-source", "/test"), header("ce-type", events.TypeRefreshRequested),
		header("ce-subject", "apps/binary"), header("ce-time", time.Now().UTC().Format(time.RFC3339)),
	}
	and := func(more ...with) []with { return append(append([]with{}, binary...), more...) }
	for _, test := range []struct {
		name string
		body string
		with []with
		want string // the target, or the status
	}{
		{"an object with a specversion", structured, []with{signed(fluxKey)}, "apps/structured"},
		{"an object without", flux, []with{signed(fluxKey)}, "apps/flux"},
		{"of Flux with a specversion", strings.Replace(flux, "{", `{"specversion":"1.0",`, 1), []with{signed(fluxKey)}, "400"},
		{"of Flux with a specversion in escapes", strings.Replace(flux, "{", `{"\u0073pec\u0076ersion":"1.0",`, 1), []with{signed(fluxKey)}, "400"},
		{"of Flux with other escapes", strings.Replace(flux, "{", `{"\u006fther":"\u003c",`, 1), []with{signed(fluxKey)}, "apps/flux"},
		{"of Flux, by generic", flux, []with{bearer(tokenKey), header("Gotk-Component", "source-controller")}, "apps/flux"},
		{"of Flux, by generic with ce-* headers that are always the same", flux, and(header("Gotk-Component", "source-controller")), "apps/flux"},
		{"ce-* headers and JSON", `{}`, binary, "apps/binary"},
		{"ce-* headers and Flux's JSON of somebody else", flux, binary, "apps/binary"},
		{"ce-* headers and no body", "", and(func(r *http.Request, _ string) { r.Header.Del("Content-Type") }), "apps/binary"},
		{"ce-* headers and text", "hello", and(media("text/plain")), "apps/binary"},
		{"ce-* headers and a structured body", structured, and(media("application/cloudevents+json")), "apps/structured"},
		{"a header that is there twice", `{}`, and(header("ce-subject", "apps/other")), "400"},
		{"ce-datacontenttype", `{}`, and(header("ce-datacontenttype", "text/plain")), "400"},
		{"ce-* headers without the specversion", flux, []with{bearer(tokenKey), header("ce-id", "1")}, "400"},
		{"a header in quotes", `{}`, and(func(r *http.Request, _ string) { r.Header.Set("ce-subject", `"apps/quo\ted"`) }), "apps/quoted"},
		{"a header with open quotes", `{}`, and(func(r *http.Request, _ string) { r.Header.Set("ce-subject", `"apps/quoted`) }), "400"},
		{"a header with half a code", `{}`, and(func(r *http.Request, _ string) { r.Header.Set("ce-subject", "apps/%2") }), "400"},
		{"a header that is not UTF-8", `{}`, and(func(r *http.Request, _ string) { r.Header.Set("ce-subject", "apps/%C0%A0") }), "400"},
		{"more headers than an event may have attributes", `{}`, and(func(r *http.Request, _ string) {
			for i := range 100 {
				r.Header.Set(fmt.Sprint("ce-x", i), "1")
			}
		}), "400"},
		{"structured, as Flux", structured, []with{signed(fluxKey), header("Gotk-Component", "source-controller")}, "apps/structured"},
		{"Flux's as structured", flux, []with{signed(fluxKey), media("application/cloudevents+json")}, "400"},
		{"one as a batch", structured, []with{signed(fluxKey), media("application/cloudevents-batch+json")}, "400"},
		{"a batch as one", batchOf(structured), []with{signed(fluxKey), media("application/cloudevents+json")}, "400"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			w := b.send(t, test.body, test.with...)
			got := fmt.Sprint(w.Code)
			if made := b.requester.made(); len(made) == 1 {
				got = made[0].target
			}
			if got != test.want {
				t.Errorf("got %s, want %s: %s", got, test.want, w.Body)
			}
		})
	}
}

// TestInvalid: each error names what is wrong, and quotes nothing.
func TestInvalid(t *testing.T) {
	t.Parallel()
	const marker = "MARKER"
	for _, test := range []struct{ name, body, want string }{
		{"no JSON", marker, "not a JSON object"},
		{"two values", cloudEvent(nil) + cloudEvent(nil), "not a JSON object"},
		{"null", "null", "not a JSON object"},
		{"a string", `"` + marker + `"`, "not a JSON object"},
		{"not of Flux", `{"` + marker + `":1}`, "neither a CloudEvent nor an event of Flux"},
		{"0.3", cloudEvent(map[string]any{"specversion": "0.3"}), "specversion"},
		{"another version", cloudEvent(map[string]any{"specversion": marker}), "specversion"},
		{"a number as version", cloudEvent(map[string]any{"specversion": 1.0}), "specversion"},
		{"no id, no type", cloudEvent(map[string]any{"id": nil, "type": nil}), ": id, type"},
		{"an empty id", cloudEvent(map[string]any{"id": ""}), ": id"},
		{"a null id", strings.Replace(cloudEvent(map[string]any{"id": marker}), `"`+marker+`"`, "null", 1), ": id"},
		{"a number as id", cloudEvent(map[string]any{"id": 5}), ": id"},
		{"a truth as subject", cloudEvent(map[string]any{"subject": true}), ": subject"},
		{"an id in capitals", cloudEvent(map[string]any{"ID": marker}), ": id"},
		{"no source", cloudEvent(map[string]any{"source": nil}), ": source"},
		{"a broken source", cloudEvent(map[string]any{"source": "%" + marker}), ": source"},
		{"a broken time", cloudEvent(map[string]any{"time": marker}), ": time"},
		{"a broken media type", cloudEvent(map[string]any{"datacontenttype": marker + "/", "data": 1}), ": datacontenttype"},
		{"a broken schema", cloudEvent(map[string]any{"dataschema": marker}), ": dataschema"},
		{"a broken extension", cloudEvent(map[string]any{marker: marker}), ": an extension"},
		{"an extension that is an object", cloudEvent(map[string]any{"marker": map[string]any{marker: 1}}), ": an extension"},
		{"an extension without a name", cloudEvent(map[string]any{"": marker}), ": an extension"},
		{"a number that is none", strings.Replace(cloudEvent(map[string]any{"number": marker}), `"`+marker+`"`, "1e999", 1), "out of range"},
		{"base64 that is none", cloudEvent(map[string]any{"data_base64": marker + "?"}), "data_base64"},
		{"base64 that is a number", cloudEvent(map[string]any{"data_base64": 1}), "data_base64"},
		{"data twice", cloudEvent(map[string]any{"data_base64": "", "data": 1}), "exclude"},
		{"text that is none", cloudEvent(map[string]any{"datacontenttype": "text/plain", "data": 1}), "not a string"},
		{"data that is not of Flux", cloudEvent(map[string]any{"type": events.TypeFlux, "data": marker}), "no event of Flux"},
		{"no data", cloudEvent(map[string]any{"type": events.TypeFlux}), "no event of Flux"},
		{"no subject", cloudEvent(map[string]any{"subject": nil}), "namespace/name"},
		{"a subject without a namespace", cloudEvent(map[string]any{"subject": marker}), "namespace/name"},
		{"a subject with more", cloudEvent(map[string]any{"subject": "a/b/" + marker}), "namespace/name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			w := b.send(t, test.body, signed(fluxKey))
			wantStatus(t, w, http.StatusBadRequest)
			if got := errorOf(t, w); !strings.Contains(got, test.want) || strings.Contains(strings.ToUpper(got), marker) {
				t.Errorf("got %q, want it to say %q and to quote nothing", got, test.want)
			}
			if b.router.seen() > 0 {
				t.Error("it was routed")
			}
		})
	}
}

// TestData in each form that the JSON format has for it.
func TestData(t *testing.T) {
	t.Parallel()
	flux := fluxEvent("repos", "", time.Now())
	for _, attributes := range []map[string]any{
		{"data": json.RawMessage(flux)},
		{"data": json.RawMessage(flux), "datacontenttype": "application/json; charset=utf-8"},
		{"data": json.RawMessage(flux), "datacontenttype": "application/vnd.flux+json"},
		{"data": flux, "datacontenttype": "text/plain"},
		{"data_base64": base64.StdEncoding.EncodeToString([]byte(flux))},
	} {
		attributes["type"] = events.TypeFlux
		b := newBench(t)
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, []byte(cloudEvent(attributes)), "", "\t"); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, b.send(t, pretty.String(), signed(fluxKey)), http.StatusAccepted)
		var got bytes.Buffer
		if err := json.Compact(&got, b.router.routed[0].Data()); err != nil || got.String() != flux {
			t.Errorf("%v: got %s (%v)", attributes, &got, err)
		}
	}
}

// FuzzBody: no body brings the receiver down, or gets through differently under another media type.
func FuzzBody(f *testing.F) {
	now := time.Now()
	for _, body := range []string{
		"", "null", "[]", "{}", "[null]", fluxEvent("repos", "authentication required", now), cloudEvent(nil), batchOf(cloudEvent(nil), cloudEvent(nil)),
		cloudEvent(map[string]any{"type": events.TypeFlux, "data": json.RawMessage(fluxEvent("repos", "", now))}),
		// These two stop sdk-go's own reader.
		`{"data_base64":1,"specversion":"1.0"}`, `{"specversion":"1.0","":1,"id":"1"}`,
		`{"specversion":"1.0","data_base64": "YQ=="}`, `{"specversion":"1.0","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}`,
		strings.Repeat("[", 20000), strings.Repeat(`{"specversion":`, 5000),
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		var taken string
		for _, m := range []string{"application/json", "application/cloudevents+json", "application/cloudevents-batch+json"} {
			b := newBench(t, func(c *events.Config) { c.MaxAge = 24 * time.Hour }) // longer than anybody fuzzes
			w := b.send(t, body, signed(fluxKey), media(m))
			switch w.Code {
			case http.StatusAccepted:
				if answer := w.Body.String(); taken == "" {
					taken = answer
				} else if taken != answer {
					t.Errorf("as %s: %s, before: %s", m, answer, taken)
				}
			case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
				errorOf(t, w)
			default:
				t.Errorf("as %s: status %d: %s", m, w.Code, w.Body)
			}
		}
	})
}

// FuzzHeaders: what is encoded in a header comes out as it was, unless no attribute may have it; and whatever is in a header, what comes
// out is text that can be shown.
func FuzzHeaders(f *testing.F) {
	for _, value := range []string{
		"", "plain", "Euro € 😀", "a b\tc", `"quoted"`, `"a\"b"`, `\`, `"\`, "%", "%2", "%41", "%2541", "%C3%BC", "%C0%A0", "%ED%A0%80", "%00", "%EF%BF%BF", "+", "\xff", "a;b,c",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		send := func(header string) (got string, taken bool) {
			b := newBench(t)
			w := b.send(t, "", append(binaryEvent("ce-value", " "), bearer(tokenKey), func(r *http.Request, _ string) { r.Header["Ce-Value"] = []string{header} })...)
			if w.Code != http.StatusAccepted && w.Code != http.StatusBadRequest {
				t.Errorf("%q: status %d", header, w.Code)
			}
			if w.Code != http.StatusAccepted {
				return "", false
			}
			got, _ = b.router.routed[0].Extensions()["value"].(string)
			return got, true
		}
		shown := utf8.ValidString(value) && !strings.ContainsFunc(value, hidden)
		if got, taken := send(encoded(value)); taken != shown || taken && got != value {
			t.Errorf("%q became %q, taken: %t", value, got, taken)
		}
		if got, taken := send(value); taken && (!utf8.ValidString(got) || strings.ContainsFunc(got, hidden) || len(got) > len(value)) {
			t.Errorf("%q as it is became %q", value, got)
		}
	})
}

// hidden are characters that a string of CloudEvents may not have: Unicode's controls and noncharacters.
func hidden(r rune) bool {
	return unicode.IsControl(r) || r&0xffff >= 0xfffe || 0xfdd0 <= r && r <= 0xfdef
}
