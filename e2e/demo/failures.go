package main

// The chapters about a source that fails to authenticate: its event, an event about what no token can help, and no event.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

// Attributes of the spans.
const (
	podName      = "k8s.pod.name"
	eventOutcome = "event.outcome"
)

// revoked goes from the refusal to a source that is Ready, by way of the event. On a machine that is so busy that the leader sees the
// failure first, it is told again; with another answer, because notification-controller drops what repeats itself.
func (d *demo) revoked(ctx context.Context) error {
	for _, answer := range []devops.Answer{devops.SignIn(), devops.SignInPage(http.StatusNonAuthoritativeInfo), devops.Unauthorized()} {
		d.devops.Change(func(c *devops.Config) { c.Refusal = answer })
		if told, err := d.byEvent(ctx); told || err != nil {
			return err
		}
		d.did("the leader saw it before the event came in, as it may where a machine is busy: once more")
		if err := pause(ctx, calm); err != nil {
			return err
		}
	}
	return errors.New("the leader saw it each time before the event came in")
}

// byEvent tells whether it was the event that asked for the token.
func (d *demo) byEvent(ctx context.Context) (told bool, err error) {
	began, secrets, sources, minted := time.Now(), len(d.secret.all()), len(d.source.all()), d.installed.Entra.Requests()
	before := d.revoke()
	refusal, err := d.refused(ctx, d.source)
	if err != nil {
		return false, err
	}
	d.at(refusal.Answered, "", "Azure DevOps answers source-controller with %d, and that reports its failure", refusal.Status)
	event, err := d.reported(ctx, d.source, began)
	if err != nil {
		return false, err
	}
	leader := holder(d.lease.last(leads).object)
	written, err := d.renewed(ctx, secrets, minted, before)
	if err != nil {
		return false, err
	}
	ready, err := d.source.await(ctx, sources, recovered())
	if err != nil || !causedBy(event)(written.object) {
		return false, err
	}
	since := func(t time.Time) string { return short(t.Sub(event.Start)) }
	d.at(event.Start, "0 ms", "the event is at %s, a follower", event.Resource[podName])
	d.at(event.End, since(event.End), "202: the request stands on the Secret")
	d.at(written.seen, since(written.seen), "%s, the leader, was asked: token %s took its place", leader, hash(written.object))
	d.at(ready.seen, since(ready.seen), "the GitRepository is Ready")
	d.row("an event comes in → a new token in the Secret", written.seen.Sub(event.Start), "1 mint")
	d.row("an event comes in → the GitRepository is Ready", ready.seen.Sub(event.Start), "1 mint")
	d.event = event
	return true, nil
}

// forbidden is a failure that another token would not mend.
func (d *demo) forbidden(ctx context.Context) error {
	before, secrets, minted := d.secret.last(d.good).object, len(d.secret.all()), d.installed.Entra.Requests()
	other, err := d.create(ctx, "apps")
	if err != nil {
		return err
	}
	if _, err := other.await(ctx, 0, isReady); err != nil {
		return err
	}
	d.did("it is Ready; then the identity loses its permission on that repository")
	began := time.Now()
	other.repository.Forbid(devops.Forbidden())
	refusal, err := d.refused(ctx, other)
	if err != nil {
		return err
	}
	d.at(refusal.Answered, "", "Azure DevOps answers source-controller with %d, and that reports its failure", refusal.Status)
	event, err := d.reported(ctx, other, began)
	if err != nil {
		return err
	}
	handled, err := d.secret.await(ctx, secrets, func(s *corev1.Secret) bool {
		answered := s != nil && s.Annotations[secret.HandledRequest] != before.Annotations[secret.HandledRequest] && isHandled(s)
		return answered && (causedBy(event)(s) || event.Attributes[eventOutcome] == "coalesced") // with what the leader saw itself
	})
	if err != nil {
		return err
	}
	if got := handled.object.Annotations[secret.HandledOutcome]; got != string(refresh.StillValid) || hash(handled.object) != hash(before) {
		return fmt.Errorf("it ended with %s, and token %s in the Secret", got, hash(handled.object))
	}
	if !isReady(d.source.all()[len(d.source.all())-1].object) {
		return fmt.Errorf("GitRepository %s is not Ready any more", d.source.name)
	}
	took := handled.seen.Sub(event.Start)
	d.at(event.Start, "0 ms", "the event is at %s, a follower; verdict: %s", event.Resource[podName], event.Attributes["event.verdict"])
	d.at(handled.seen, short(took), "the other source may use token %s. Outcome: %s",
		hash(before), handled.object.Annotations[secret.HandledOutcome])
	d.more("requests to Entra: %d, as before", minted)
	d.row("an event about a missing permission → StillValid", took, "no mint")

	failed := len(other.all())
	other.repository.Allow()
	d.did("the permission is given back")
	if err := d.reconcile(ctx, other); err != nil {
		return err
	}
	if _, err := other.await(ctx, failed-1, isReady); err != nil {
		return err
	}
	d.did("both sources are Ready")
	return d.stillAt(minted)
}

// unreported is a revocation with nobody to send the event.
func (d *demo) unreported(ctx context.Context) error {
	began, secrets, sources, minted := time.Now(), len(d.secret.all()), len(d.source.all()), d.installed.Entra.Requests()
	if err := d.flux.Notification.Stop(ctx); err != nil {
		return err
	}
	d.did("notification-controller is stopped")
	before := d.revoke()
	refusal, err := d.refused(ctx, d.source)
	if err != nil {
		return err
	}
	since := func(t time.Time) time.Duration { return t.Sub(refusal.Answered) }
	d.at(refusal.Answered, "0 ms", "Azure DevOps answers source-controller with %d. Before that says so", refusal.Status)
	d.more("in the source's status, it goes on trying to send the event")
	failed, err := d.source.await(ctx, sources, isFailed)
	if err != nil {
		return err
	}
	d.at(failed.seen, short(since(failed.seen)), "the GitRepository is no longer Ready")
	written, err := d.renewed(ctx, secrets, minted, before)
	if err != nil {
		return err
	}
	d.at(written.seen, short(since(written.seen)), "%s, the leader, saw it: token %s took its place",
		holder(d.lease.last(leads).object), hash(written.object))
	d.more("source-controller reads with it, and first goes on trying to send that it does")
	ready, err := d.source.await(ctx, sources, recovered())
	if err != nil {
		return err
	}
	d.at(ready.seen, short(since(ready.seen)), "the GitRepository is Ready")
	if events := d.spans.Spans(func(s otlp.Span) bool { return isEvent(s) && s.Start.After(began) }); len(events) > 0 {
		return fmt.Errorf("an event came in at %s", events[0].Resource[podName])
	}
	d.row("no event: a source is refused → a new token in the Secret", since(written.seen), "1 mint")
	d.row("no event: a source's status says so → a new token in the Secret", written.seen.Sub(failed.seen), "1 mint")
	d.row("no event: a source is refused → the GitRepository is Ready", since(ready.seen), "1 mint")
	if err := d.flux.Notification.Start(ctx); err != nil {
		return err
	}
	d.did("notification-controller runs again")
	return nil
}

// revoke has Azure DevOps refuse the token that is in the Secret.
func (d *demo) revoke() *corev1.Secret {
	before := d.secret.last(d.good).object
	d.devops.Revoke(string(before.Data["bearerToken"]))
	d.did("token %s is revoked, %s before its end; the Secret does not show it", hash(before), left(expiry(before), time.Now()))
	return before
}

// renewed gives the Secret with the token that a request put in the place of another one, and beside it what was there.
func (d *demo) renewed(ctx context.Context, secrets, minted int, before *corev1.Secret) (state[*corev1.Secret], error) {
	written, err := d.secret.await(ctx, secrets, d.other(before))
	if err != nil {
		return written, err
	}
	if got := written.object.Annotations[secret.HandledOutcome]; !isHandled(written.object) || got != string(refresh.Refreshed) {
		return written, fmt.Errorf("the request ended with %q", got)
	}
	if string(written.object.Data[caKey]) != string(d.devops.CA()) {
		return written, fmt.Errorf("the key %s beside the token did not survive", caKey)
	}
	return written, d.wrote(written.object, refresh.RefreshRequested, minted+1)
}

// reported gives the span of the event about a source, which came in at a follower and was acknowledged.
func (d *demo) reported(ctx context.Context, about *source, since time.Time) (otlp.Span, error) {
	event, err := d.spans.Wait(ctx, func(s otlp.Span) bool {
		return isEvent(s) && s.Start.After(since) && strings.HasSuffix(s.Attributes["cloudevents.event_source"], "/"+about.name)
	})
	if err != nil {
		return event, fmt.Errorf("no event about %s came in: %w", about.name, err)
	}
	if leader := holder(d.lease.last(leads).object); event.Resource[podName] == leader {
		return event, fmt.Errorf("the event came in at %s, which leads", leader)
	}
	if status, outcome := event.Attributes["http.response.status_code"], event.Attributes[eventOutcome]; status != "202" || outcome == "ignored" {
		return event, fmt.Errorf("the event was answered with %s, %s", status, outcome)
	}
	return event, nil
}

func isEvent(s otlp.Span) bool { return s.Name == "POST /events" }

// causedBy is of a Secret with a request, open or handled, that an event made.
func causedBy(event otlp.Span) func(*corev1.Secret) bool {
	return func(s *corev1.Secret) bool {
		return s != nil && strings.Contains(s.Annotations[secret.RequestContext], event.TraceID)
	}
}

func isHandled(s *corev1.Secret) bool {
	return s.Annotations[secret.HandledRequest] == refresh.Hash(s.Annotations[secret.Request])
}
