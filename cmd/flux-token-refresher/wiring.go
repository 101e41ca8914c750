package main

// How the packages that know nothing of one another speak to each other.

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"flux-token-refresher/events"
	"flux-token-refresher/flux"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/gitremote"
	"flux-token-refresher/refresh/secret"
)

// sources makes what one term knows of Flux's objects. fresh holds back the safety net, as it holds back every other write.
func (i *installation) sources(fresh func() bool) *flux.Sources {
	return flux.NewSources(flux.SourcesConfig{
		API:     i.flux,
		Targets: i.config.Targets,
		Ask: func(ctx context.Context, url string, token refresh.Token) refresh.Trial {
			switch answer := i.remote.Ask(ctx, url, token); answer.Verdict {
			case gitremote.Accepted:
				return refresh.Trial{Accepted: 1}
			case gitremote.Rejected:
				return refresh.Trial{Rejected: 1, Why: answer.Why}
			case gitremote.Silent:
				return refresh.Trial{Silent: 1, Why: answer.Why}
			default:
				return refresh.Trial{}
			}
		},
		Request: func(ctx context.Context, target refresh.Name, ask flux.Ask) (overtaken bool, err error) {
			if !fresh() {
				return false, &refresh.Error{Class: refresh.Unavailable, Text: "the lease is not known to be ours"}
			}
			answer, err := i.requester.Request(ctx, i.target(target), secret.Ask{
				Sender: secret.Actor, Source: ask.Source, ID: ask.ID, Verdict: string(ask.Verdict), Time: ask.Time, Received: time.Now(),
			})
			return answer.Overtaken, err
		},
		Logger: i.telemetry.Logger(),
	})
}

// target gives a target by its name; the router and the safety net know no others.
func (i *installation) target(name refresh.Name) refresh.Target {
	for _, t := range i.config.Targets {
		if t.Name == name {
			return t
		}
	}
	return refresh.Target{Name: name}
}

// decode is flux.Decode as events wants it.
func decode(body []byte) (events.Event, error) {
	e, content, err := flux.Decode(body)
	return events.Event{Event: e, Content: content}, err
}

// router is flux.Router as events wants it.
type router struct{ *flux.Router }

func (r router) Classify(e events.Event, may func(namespace string) bool) events.Classification {
	var c flux.Classification
	if e.Type() == events.TypeRefreshRequested {
		c = r.Requested(e.Subject(), may)
	} else {
		c = r.Reported(reportIn(e), may)
	}
	return events.Classification{Verdict: events.Verdict(c.Verdict), Rule: c.Rule}
}

func (r router) Targets(ctx context.Context, e events.Event) ([]string, error) {
	var targets []refresh.Name
	var err error
	if e.Type() == events.TypeRefreshRequested {
		targets = r.RequestedTargets(e.Subject())
	} else {
		targets, err = r.ReportedTargets(ctx, reportIn(e))
	}
	names := make([]string, len(targets))
	for i, target := range targets {
		names[i] = target.String()
	}
	return names, err
}

// reportIn gives what decode read.
func reportIn(e events.Event) flux.Event {
	report, _ := e.Content.(flux.Event)
	return report
}

// requester is secret.Requester as events wants it.
type requester struct{ *installation }

func (r requester) Request(ctx context.Context, target string, ask events.Ask) (events.Outcome, error) {
	name, err := refresh.ParseName(target)
	if err != nil {
		return "", err
	}
	answer, err := r.requester.Request(ctx, r.target(name), secret.Ask{
		Sender: ask.Sender, Source: ask.Source, ID: ask.ID, Verdict: string(ask.Verdict),
		Time: ask.Time, Received: ask.Received, TraceParent: ask.TraceParent, Demand: ask.Verdict == events.RefreshRequested,
	})
	switch {
	case err != nil:
		return "", err
	case answer.Written:
		return events.Requested, nil
	}
	// The event is answered by the refresh of an open request, which has a trace of its own.
	carrier := propagation.MapCarrier{"traceparent": answer.OpenTrace}
	if open := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier)); open.IsValid() {
		trace.SpanFromContext(ctx).AddLink(trace.Link{SpanContext: open})
	}
	return events.Coalesced, nil
}

// receiver makes the handler of events.
func (i *installation) receiver() (http.Handler, error) {
	senders := make([]events.Sender, len(i.config.Events.Senders))
	for n, s := range i.config.Events.Senders {
		senders[n] = events.Sender{Name: s.Name, ClientName: s.ClientName, Namespaces: s.Namespaces}
		switch {
		case s.HMACKeyFile != "":
			senders[n].HMACKey = events.KeyFile(s.HMACKeyFile)
		case s.BearerTokenFile != "":
			senders[n].BearerToken = events.KeyFile(s.BearerTokenFile)
		}
	}
	config := i.events()
	config.Senders = senders
	return events.Handler(config, i.router(), requester{i})
}

// events says how events are taken, whoever sends them.
func (i *installation) events() events.Config {
	return events.Config{
		Decoder: decode, MaxAge: i.config.Events.MaxAge,
		Logger: i.telemetry.Logger(), TracerProvider: i.telemetry.TracerProvider(), MeterProvider: i.telemetry.MeterProvider(),
	}
}

func (i *installation) router() events.Router {
	names := make([]refresh.Name, len(i.config.Targets))
	for n, t := range i.config.Targets {
		names[n] = t.Name
	}
	return router{flux.NewRouter(i.flux, names, i.telemetry.Logger())}
}
