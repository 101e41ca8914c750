package events

// What is told of requests: spans, the counter, and complaints in the log.

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/extensions"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

const scope = "flux-token-refresher/events"

type instruments struct {
	tracer trace.Tracer
	events metric.Int64Counter
	// series holds the labels of each series as a metric.AddOption, by the series: making them takes longer than counting.
	series sync.Map
}

// series is one of the counter.
type series struct{ sender, eventType, verdict, outcome string }

func newInstruments(tp trace.TracerProvider, mp metric.MeterProvider) (*instruments, error) {
	events, err := mp.Meter(scope).Int64Counter("token_refresher.events", metric.WithUnit("{event}"),
		metric.WithDescription("Events that were taken, by what became of them; and requests that were refused, with verdict none and the reason as outcome."))
	if err != nil {
		return nil, err
	}
	i := &instruments{tracer: tp.Tracer(scope), events: events}
	// A series that begins with its first refusal has never grown, for Prometheus's increase: these begin with 0.
	for why := range statuses {
		i.count(context.Background(), 0, refusals(why))
	}
	return i, nil
}

func (i *instruments) took(ctx context.Context, sender Sender, eventType string, a Answer) {
	if !understood(eventType) {
		eventType = "other"
	}
	i.count(ctx, 1, series{sender.Name, eventType, string(a.Verdict), string(a.Outcome)})
}

// refused counts a request, whoever it says it is from and whatever is in it: nobody may make up types.
func (i *instruments) refused(ctx context.Context, why refused) {
	i.count(ctx, 1, refusals(why))
}

func refusals(why refused) series { return series{"none", "other", "none", string(why)} }

func (i *instruments) count(ctx context.Context, n int64, s series) {
	labels, known := i.series.Load(s)
	if !known {
		labels, _ = i.series.LoadOrStore(s, metric.WithAttributes(attribute.String("sender", s.sender),
			attribute.String("type", s.eventType), attribute.String("verdict", s.verdict), attribute.String("outcome", s.outcome)))
	}
	i.events.Add(ctx, n, labels.(metric.AddOption))
}

// span is that of a request, or of one target's.
type span struct {
	trace.Span
	// more are attributes that are set when it ends, all at once: each time, the SDK copies those that are there.
	more []attribute.KeyValue
}

// start opens the span of a request, as of when it came. Its parent is the traceparent header where the sender vouches for
// the headers; anybody can add one to a signed body.
func (i *instruments) start(request *http.Request, sender Sender, received time.Time) (context.Context, *span) {
	ctx := request.Context()
	if sender.coversHeaders() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, origin(propagation.HeaderCarrier(request.Header)))
	}
	ctx, started := i.tracer.Start(ctx, "POST "+Path, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(received))
	s := &span{Span: started}
	if !s.IsRecording() {
		return ctx, s
	}
	scheme, peer := "http", request.RemoteAddr
	if request.TLS != nil {
		scheme = "https"
	}
	if host, _, err := net.SplitHostPort(peer); err == nil {
		peer = host
	}
	s.more = append(s.more, semconv.HTTPRequestMethodPost, semconv.HTTPRoute(Path), semconv.URLPath(Path), semconv.URLScheme(scheme),
		semconv.NetworkPeerAddress(peer), semconv.NetworkProtocolVersion(strings.TrimPrefix(request.Proto, "HTTP/")), senderKey.String(sender.Name))
	return ctx, s
}

// startFile opens the span of what Handle is given.
func (i *instruments) startFile(ctx context.Context, sender Sender, received time.Time) (context.Context, *span) {
	ctx, s := i.tracer.Start(ctx, "event", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(received),
		trace.WithAttributes(senderKey.String(sender.Name)))
	return ctx, &span{Span: s}
}

const (
	senderKey  = attribute.Key("event.sender")
	verdictKey = attribute.Key("event.verdict")
	ruleKey    = attribute.Key("event.rule")
	outcomeKey = attribute.Key("event.outcome")
	targetKey  = attribute.Key("refresh.target")
)

// about names the event, or says how many there are, and links to the traces that they come from: the distributed tracing extension is
// part of the event, which its sender vouches for.
func (s *span) about(events []Event, batch bool) {
	if !s.IsRecording() {
		return
	}
	if batch {
		s.more = append(s.more, semconv.MessagingBatchMessageCount(len(events)))
	} else {
		s.more = append(s.more, identify(events[0])...)
	}
	for _, e := range events {
		extension, ok := extensions.GetDistributedTracingExtension(e.Event)
		if !ok {
			continue
		}
		if sc := origin(propagation.MapCarrier{"traceparent": extension.TraceParent, "tracestate": extension.TraceState}); sc.IsValid() {
			s.AddLink(trace.Link{SpanContext: sc.WithTraceState(trace.TraceState{})}) // there may be a hundred
		}
	}
}

// origin is the trace that something comes from, as its sender says. A span holds it until it is exported, so the tracestate is at most as long as
// everybody should pass on (W3C Trace Context, "tracestate Limits"), or left out.
func origin(carrier propagation.TextMapCarrier) trace.SpanContext {
	const longest = 512
	sc := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
	if len(sc.TraceState().String()) > longest {
		return sc.WithTraceState(trace.TraceState{})
	}
	return sc
}

// answered says what became of the event that it is about.
func (s *span) answered(a Answer) {
	if !s.IsRecording() {
		return
	}
	s.more = append(s.more, verdictKey.String(string(a.Verdict)), ruleKey.String(a.Rule), outcomeKey.String(string(a.Outcome)))
}

// end ends the span of a request. What its sender got wrong is no error of ours.
func (s *span) end(err error) {
	status := http.StatusAccepted
	if err != nil {
		r := asRefusal(err)
		s.more = append(s.more, outcomeKey.String(string(r.why)))
		if status = statuses[r.why]; status >= http.StatusInternalServerError {
			s.failed(r, strconv.Itoa(status))
		}
	}
	s.more = append(s.more, semconv.HTTPResponseStatusCode(status))
	s.SetAttributes(s.more...)
	s.End()
}

// endFile ends the span of what Handle was given.
func (s *span) endFile(err error) {
	if err != nil {
		r := asRefusal(err)
		s.failed(r, string(r.why))
	}
	s.SetAttributes(s.more...)
	s.End()
}

// failed marks a span with what its sender is told: the cause is for the log.
func (s *span) failed(r *refusal, errorType string) {
	s.RecordError(r)
	s.SetStatus(codes.Error, r.text)
	s.SetAttributes(semconv.ErrorTypeKey.String(errorType))
}

func (i *instruments) startRequest(ctx context.Context, sender Sender, e Event, a Answer, target string) (context.Context, *span) {
	ctx, s := i.tracer.Start(ctx, "refresh.request", trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(identify(e)...),
		// The Secret carries the request to the leader.
		trace.WithAttributes(semconv.MessagingSystemKey.String("kubernetes"), semconv.MessagingDestinationName(target),
			semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("refresh.request")),
		trace.WithAttributes(senderKey.String(sender.Name), targetKey.String(target), verdictKey.String(string(a.Verdict)), ruleKey.String(a.Rule)))
	return ctx, &span{Span: s}
}

// outcome ends the span of one target's request.
func (s *span) outcome(o Outcome, err error) {
	if err != nil {
		r := asRefusal(err)
		s.failed(r, string(r.why))
	} else {
		s.SetAttributes(outcomeKey.String(string(o)))
	}
	s.End()
}

func identify(e Event) []attribute.KeyValue {
	attributes := []attribute.KeyValue{
		semconv.CloudEventsEventID(short(e.ID())), semconv.CloudEventsEventSource(short(e.Source())),
		semconv.CloudEventsEventType(short(e.Type())), semconv.CloudEventsEventSpecVersion(e.SpecVersion()),
	}
	if subject := e.Subject(); subject != "" {
		attributes = append(attributes, semconv.CloudEventsEventSubject(short(subject)))
	}
	return attributes
}

// short cuts what a sender chose to a length for spans and logs.
func short(s string) string {
	const longest = 256 // bytes
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}

func traceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier.Get("traceparent")
}

// complaints are warnings about refused requests: of each reason and each sender one a minute, because anybody who reaches the port can
// cause them, and must not hide what is wrong with the requests of a sender.
type complaints struct {
	logger *slog.Logger

	mu   sync.Mutex
	said map[complaint]said
}

// complaint is one, as long as it is the same; without a sender it is about everybody who has proven nothing.
type complaint struct {
	sender string
	why    refused
}

type said struct {
	at time.Time
	// unsaid is how many there were since.
	unsaid int
}

// about complains about a refusal, with nothing of the request but the address that it came from, and who proved to be its sender.
func (c *complaints) about(ctx context.Context, address string, sender Sender, r *refusal) {
	const every = time.Minute
	this := complaint{sender.Name, r.why}
	c.mu.Lock()
	last, known := c.said[this]
	due := !known || time.Since(last.at) >= every
	if due {
		c.said[this] = said{at: time.Now()}
	} else {
		c.said[this] = said{at: last.at, unsaid: last.unsaid + 1}
	}
	c.mu.Unlock()
	if !due {
		return
	}
	attributes := []any{"outcome", string(r.why), "why", r.text, "address", address, "sender", cmp.Or(sender.Name, "none"), "unsaid", last.unsaid}
	if r.cause != nil {
		attributes = append(attributes, "error", r.cause)
	}
	c.logger.WarnContext(ctx, "a request with events was refused", attributes...)
}
