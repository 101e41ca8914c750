package events

// The way of a request that came in: a place, its events, their routes, the requests, the answer.

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

type receiver struct {
	Config
	router      Router
	requester   Requester
	instruments *instruments
	places      places
	turns       *semaphore.Weighted
	replays     replays
	complaints  complaints
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	switch {
	case request.URL.Path != Path:
		http.NotFound(w, request)
	case request.Method == http.MethodOptions:
		handshake(w, request)
	default:
		r.serve(w, request)
	}
}

func (r *receiver) serve(w http.ResponseWriter, request *http.Request) {
	if ctx, sender, err := r.receive(w, request); err != nil {
		r.refuse(ctx, w, request, sender, asRefusal(err))
	}
}

// receive answers a request that is taken. The context is that of its span, if it came so far, and the sender is who it proved to be from.
func (r *receiver) receive(w http.ResponseWriter, request *http.Request) (ctx context.Context, sender Sender, err error) {
	received := time.Now()
	sender, place, err := r.admit(w, request)
	defer r.places.leave(place)
	if err != nil {
		return request.Context(), sender, err
	}
	ctx, err = r.answer(w, request, sender, place, received)
	return ctx, sender, err
}

// answer is for requests that were admitted. Before, there is no span, no word of the content anywhere, and no call to anybody.
func (r *receiver) answer(w http.ResponseWriter, request *http.Request, sender Sender, place *place, received time.Time) (ctx context.Context, err error) {
	ctx, span := r.instruments.start(request, sender, received)
	defer func() { span.end(err) }()
	if err := r.turn(ctx); err != nil {
		return ctx, err
	}
	defer r.turns.Release(1)
	answers, batch, err := r.handle(ctx, span, sender, request.Header, place.body.Bytes(), received)
	if err != nil {
		return ctx, err
	}
	answered(request.Context())
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout)) // every server of net/http has it
	if batch {
		accept(w, request.Header, answers)
	} else {
		accept(w, request.Header, answers[0])
	}
	return ctx, nil
}

// refuse answers a request that is not taken.
func (r *receiver) refuse(ctx context.Context, w http.ResponseWriter, request *http.Request, sender Sender, refusal *refusal) {
	r.instruments.refused(ctx, refusal.why)
	r.complaints.about(ctx, request.RemoteAddr, sender, refusal)
	answered(request.Context())
	refusal.write(w)
	if strangers[refusal.why] && request.Close {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.CopyN(io.Discard, request.Body, MaxSize)
	}
}

// turn waits until there are fewer than maxHandled requests that are being handled.
func (r *receiver) turn(ctx context.Context) error {
	if r.turns.TryAcquire(1) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if r.turns.Acquire(ctx, 1) != nil {
		return errTooMany
	}
	return nil
}

// handle does all that there is to do about events whose sender is known; batch says that there may be other than one.
func (r *receiver) handle(ctx context.Context, span *span, sender Sender, header http.Header, content []byte, received time.Time) (answers []Answer, batch bool, err error) {
	events, batch, err := decode(header, content, r.Decoder)
	if err != nil {
		return nil, batch, err
	}
	span.about(events, batch)
	for i := range events {
		if err := check(&events[i], r.Decoder, received, r.MaxAge); err != nil {
			if batch {
				err = ofBatch(i, err)
			}
			return nil, batch, err
		}
	}
	answers, err = r.take(ctx, sender, events, received)
	if err == nil && !batch {
		span.answered(answers[0])
	}
	return answers, batch, err
}

// take says what each event means, and asks for what they ask.
func (r *receiver) take(ctx context.Context, sender Sender, events []Event, received time.Time) ([]Answer, error) {
	answers := make([]Answer, len(events))
	var concerned []int
	for i, e := range events {
		c := Classification{Unrelated, "type"}
		if understood(e.Type()) {
			c = r.router.Classify(e, sender.may)
		}
		answers[i] = Answer{ID: e.ID(), Verdict: c.Verdict, Rule: c.Rule, Targets: []string{}, Outcome: Ignored}
		if c.Verdict != Unrelated {
			concerned = append(concerned, i)
		}
	}
	if len(concerned) > 0 {
		if err := r.ask(ctx, sender, events, answers, concerned, received); err != nil {
			return nil, err
		}
	}
	for i, a := range answers {
		r.instruments.took(ctx, sender, events[i].Type(), a)
	}
	return answers, nil
}

// ask finds the targets of every event that is concerned before it asks for anything. What was asked for when another request fails stays: the
// sender repeats the whole, and asking again changes nothing. What is replayed asks for nothing: it was answered.
func (r *receiver) ask(ctx context.Context, sender Sender, events []Event, answers []Answer, concerned []int, received time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	concerned = slices.DeleteFunc(concerned, func(i int) bool {
		before, replayed := r.replays.find(sender, events[i])
		if replayed {
			trace.SpanFromContext(ctx).AddLink(trace.Link{SpanContext: before.span})
			answers[i].concern(before.targets)
		}
		return replayed
	})
	err := each(len(concerned), func(n int) error {
		i := concerned[n]
		targets, err := r.router.Targets(ctx, events[i])
		if err != nil {
			return refuse(unavailable, "the Kubernetes API did not tell whose Secret this is about; try again").
				because(fmt.Errorf("finding the targets of an event from sender %q: %w", sender.Name, err))
		}
		answers[i].concern(targets)
		return nil
	})
	if err != nil {
		return err
	}
	wishes := wishesOf(events, answers, concerned)
	outcomes := make([][]Outcome, len(wishes))
	err = each(len(wishes), func(i int) (err error) {
		outcomes[i], err = r.wish(ctx, sender, events, answers, wishes[i], received)
		return err
	})
	if err != nil {
		return err
	}
	for i, w := range wishes {
		for n, of := range w.events {
			answers[of].Outcome = stronger(answers[of].Outcome, outcomes[i][n])
		}
	}
	for _, i := range concerned {
		r.replays.remember(sender, events[i], answers[i].Targets, trace.SpanContextFromContext(ctx))
	}
	return nil
}

// each calls do with 0 to n-1, several at once, and gives one of the errors.
func each(n int, do func(int) error) error {
	if n == 1 { // no goroutine for that
		return do(0)
	}
	var all errgroup.Group
	all.SetLimit(maxParallel)
	for i := range n {
		all.Go(func() error { return do(i) })
	}
	return all.Wait()
}

// wish is what the events of one request want of one target.
type wish struct {
	target string
	// events are their indexes: those that want another token in any case first, and of each kind the latest first.
	events []int
}

// wishesOf gathers those of the events by their targets, in the order in which these are first named.
func wishesOf(events []Event, answers []Answer, those []int) []wish {
	var wishes []wish
	at := map[string]int{}
	for _, i := range those {
		for _, target := range answers[i].Targets {
			n, known := at[target]
			if !known {
				n = len(wishes)
				at[target], wishes = n, append(wishes, wish{target: target})
			}
			wishes[n].events = append(wishes[n].events, i)
		}
	}
	for _, w := range wishes {
		slices.SortStableFunc(w.events, func(a, b int) int {
			return cmp.Or(cmp.Compare(urgency(answers[a]), urgency(answers[b])), events[b].Time().Compare(events[a].Time()))
		})
	}
	return wishes
}

// urgency is 0 of an event that wants another token in any case, and 1 of one that complains of the token.
func urgency(a Answer) int {
	if a.Verdict == RefreshRequested {
		return 0
	}
	return 1
}

// wish asks for the refresh of one target, once for each kind of events: whatever is seen of the token from now on has been
// seen after the latest of them happened, and so after the others.
func (r *receiver) wish(ctx context.Context, sender Sender, events []Event, answers []Answer, w wish, received time.Time) ([]Outcome, error) {
	outcomes := make([]Outcome, len(w.events))
	for n, i := range w.events {
		if n > 0 && urgency(answers[i]) == urgency(answers[w.events[n-1]]) {
			outcomes[n] = Coalesced
			continue
		}
		var err error
		if outcomes[n], err = r.request(ctx, sender, events[i], answers[i], w.target, received); err != nil {
			return nil, err
		}
	}
	return outcomes, nil
}

// request asks for the refresh of a target of an event.
func (r *receiver) request(ctx context.Context, sender Sender, e Event, a Answer, target string, received time.Time) (Outcome, error) {
	ctx, span := r.instruments.startRequest(ctx, sender, e, a, target)
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
		return "", err
	}
	level := slog.LevelDebug
	if outcome == Requested {
		level = slog.LevelInfo
	}
	r.Logger.Log(ctx, level, "an event asks for a refresh", "target", target, "outcome", string(outcome), "sender", sender.Name,
		"type", short(e.Type()), "id", short(e.ID()), "verdict", string(a.Verdict), "rule", a.Rule)
	return outcome, nil
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
