// Flux's JSON in, a CloudEvent out, and back; what is refused, and that a refusal quotes nothing.

package flux_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"

	"flux-token-refresher/flux"
)

// posted is an event as notification-controller of Flux 2.10 posts it.
const posted = `{
  "involvedObject": {"kind": "GitRepository", "namespace": "flux-system", "name": "fleet.main", "uid": "1b0a", "apiVersion": "source.toolkit.fluxcd.io/v1", "resourceVersion": "42"},
  "severity": "error",
  "timestamp": "2026-03-01T10:00:00Z",
  "message": "unable to clone 'https://u:p@dev.azure.com/o/p/_git/r': authentication required: <html>",
  "reason": "GitOperationFailed",
  "action": "Reconcile",
  "relatedObject": {"kind": "Secret", "name": "fleet"},
  "metadata": {"source.toolkit.fluxcd.io/revision": "main@sha1:8a4d0ab"},
  "reportingController": "source-controller",
  "reportingInstance": "source-controller-7f4"
}`

func TestDecode(t *testing.T) {
	t.Parallel()
	ce, e, err := flux.Decode([]byte(posted))
	if err != nil {
		t.Fatal(err)
	}
	if err := ce.Validate(); err != nil {
		t.Error(err)
	}
	sum := sha256.Sum256([]byte(posted))
	got := []string{ce.SpecVersion(), ce.Type(), ce.ID(), ce.Source(), ce.Subject(), ce.Time().UTC().Format(time.RFC3339), ce.DataContentType(), string(ce.Data())}
	want := []string{
		"1.0", "io.fluxcd.event", hex.EncodeToString(sum[:]),
		"/apis/source.toolkit.fluxcd.io/v1/namespaces/flux-system/GitRepository/fleet.main",
		"flux-system/GitRepository/fleet.main", "2026-03-01T10:00:00Z", "application/json", posted,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	if diff := cmp.Diff(flux.Event{
		InvolvedObject: flux.Object{
			APIVersion: "source.toolkit.fluxcd.io/v1", Kind: "GitRepository", Namespace: "flux-system", Name: "fleet.main", UID: "1b0a",
		},
		Severity:  "error",
		Timestamp: time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC),
		Message:   "unable to clone 'https://u:p@dev.azure.com/o/p/_git/r': authentication required: <html>",
		Reason:    "GitOperationFailed",
	}, e); diff != "" {
		t.Error(diff)
	}
}

// A CloudEvent that went on in the structured mode: its data is a JSON value, or base64.
func TestStructured(t *testing.T) {
	t.Parallel()
	made, _, err := flux.Decode([]byte(posted))
	if err != nil {
		t.Fatal(err)
	}
	structured, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(structured), `"data":{`) {
		t.Errorf("the data is not sent as JSON: %s", structured)
	}
	for _, base64 := range []bool{false, true} {
		made.DataBase64 = base64
		structured, err := json.Marshal(made)
		if err != nil {
			t.Fatal(err)
		}
		var received event.Event
		if err := json.Unmarshal(structured, &received); err != nil {
			t.Fatal(err)
		}
		if _, e, err := flux.Decode(received.Data()); err != nil || e.InvolvedObject.Name != "fleet.main" {
			t.Errorf("base64 %v: %+v, %v", base64, e, err)
		}
	}
}

// Every Flux since 2.0, and whatever it may add, is taken.
func TestDecodeLenient(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"involvedObject":{"kind":"GitRepository","namespace":"a","name":"b"},"timestamp":"2026-03-01T10:00:00Z"}`,
		`{"involvedObject":{"apiVersion":"v1","kind":"Bucket","namespace":"a","name":"b"},"timestamp":"2026-03-01T12:00:00.123456+02:00","severity":"info"}`,
		`{"involvedObject":{"kind":"Bucket","namespace":"a","name":"b","resourceVersion":1},"timestamp":"2026-03-01T10:00:00Z","metadata":[1],"action":{},"relatedObject":null}`,
		` {"new":[{}],"involvedObject":{"kind":"Bucket","namespace":"a","name":"b"},"timestamp":"2026-03-01T10:00:00Z","message":"\ud800"} `,
	} {
		ce, _, err := flux.Decode([]byte(body))
		if err == nil {
			err = ce.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// TestLongMessage: wherever a long message is cut, it begins as it did, and has all that Classify reads.
func TestLongMessage(t *testing.T) {
	t.Parallel()
	const read = 2048
	for _, filling := range []string{"<", `\`, "\n", "ü", "😀", "a"} {
		for shift := range 7 {
			message := "unable to clone 'https://dev.azure.com/o/p/_git/r': authentication required: " + strings.Repeat("a", shift) + strings.Repeat(filling, 30_000)
			body, err := json.Marshal(flux.Event{
				InvolvedObject: flux.Object{Kind: "GitRepository", Namespace: "a", Name: "b"}, Timestamp: time.Now(), Message: flux.Message(message),
			})
			if err != nil {
				t.Fatal(err)
			}
			_, e, err := flux.Decode(body)
			if err != nil {
				t.Fatalf("%d times %q: %v", shift, filling, err)
			}
			kept := strings.TrimRight(string(e.Message), "\ufffd") // of the character that it was cut in
			if len(kept) < read || len(kept) > 6*(read+1) || !strings.HasPrefix(message, kept) {
				t.Errorf("%q after %d: %d bytes are kept: …%q", filling, shift, len(kept), kept[max(len(kept)-20, 0):])
			}
		}
	}
	long := strings.Replace(posted, `"message": "`, `"message": [1`+strings.Repeat(",1", 20_000)+`], "more": "`, 1)
	if _, _, err := flux.Decode([]byte(long)); err == nil || err.Error() != "message: wrong type" {
		t.Errorf("%v, want that the message is of the wrong type", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	with := func(old, replacement string) string { return strings.Replace(posted, old, replacement, 1) }
	for _, c := range []struct{ name, body, want string }{
		{"nothing", "", "the event is not JSON"},
		{"not JSON", "s3cret", "the event is not JSON"},
		{"cut off", posted[:len(posted)-1], "the event is not JSON"},
		{"two", posted + posted, "the event is not JSON"},
		{"a list", "[" + posted + "]", "the event is not a JSON object"},
		{"a string", `"s3cret"`, "the event is not a JSON object"},
		{"null", "null", "involvedObject.kind: missing"},
		{"no object", with("involvedObject", "s3cret"), "involvedObject.kind: missing"},
		{"an object of another type", with(`"name": "fleet.main"`, `"name": {"s3cret":1}`), "involvedObject.name: wrong type"},
		{"a message of another type", with(`"message": "`, `"message": 1, "s3cret": "`), "message: wrong type"},
		{"no kind", with(`"kind": "GitRepository", `, ""), "involvedObject.kind: missing"},
		{"no namespace", with(`"namespace": "flux-system", `, ""), "involvedObject.namespace: missing"},
		{"no name", with(`"name": "fleet.main", `, ""), "involvedObject.name: missing"},
		{"kind", with("GitRepository", "Git/Repository"), "involvedObject.kind: not a name of a kind"},
		{"long kind", with("GitRepository", strings.Repeat("K", 64)), "involvedObject.kind: not a name of a kind"},
		{"namespace", with("flux-system", "../s3cret"), "involvedObject.namespace: not a name of a namespace"},
		{"long namespace", with("flux-system", strings.Repeat("n", 64)), "involvedObject.namespace: not a name of a namespace"},
		{"name", with("fleet.main", "S3cret\\n"), "involvedObject.name: not a name of an object"},
		{"long name", with("fleet.main", strings.Repeat("n", 254)), "involvedObject.name: not a name of an object"},
		{"version", with("fluxcd.io/v1", "fluxcd.io/v1/s3cret"), "involvedObject.apiVersion: not group/version"},
		{"no version", with("fluxcd.io/v1", "fluxcd.io/"), "involvedObject.apiVersion: not group/version"},
		{"no group", with("source.toolkit.fluxcd.io/", "/"), "involvedObject.apiVersion: not group/version"},
		{"no time", with("timestamp", "s3cret"), "timestamp: missing"},
		{"time null", with(`"2026-03-01T10:00:00Z"`, "null"), "timestamp: missing"},
		{"zero time", with("2026-03-01T10:00:00Z", "0001-01-01T00:00:00Z"), "timestamp: missing"},
		{"time", with("2026-03-01T10:00:00Z", "s3cret"), "timestamp: not a time as of RFC 3339"},
		{"time of another type", with(`"2026-03-01T10:00:00Z"`, "1772359200"), "timestamp: not a time as of RFC 3339"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ce, _, err := flux.Decode([]byte(c.body))
			if err == nil || err.Error() != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
			if ce.Context != nil {
				t.Errorf("an event beside the error: %v", ce)
			}
		})
	}
}

// FuzzNames: the names of an object are taken as Kubernetes' own validation takes them.
func FuzzNames(f *testing.F) {
	f.Add("GitRepository", "flux-system", "fleet.main", "source.toolkit.fluxcd.io/v1")
	f.Add("2", "1-2", "a..b", "/v1")
	f.Add("2Repository", "a", "a", "")
	f.Add("Repository", "a", "a", "1/2")
	f.Add(strings.Repeat("k", 64), "a", "a", "")
	f.Add("Repository", strings.Repeat("n", 64), "a", "")
	f.Add("Repository", "a", strings.Repeat("n", 254), "")
	f.Add("Repository", "a", "a", strings.Repeat("g", 254)+"/v1")
	f.Add("K-", "-a", ".a", "v1/")
	f.Add("k8s", "a.b", "a-.b", "a/b/c")
	f.Add(strings.Repeat("k", 64), strings.Repeat("n", 63), strings.Repeat("n", 253), strings.Repeat("v", 63))
	f.Add(strings.Repeat("k", 63), strings.Repeat("n", 64), strings.Repeat("n", 254), strings.Repeat("v", 64))
	f.Fuzz(func(t *testing.T, kind, namespace, name, apiVersion string) {
		o := flux.Object{Kind: kind, Namespace: namespace, Name: name, APIVersion: apiVersion}
		body, err := json.Marshal(flux.Event{InvolvedObject: o, Timestamp: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		group, version, grouped := strings.Cut(apiVersion, "/")
		if !grouped {
			version = group
		}
		wrong := slices.Concat(validation.IsDNS1035Label(strings.ToLower(kind)), validation.IsDNS1123Label(namespace), validation.IsDNS1123Subdomain(name))
		if grouped {
			wrong = append(wrong, validation.IsDNS1123Subdomain(group)...)
		}
		if apiVersion != "" {
			wrong = append(wrong, validation.IsDNS1035Label(version)...)
		}
		if _, _, err := flux.Decode(body); (err == nil) != (len(wrong) == 0) {
			t.Errorf("%+v: %v; Kubernetes says %q", o, err, wrong)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(posted))
	f.Add([]byte(`{"involvedObject":{"kind":"K","namespace":"n","name":"n"},"timestamp":"2026-03-01T10:00:00Z"}`))
	f.Add([]byte(`{"timestamp":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		ce, e, err := flux.Decode(body)
		if err != nil {
			if len(err.Error()) > 80 {
				t.Errorf("%q quotes the event", err)
			}
			return
		}
		if err := ce.Validate(); err != nil {
			t.Errorf("%q became an invalid CloudEvent: %v", body, err)
		}
		flux.Classify(e)
	})
}
