package events_test

// The clauses of CloudEvents that no other test is about, and that docs/cloudevents.md names a test for each.

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"flux-token-refresher/events"
)

// clause is one of a specification: a request of a sender with a token, and what becomes of it.
type clause struct {
	name   string
	body   string
	with   []with
	status int
	// check looks at the event that came out.
	check func(t *testing.T, e events.Event)
	// says is in the error that comes out.
	says string
}

// binaryEvent is a request in binary mode, with a value of one header; "" takes it away.
func binaryEvent(name, value string) []with {
	now := time.Now().UTC().Format(time.RFC3339)
	all := map[string]string{
		"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/test", "ce-type": events.TypeRefreshRequested, "ce-subject": "apps/repos", "ce-time": now, name: value,
	}
	return []with{func(r *http.Request, _ string) {
		for name, value := range all {
			if r.Header.Del(name); value != "" {
				r.Header.Set(name, value)
			}
		}
	}}
}

func has(name string, want any) func(*testing.T, events.Event) {
	return func(t *testing.T, e events.Event) {
		t.Helper()
		if got := e.Extensions()[name]; got != want {
			t.Errorf("%s: %#v, want %#v", name, got, want)
		}
	}
}

func hasData(want string) func(*testing.T, events.Event) {
	return func(t *testing.T, e events.Event) {
		t.Helper()
		if got := string(e.Data()); got != want {
			t.Errorf("data: %s, want %s", got, want)
		}
	}
}

func hasMedia(want string) func(*testing.T, events.Event) {
	return func(t *testing.T, e events.Event) {
		t.Helper()
		if got := e.DataContentType(); got != want {
			t.Errorf("datacontenttype: %s, want %s", got, want)
		}
	}
}

func clauses() []clause {
	structured := cloudEvent
	formatted := media("application/cloudevents+json; charset=UTF-8")
	raw := func(name, value string) string { // as it stands in the JSON
		return strings.Replace(structured(map[string]any{name: "VALUE"}), `"VALUE"`, value, 1)
	}
	flux := fluxEvent("repos", "", time.Now())
	typed := func(media, data string) string {
		return strings.Replace(structured(map[string]any{"type": "com.example.other", "datacontenttype": media, "data": "VALUE"}), `"VALUE"`, data, 1)
	}
	understood := func(body string) string { // for the router to see
		return strings.Replace(body, "com.example.other", events.TypeRefreshRequested, 1)
	}
	return []clause{
		// HTTP Protocol Binding 1.0.2.
		{"mode: the media type of any case", structured(nil), []with{media("Application/CloudEvents+JSON")}, 202, nil, ""},
		{"mode: a format that is not JSON", structured(nil), []with{media("application/cloudevents+avro")}, 415, nil, ""},
		{"binary: Content-Type is datacontenttype", "<a/>", append(binaryEvent("", ""), media("text/xml; charset=utf-8")), 202, hasMedia("text/xml; charset=utf-8"), ""},
		{"binary: ce-datacontenttype", `{}`, binaryEvent("ce-datacontenttype", "text/xml"), 400, nil, "ce-datacontenttype"},
		{"binary: the body is the data", " {\"a\" : 1}\n", binaryEvent("", ""), 202, hasData(" {\"a\" : 1}\n"), ""},
		{"binary: extensions are headers", `{}`, binaryEvent("ce-comexampleextension1", "value"), 202, has("comexampleextension1", "value"), ""},
		{"binary: header names of any case", `{}`, binaryEvent("CE-ComExample", "value"), 202, has("comexample", "value"), ""},
		{"binary: a required attribute is missing", `{}`, binaryEvent("ce-source", ""), 400, nil, ": source"},
		{"values: percent-encoding", `{}`, binaryEvent("ce-ext", "Euro%20%E2%82%AC%20%F0%9F%98%80"), 202, has("ext", "Euro € 😀"), ""},
		{"values: percent-encoding in small letters", `{}`, binaryEvent("ce-ext", "%e2%82%ac"), 202, has("ext", "€"), ""},
		{"values: percent-encoding without need", `{}`, binaryEvent("ce-ext", "%61b"), 202, has("ext", "ab"), ""},
		{"values: one round of decoding", `{}`, binaryEvent("ce-ext", "%2541"), 202, has("ext", "%41"), ""},
		{"values: a plus is a plus", `{}`, binaryEvent("ce-ext", "a+b"), 202, has("ext", "a+b"), ""},
		{"values: quotes come first", `{}`, binaryEvent("ce-ext", `"a \"b\" %41 \\"`), 202, has("ext", `a "b" A \`), ""},
		{"values: invalid UTF-8", `{}`, binaryEvent("ce-ext", "%C0%A0"), 400, nil, "ce-*"},
		{"values: half an encoding", `{}`, binaryEvent("ce-ext", "%4"), 400, nil, "ce-*"},
		{"values: UTF-8 as it is", `{}`, binaryEvent("ce-ext", "Zürich"), 202, has("ext", "Zürich"), ""},
		{"values: a header twice", `{}`, append(binaryEvent("ce-ext", "a"), header("ce-ext", "b")), 400, nil, "twice"},
		{"structured: the media type", structured(nil), []with{formatted}, 202, nil, ""},
		{"structured: headers beside the payload mean nothing", structured(map[string]any{"ext": "payload"}), append(binaryEvent("ce-ext", "header"), formatted), 202,
			has("ext", "payload"), ""},
		{"batch: the media type", batchOf(structured(nil), structured(map[string]any{"id": "2"})), []with{media("application/cloudevents-batch+json; charset=UTF-8")}, 202, nil, ""},
		{"batch: more than is taken", batchOf(slices.Repeat([]string{structured(nil)}, 101)...), []with{media("application/cloudevents-batch+json")}, 413, nil, "100"},
		{"batch: as many attributes as are taken", batchOf(slices.Repeat([]string{"{" + members(20-6) + structured(nil)[1:]}, 100)...), nil, 202, nil, ""},
		{"batch: one more", batchOf(append(slices.Repeat([]string{"{" + members(20-6) + structured(nil)[1:]}, 99), "{"+members(20-5)+structured(nil)[1:])...), nil, 413, nil, "2000"},

		// JSON Event Format 1.0.2.
		{"type: a boolean", structured(map[string]any{"ext": true}), []with{formatted}, 202, has("ext", true), ""},
		{"type: an integer", structured(map[string]any{"ext": -2147483648}), []with{formatted}, 202, has("ext", int32(-2147483648)), ""},
		{"type: an integer that is too large", structured(map[string]any{"ext": 2147483648}), []with{formatted}, 400, nil, "extension"},
		{"type: a fraction", raw("ext", "1.5"), []with{formatted}, 400, nil, "extension"},
		{"type: a string", structured(map[string]any{"ext": "€ 😀"}), []with{formatted}, 202, has("ext", "€ 😀"), ""},
		{"type: null is unset", raw("ext", "null"), []with{formatted}, 202, has("ext", nil), ""},
		{"type: a required attribute that is null", raw("id", "null"), []with{formatted}, 400, nil, ": id"},
		{"type: an object", raw("ext", `{"a":1}`), []with{formatted}, 400, nil, "extension"},
		{"type: an array", raw("ext", `[1]`), []with{formatted}, 400, nil, "extension"},
		{"type: a timestamp", raw("time", `"yesterday"`), []with{formatted}, 400, nil, ": time"},
		{"type: a URI-reference", raw("source", `"%zz"`), []with{formatted}, 400, nil, ": source"},
		{"data: base64", structured(map[string]any{"datacontenttype": "application/octet-stream", "data_base64": "/+8="}), []with{formatted}, 202, hasData("\xff\xef"), ""},
		{"data: not base64", structured(map[string]any{"data_base64": "?"}), []with{formatted}, 400, nil, "data_base64"},
		{"data: JSON", understood(typed("application/json", `{"a":[1]}`)), []with{formatted}, 202, hasData(`{"a":[1]}`), ""},
		{"data: any JSON subtype", understood(typed("example/json; a=b", `{"a":[1]}`)), []with{formatted}, 202, hasData(`{"a":[1]}`), ""},
		{"data: JSON in capitals", understood(typed("Application/JSON", `{"a":[1]}`)), []with{formatted}, 202, hasData(`{"a":[1]}`), ""},
		{"data: any +json subtype", understood(typed("example/vnd.a+json", `[1]`)), []with{formatted}, 202, hasData(`[1]`), ""},
		{"data: a JSON string stays one", understood(typed("application/json", `"{\"a\":1}"`)), []with{formatted}, 202, hasData(`"{\"a\":1}"`), ""},
		{"data: a string that is not JSON", understood(typed("application/xml", `"<much wow=\"xml\"/>"`)), []with{formatted}, 202, hasData(`<much wow="xml"/>`), ""},
		{"data: not a string, and not JSON", typed("application/xml", `{}`), []with{formatted}, 400, nil, "not a string"},
		{"data: null", understood(typed("application/json", `null`)), []with{formatted}, 202, hasData(`null`), ""},
		{"data: no media type is JSON", raw("data", `{"a":1}`), []with{formatted}, 202, hasData(`{"a":1}`), ""},
		{"data: two of them", raw("data", `1,"data_base64":"YQ=="`), []with{formatted}, 400, nil, "exclude"},
		{"batch: empty", "[]", []with{media("application/cloudevents-batch+json")}, 202, nil, ""},
		{"batch: not an array", structured(nil), []with{media("application/cloudevents-batch+json")}, 400, nil, "array"},
		{"batch: what is in it is no event", "[1]", []with{media("application/cloudevents-batch+json")}, 400, nil, "event 1"},

		// CloudEvents 1.0.2.
		{"names: capitals", structured(map[string]any{"Ext": "a"}), []with{formatted}, 400, nil, "extension"},
		{"names: signs", structured(map[string]any{"my-ext": "a"}), []with{formatted}, 400, nil, "extension"},
		{"names: long ones", structured(map[string]any{"anextensionwithalongname1": "a"}), []with{formatted}, 202, has("anextensionwithalongname1", "a"), ""},
		{"names: one that is there twice", `{"ext":"a","ext":"b",` + structured(nil)[1:], []with{formatted}, 400, nil, "each name once"},
		{"strings: half a surrogate", `{"ext":"\ud800",` + structured(nil)[1:], []with{formatted}, 400, nil, "not a JSON object"},
		{"strings: control characters", structured(map[string]any{"ext": "a\u0085b"}), []with{formatted}, 400, nil, "extension"},
		{"strings: control characters in a header", `{}`, binaryEvent("ce-ext", "a%0Ab"), 400, nil, "extension"},
		{"strings: noncharacters", structured(map[string]any{"ext": "\ufdd0"}), []with{formatted}, 400, nil, "extension"},
		{"attributes: an empty id", structured(map[string]any{"id": ""}), []with{formatted}, 400, nil, ": id"},
		{"attributes: an empty source", structured(map[string]any{"source": ""}), []with{formatted}, 400, nil, ": source"},
		{"attributes: no type", structured(map[string]any{"type": nil}), []with{formatted}, 400, nil, ": type"},
		{"attributes: another version", structured(map[string]any{"specversion": "2.0"}), []with{formatted}, 400, nil, "specversion"},
		{"attributes: a relative dataschema", structured(map[string]any{"dataschema": "a"}), []with{formatted}, 400, nil, ": dataschema"},
		{"attributes: an empty subject", structured(map[string]any{"subject": ""}), []with{formatted}, 400, nil, "subject"},
		{"size: 64 KiB", raw("data", `"`+strings.Repeat("a", 64<<10)+`"`), []with{formatted}, 202, nil, ""},
		{"types: unknown ones", structured(map[string]any{"type": "com.example.other", "data": json.RawMessage(flux)}), []with{formatted}, 202, nil, ""},

		// HTTP Web Hooks 1.0.2.
		{"delivery: no payload", "", append(binaryEvent("", ""), func(r *http.Request, _ string) { r.Header.Del("Content-Type") }), 202, nil, ""},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, c := range clauses() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			w := b.send(t, c.body, append(c.with, bearer(tokenKey))...)
			wantStatus(t, w, c.status)
			if c.says != "" && !strings.Contains(errorOf(t, w), c.says) {
				t.Errorf("%s does not say %s", w.Body, c.says)
			}
			if c.check != nil {
				if b.router.seen() != 1 {
					t.Fatalf("%d events came out", b.router.seen())
				}
				c.check(t, b.router.routed[0])
			}
		})
	}
}

// TestConformanceTable: each row of docs/cloudevents.md names tests that there are, and each clause above is in it.
func TestConformanceTable(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	files, err := filepath.Glob("*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declared := range file.Decls {
			if f, ok := declared.(*ast.FuncDecl); ok && strings.HasPrefix(f.Name.Name, "Test") {
				there[f.Name.Name] = true
			}
		}
	}
	for _, c := range clauses() {
		there["TestConformance: "+c.name] = true
	}
	doc, err := os.ReadFile("../docs/cloudevents.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test[^`]+)`")
	rows, found := 0, map[string]bool{}
	for line := range strings.SplitSeq(string(doc), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| clause") {
			continue
		}
		rows++
		tests := named.FindAllStringSubmatch(line[strings.LastIndex(strings.TrimSuffix(line, " |"), " | "):], -1)
		if len(tests) == 0 {
			t.Errorf("no test is named in %s", line)
		}
		for _, test := range tests {
			if found[test[1]] = true; !there[test[1]] {
				t.Errorf("there is no %s, which is named in %s", test[1], line)
			}
		}
	}
	if rows < 40 {
		t.Errorf("the table has %d rows", rows)
	}
	for _, c := range clauses() {
		if name := fmt.Sprint("TestConformance: ", c.name); !found[name] {
			t.Errorf("%s is in no row", name)
		}
	}
}
