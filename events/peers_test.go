package events_test

// What other systems send, as they document it, and how far that is taken.

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"flux-token-refresher/events"
)

// exchange is a request as it stands on the wire, but for its lengths, TIME and TOKEN; and what comes of it.
type exchange struct {
	name    string
	request string
	status  int
	// body is how the answer begins, headers what it has; target is what was asked for, "" nothing.
	body    string
	headers map[string]string
	target  string
}

func (e exchange) try(t *testing.T) {
	b := newBench(t)
	head, body, _ := strings.Cut(strings.TrimLeft(e.request, "\n"), "\n\n")
	body = strings.ReplaceAll(body, "TIME", time.Now().UTC().Format("2006-01-02T15:04:05.0000000Z"))
	head = strings.NewReplacer("TIME", time.Now().UTC().Format(time.RFC3339Nano), "TOKEN", tokenKey, "\n", "\r\n").Replace(head)
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + "\r\n\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	r = r.WithContext(t.Context())
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	wantStatus(t, w, e.status)
	if got := w.Body.String(); !strings.HasPrefix(got, e.body) || e.body == "" && got != "" {
		t.Errorf("answered %s, want %s", got, e.body)
	}
	for name, want := range e.headers {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	var target string
	for _, made := range b.requester.made() {
		target = made.target
		if made.Sender != "broker" {
			t.Errorf("it is of %s", made.Sender)
		}
	}
	if target != e.target {
		t.Errorf("asked for %q, want %q", target, e.target)
	}
}

// TestEventGrid: Azure Event Grid's webhooks with the CloudEvents schema. Sources: "Endpoint validation with CloudEvents schema", "CloudEvents v1.0
// schema with Azure Event Grid", "Custom delivery properties" (whose example is an Authorization header) and "Authenticate event
// delivery to event handlers", learn.microsoft.com/azure/event-grid.
func TestEventGrid(t *testing.T) {
	t.Parallel()
	const requested = `"specversion": "1.0", "type": "` + events.TypeRefreshRequested + `", "source": "/subscriptions/1/resourceGroups/a/providers/Microsoft.EventGrid/topics/pipelines",
  "id": "9aeb0fdf-c01e-0131-0922-9eb54906e209", "time": "TIME", "subject": "apps/repos", "data": {"run": 17}`
	for _, e := range []exchange{
		{"the handshake", `
OPTIONS /events HTTP/1.1
Host: refresher.example.com
WebHook-Request-Origin: eventgrid.azure.net
WebHook-Request-Callback: https://westus2.eventgrid.azure.net/eventsubscriptions/flux/validate?id=1&t=2026-01-01T00:00:00Z
WebHook-Request-Rate: 120

`, 200, "", map[string]string{"WebHook-Allowed-Origin": "eventgrid.azure.net", "WebHook-Allowed-Rate": "*", "Allow": "POST, OPTIONS"}, ""},
		{"an event of a custom topic", `
POST /events HTTP/1.1
Host: refresher.example.com
Authorization: BEARER TOKEN
Content-Type: application/cloudevents+json; charset=utf-8
WebHook-Request-Origin: eventgrid.azure.net
aeg-delivery-count: 0
aeg-event-type: Notification
aeg-subscription-name: FLUX

{` + requested + `}`, 202, `{"id":"9aeb0fdf-c01e-0131-0922-9eb54906e209","verdict":"refresh-requested"`, nil, "apps/repos"},
		{"a batch", `
POST /events HTTP/1.1
Host: refresher.example.com
Authorization: Bearer TOKEN
Content-Type: application/cloudevents-batch+json; charset=utf-8

[{` + requested + `}]`, 202, `[{"id":"9aeb0fdf-c01e-0131-0922-9eb54906e209"`, nil, "apps/repos"},
		{"an event of a storage account", `
POST /events HTTP/1.1
Host: refresher.example.com
Authorization: Bearer TOKEN
Content-Type: application/cloudevents+json; charset=utf-8

{"specversion": "1.0", "type": "Microsoft.Storage.BlobCreated", "source": "/subscriptions/1/resourceGroups/a/providers/Microsoft.Storage/storageAccounts/b",
 "id": "9aeb0fdf-c01e-0131-0922-9eb549000000", "time": "TIME", "subject": "blobServices/default/containers/c/blobs/d", "data": {"api": "PutBlockList"}}`,
			202, `{"id":"9aeb0fdf-c01e-0131-0922-9eb549000000","verdict":"unrelated","rule":"type"`, nil, ""},
		{"its own schema, which is none of CloudEvents", `
POST /events HTTP/1.1
Host: refresher.example.com
Authorization: Bearer TOKEN
Content-Type: application/json; charset=utf-8

[{"id": "1", "eventType": "recordInserted", "subject": "a", "eventTime": "TIME", "data": {}, "dataVersion": "1.0", "metadataVersion": "1", "topic": "/b"}]`,
			400, `{"error":"event 1: the attribute specversion must be 1.0"}`, nil, ""},
		{"a token of Entra, which changes and is verified by nobody here", `
POST /events HTTP/1.1
Host: refresher.example.com
Authorization: Bearer eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJhcGkifQ.c2lnbmF0dXJl
Content-Type: application/cloudevents+json; charset=utf-8

{` + requested + `}`, 401, `{"error":`, nil, ""},
		{"a key in the query", `
POST /events?code=TOKEN HTTP/1.1
Host: refresher.example.com
Content-Type: application/cloudevents+json; charset=utf-8

{` + requested + `}`, 401, `{"error":`, nil, ""},
	} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			e.try(t)
		})
	}
}

// TestKnative: what a Trigger or a Subscription of Knative Eventing sends to a subscriber. Sources: Knative Eventing Data Plane Contract
// (github.com/knative/specs), "Sender Identity for Knative Eventing" (knative.dev); that a body which is no event fails the delivery is in knative/eventing,
// pkg/broker/filter.
func TestKnative(t *testing.T) {
	t.Parallel()
	const attributes = `Ce-Id: 2b4f5d0e
Ce-Source: /apis/v1/namespaces/ci/pipelines
Ce-Specversion: 1.0
Ce-Subject: apps/repos
Ce-Time: TIME
Ce-Type: ` + events.TypeRefreshRequested + `
Ce-Knativearrivaltime: TIME
Content-Type: application/json
Kn-Namespace: ci
Prefer: reply
Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01

{"run": 17}`
	for _, e := range []exchange{
		{"with a token, by what stands between", "POST /events HTTP/1.1\nHost: refresher\nAuthorization: Bearer TOKEN\n" + attributes, 202, "", nil, "apps/repos"},
		{"without replies", "POST /events HTTP/1.1\nHost: refresher\nAuthorization: Bearer TOKEN\n" + strings.Replace(attributes, "Prefer: reply\n", "", 1),
			202, `{"id":"2b4f5d0e","verdict":"refresh-requested"`, nil, "apps/repos"},
		{"without a proof", "POST /events HTTP/1.1\nHost: refresher\n" + attributes, 401, `{"error":`, nil, ""},
		{"with a token of its ServiceAccount, which changes and is verified by nobody here",
			"POST /events HTTP/1.1\nHost: refresher\nAuthorization: Bearer eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsiYSJdfQ.c2lnbmF0dXJl\n" + attributes, 401, `{"error":`, nil, ""},
		{"a probe", "OPTIONS /events HTTP/1.1\nHost: refresher\n", 200, "", map[string]string{"Allow": "POST, OPTIONS", "WebHook-Allowed-Origin": ""}, ""},
	} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			e.try(t)
		})
	}
}

// TestArgoEvents: what the HTTP trigger of a Sensor of Argo Events sends: the JSON that its payload makes, and the headers that it names, a
// Content-Type among them only then. Sources: "HTTP Trigger" (argoproj.github.io/argo-events) and argoproj/argo-events,
// pkg/sensors/triggers/http.
func TestArgoEvents(t *testing.T) {
	t.Parallel()
	const payload = `

{"specversion":"1.0","type":"` + events.TypeRefreshRequested + `","id":"34653232","source":"/argo-events/webhook","subject":"apps/repos","time":"TIME"}`
	for _, e := range []exchange{
		{"a CloudEvent as payload", "POST /events HTTP/1.1\nHost: refresher\nAuthorization: Bearer TOKEN\nContent-Type: application/json\nUser-Agent: Go-http-client/1.1" + payload,
			202, `{"id":"34653232","verdict":"refresh-requested"`, nil, "apps/repos"},
		{"without a media type", "POST /events HTTP/1.1\nHost: refresher\nAuthorization: Bearer TOKEN" + payload, 415, `{"error":`, nil, ""},
		{"basic authentication", "POST /events HTTP/1.1\nHost: refresher\nAuthorization: Basic TOKEN\nContent-Type: application/json" + payload, 401, `{"error":`, nil, ""},
	} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			e.try(t)
		})
	}
}
