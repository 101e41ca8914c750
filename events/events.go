// Package events takes in what others saw: CloudEvents 1.0 over HTTP, and the JSON that Flux posts, which becomes a
// CloudEvent first. It finds out who sent a request, asks a Router which Secrets its events are about and a Requester to ask for
// their refresh, and answers when that is durable. It knows neither Flux nor Kubernetes.
package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/semaphore"
)

// Path is where events are posted; everything else is 404.
const Path = "/events"

// DefaultMaxAge stands for a zero Config.MaxAge.
const DefaultMaxAge = 10 * time.Minute

// MaxSize is how many bytes a request's body, or what Handle is given, may have.
const MaxSize = 256 << 10

// What is taken of one request, and of all at once.
const (
	maxBatch      = 100
	maxAttributes = 100 // of one event, with its data
	// maxBatchAttributes is how many attributes a batch may have in all: twenty for each event. Each takes ten times the memory that it has in the body.
	maxBatchAttributes = 2000
	// maxIdentity is how many bytes an event's id may have, which every answer repeats, and its source.
	maxIdentity = 2048
	// maxParallel is for how many events or targets of one request the Router or the Requester is called at once. With two calls each to the
	// Kubernetes API, a full batch about as many targets passes within apiTimeout where a call takes 300 ms.
	maxParallel = 25
	// apiTimeout bounds all that the Router and the Requester do for one request. Flux's notification-controller gives
	// an event 15 s with all its retries.
	apiTimeout = 5 * time.Second
	// maxAhead is how far the clock of a sender may be ahead of ours.
	maxAhead = time.Minute
)

// The CloudEvent types that are understood.
const (
	// TypeFlux carries a Flux event as JSON.
	TypeFlux = "io.fluxcd.event"
	// TypeRefreshRequested asks for a refresh of the target Secret that its subject names, as namespace/name.
	TypeRefreshRequested = "flux-token-refresher.refresh.requested"
)

// Verdict is what an event means for the token.
type Verdict string

// The verdicts.
const (
	AuthFailure         Verdict = "auth-failure"
	PossibleAuthFailure Verdict = "possible-auth-failure"
	Unrelated           Verdict = "unrelated"
	RefreshRequested    Verdict = "refresh-requested"
)

// Outcome is what became of an event.
type Outcome string

// The outcomes, the strongest first: it is the one of an event with several targets.
const (
	Requested Outcome = "requested"
	Coalesced Outcome = "coalesced"
	Ignored   Outcome = "ignored"
)

// Event is a CloudEvent, and what was read in the data of one whose type is TypeFlux. Its data is memory of the request that it came in: it is there
// until the Router and the Requester return.
type Event struct {
	event.Event
	// Content is what the Decoder makes of the data, for the Router, so that nobody reads it twice; nil of other types.
	Content any
}

// Decoder makes an Event of type TypeFlux, with an id derived from the body and with its Content, from the JSON that Flux posts. Its
// errors say that the body is none, and their text is shown to nobody, because it may quote the body. The body is memory that the next request is
// read into: but for the event's data, nothing may keep a part of it.
type Decoder func(body []byte) (Event, error)

// Router finds out what an event of an understood type means, and whose Secret it concerns. Safe for concurrent use.
type Router interface {
	// Classify says what e means, of a sender that may speak of the objects of those namespaces for which may is true. It calls nobody.
	Classify(e Event, may func(namespace string) bool) Classification
	// Targets gives the Secrets to refresh for e, whose verdict is not Unrelated, as namespace/name, sorted. An error means that it could not
	// find out now: the sender is asked to come again.
	Targets(ctx context.Context, e Event) ([]string, error)
}

// Classification is what an event means.
type Classification struct {
	Verdict Verdict
	// Rule names what decided.
	Rule string
}

// Requester asks for the refresh of a target Secret. Safe for concurrent use.
type Requester interface {
	// Request is durable when it returns without an error. Again with the same sender, source and id it changes nothing: a sender
	// repeats everything when a part failed. The span in ctx is that of this request alone.
	Request(ctx context.Context, target string, ask Ask) (Outcome, error)
}

// Ask is who asks for a refresh, and why.
type Ask struct {
	// Sender is the name of the authenticated one; Source and ID are the event's own and identify it among the sender's.
	Sender, Source, ID string
	Verdict            Verdict
	// Time is when it happened, by the event; Received is when it came.
	Time, Received time.Time
	// TraceParent is the W3C traceparent of the request's span; "" when nothing is traced.
	TraceParent string
}

// Config says who may send what. Decoder is required.
type Config struct {
	// Senders are required by Handler; Handle asks nobody for a proof.
	Senders []Sender
	Decoder Decoder
	// MaxAge is how long ago an event may have happened; zero is DefaultMaxAge. A signed body can be
	// replayed for that long, to receivers that did not take it yet.
	MaxAge time.Duration
	// Logger hears what was asked for, and once a minute what was refused; nil is slog's default.
	Logger *slog.Logger
	// TracerProvider takes the spans "POST /events" (of Handle: "event") and "refresh.request"; nil takes none.
	TracerProvider trace.TracerProvider
	// MeterProvider takes token_refresher.events; nil takes none.
	MeterProvider metric.MeterProvider
}

// Handler serves Path. It fails when something that is required is missing, or a sender's key cannot be read or is too short.
// The server around it is one that Guard has seen, and bounds headers, idle connections, and the time to write an answer (WriteTimeout; else the
// shorter one for an answer would stay with the connection).
func Handler(c Config, router Router, requester Requester) (http.Handler, error) {
	if err := validate(c.Senders); err != nil {
		return nil, err
	}
	return newReceiver(c, router, requester)
}

func newReceiver(c Config, router Router, requester Requester) (*receiver, error) {
	if c.Decoder == nil || router == nil || requester == nil {
		return nil, errors.New("a decoder, a router and a requester are required")
	}
	if c.MaxAge < 0 {
		return nil, fmt.Errorf("maxAge must be longer than 0, not %s", c.MaxAge)
	}
	if c.MaxAge == 0 {
		c.MaxAge = DefaultMaxAge
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.TracerProvider == nil {
		c.TracerProvider = tracenoop.NewTracerProvider()
	}
	if c.MeterProvider == nil {
		c.MeterProvider = metricnoop.NewMeterProvider()
	}
	instruments, err := newInstruments(c.TracerProvider, c.MeterProvider)
	if err != nil {
		return nil, err
	}
	return &receiver{
		Config:      c,
		router:      router,
		requester:   requester,
		instruments: instruments,
		turns:       semaphore.NewWeighted(maxHandled),
		replays:     newReplays(c.MaxAge),
		complaints:  complaints{logger: c.Logger, said: map[complaint]said{}},
	}, nil
}
