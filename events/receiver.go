package events

// The way of a request: a place, its body, its sender, its events, their routes, the requests, the answer.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
)

type receiver struct {
	Config
	router      Router
	requester   Requester
	instruments *instruments
	// places holds one value for each request under way.
	places     chan struct{}
	complaints complaints
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	switch {
	case request.URL.Path != Path:
		http.NotFound(w, request)
	case request.Method == http.MethodOptions:
		handshake(w, request)
	default:
		ctx, body, err := r.receive(w, request)
		if err == nil {
			write(w, http.StatusAccepted, body)
			return
		}
		refusal := asRefusal(err)
		r.instruments.refused(ctx, refusal.why)
		r.complaints.about(ctx, request.RemoteAddr, refusal)
		refusal.write(w)
	}
}

// receive makes the checks in the order of the answers that they give. The context is that of the request's span, if it
// came so far; body is what to answer.
func (r *receiver) receive(w http.ResponseWriter, request *http.Request) (ctx context.Context, body any, err error) {
	ctx = request.Context()
	received := time.Now()
	if request.Method != http.MethodPost {
		return ctx, nil, refuse(notAllowed, "events are posted")
	}
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	default:
		return ctx, nil, refuse(tooMany, "too many requests at once; try again")
	}
	content, err := read(w, request)
	if err != nil {
		return ctx, nil, err
	}
	sender, wholeRequest, err := authenticate(r.Senders, request.Header, content)
	if err != nil {
		return ctx, nil, err
	}
	// Now it is known who speaks. Before, there is no span, no word of the content anywhere, and no call to anybody.
	ctx, span := r.instruments.start(request, sender, wholeRequest, received)
	defer func() { span.end(err) }()
	answers, batch, err := r.handle(ctx, span, sender, request.Header, content, received)
	if err != nil || batch {
		return ctx, answers, err
	}
	return ctx, answers[0], nil
}

// handle does all that there is to do about events whose sender is known; batch says that there may be other than one.
func (r *receiver) handle(ctx context.Context, span span, sender Sender, header http.Header, content []byte, received time.Time) (answers []Answer, batch bool, err error) {
	events, batch, err := decode(header, content, r.Decoder)
	if err != nil {
		return nil, batch, err
	}
	span.about(events, batch)
	for i, e := range events {
		if err := check(e, r.Decoder, received, r.MaxAge); err != nil {
			if batch {
				err = ofBatch(i, err)
			}
			return nil, batch, err
		}
	}
	answers, err = r.take(ctx, sender, events, received)
	if err == nil && !batch {
		span.SetAttributes(answers[0].attributes()...)
	}
	return answers, batch, err
}

// read takes the body, bounded in size and time. net/http lifts the deadline where the body ends.
func read(w http.ResponseWriter, request *http.Request) ([]byte, error) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // every server of net/http can
	content, err := io.ReadAll(http.MaxBytesReader(w, request.Body, MaxSize))
	if _, larger := errors.AsType[*http.MaxBytesError](err); larger {
		return nil, refuse(tooLarge, fmt.Sprintf("a body may have %d bytes", MaxSize))
	}
	if err != nil {
		return nil, refuse(invalid, fmt.Sprintf("the body did not arrive whole within %s", bodyTimeout))
	}
	return content, nil
}

// take finds the route of every event before it asks for anything. What was asked for when a later request fails stays: the
// sender repeats the whole, and asking again changes nothing.
func (r *receiver) take(ctx context.Context, sender Sender, events []event.Event, received time.Time) ([]Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	answers := make([]Answer, len(events))
	for i, e := range events {
		route := Route{Verdict: Unrelated, Rule: "type"}
		if understood(e.Type()) {
			var err error
			if route, err = r.router.Route(ctx, e, sender.may); err != nil {
				return nil, refuse(unavailable, "the Kubernetes API did not tell whose Secret this is about; try again").
					because(fmt.Errorf("finding the targets of an event from sender %q: %w", sender.Name, err))
			}
		}
		answers[i] = Answer{ID: e.ID(), Verdict: route.Verdict, Rule: route.Rule, Targets: append([]string{}, route.Targets...), Outcome: Ignored}
	}
	for i := range answers {
		if err := r.request(ctx, sender, events[i], &answers[i], received); err != nil {
			return nil, err
		}
	}
	for i, a := range answers {
		r.instruments.took(ctx, sender, events[i].Type(), a)
	}
	return answers, nil
}

// request asks for the refresh of each target of an event, and fills in what came of it.
func (r *receiver) request(ctx context.Context, sender Sender, e event.Event, a *Answer, received time.Time) error {
	for _, target := range a.Targets {
		ctx, span := r.instruments.startRequest(ctx, sender, e, *a, target)
		outcome, err := r.requester.Request(ctx, target, Ask{
			Sender: sender.Name, Source: e.Source(), ID: e.ID(),
			Verdict: a.Verdict,
			Time:    e.Time(), Received: received,
			TraceParent: traceParent(ctx),
		})
		if err != nil {
			err = refuse(unavailable, "the Kubernetes API did not take the request; try again").
				because(fmt.Errorf("asking for a refresh of %s for sender %q: %w", target, sender.Name, err))
		}
		span.outcome(outcome, err)
		if err != nil {
			return err
		}
		level := slog.LevelDebug
		if outcome == Requested {
			level = slog.LevelInfo
		}
		r.Logger.Log(ctx, level, "an event asks for a refresh", "target", target, "outcome", string(outcome), "sender", sender.Name,
			"type", short(e.Type()), "id", short(e.ID()), "verdict", string(a.Verdict), "rule", a.Rule)
		a.Outcome = stronger(a.Outcome, outcome)
	}
	return nil
}

func understood(eventType string) bool {
	return eventType == TypeFlux || eventType == TypeRefreshRequested
}

func stronger(a, b Outcome) Outcome {
	for _, o := range []Outcome{Requested, Coalesced} {
		if a == o || b == o {
			return o
		}
	}
	return Ignored
}
