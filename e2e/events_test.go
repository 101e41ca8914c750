package e2e

// The way of an event, with the real Flux: from a token that Azure DevOps refuses to a source that is Ready again.

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/refresh"
)

// round is when one token that Azure DevOps refuses was what, up to the source that is Ready with the next one.
type round struct {
	refused                time.Time // by Azure DevOps, of source-controller
	received, acknowledged time.Time // the event, by the follower
	written, woken         time.Time // the Secret and the source, by the leader
	ready                  time.Time
}

// round revokes the token, and follows what comes of it until a source of that name, which it creates, is Ready again. told says that there will
// be an event.
func (l *loop) round(t *testing.T, name string, told bool) round {
	t.Helper()
	l.read(t, name)
	before := map[string]bool{}
	for _, s := range l.spans.Spans(func(otlp.Span) bool { return true }) {
		before[s.ID] = true
	}
	span := func(match func(otlp.Span) bool) otlp.Span {
		t.Helper()
		s, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return !before[s.ID] && match(s) })
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return s
	}
	// Whoever asks what is there now waits for up to 100 ms (measured): this watch tells when it happens. A source that was
	// woken has handled another request than the one with which it failed.
	var r round
	asked, failed, watched := rand.Text(), false, make(chan error, 1)
	ctx := patient(t)
	go func() {
		_, err := l.sources.AwaitGitRepository(ctx, l.Namespace, name, func(o *unstructured.Unstructured) bool {
			failed = failed || isFailed(o)
			if failed && isReady(o) && r.ready.IsZero() {
				r.ready = time.Now()
			}
			return failed && isReady(o) && flux.Handled(o) != asked
		})
		watched <- err
	}()
	token, from := l.revoke(t), len(l.sources.devops.Requests(0))
	if err := l.sources.Request(ctx, l.Namespace, name, asked); err != nil {
		t.Fatal(err)
	}
	if err := <-watched; err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	refused, err := l.sources.devops.Wait(patient(t), from, 1, func(r devops.Request) bool {
		return r.Refused != nil && r.TokenHash == refresh.Hash(token)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.refused = refused[0].Answered
	if told {
		event := span(isRequest)
		r.received, r.acknowledged = event.Start, event.End
	}
	refreshed := span(func(s otlp.Span) bool {
		return s.Name == "refresh" && s.Attributes["refresh.reason"] == string(refresh.RefreshRequested) &&
			s.Attributes["refresh.outcome"] == string(refresh.Refreshed)
	})
	of := func(name string) time.Time {
		return span(func(s otlp.Span) bool { return s.Name == name && s.Parent == refreshed.ID }).End
	}
	r.written, r.woken = of("secret.apply"), of("flux.wake")
	return r
}

// logMedians tells how long each step took.
func logMedians(t *testing.T, rounds []round, steps ...step) {
	t.Helper()
	for _, s := range steps {
		var took []time.Duration
		for _, r := range rounds {
			took = append(took, s.to(r).Sub(s.from(r)))
		}
		slices.Sort(took)
		t.Logf("%-35s %6s (%s to %s)", s.name, took[len(took)/2].Round(time.Millisecond), took[0].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	}
}

type step struct {
	name     string
	from, to func(round) time.Time
}

func refused(r round) time.Time      { return r.refused }
func received(r round) time.Time     { return r.received }
func acknowledged(r round) time.Time { return r.acknowledged }
func written(r round) time.Time      { return r.written }
func woken(r round) time.Time        { return r.woken }
func ready(r round) time.Time        { return r.ready }

// TestEventLoop: a token that Azure DevOps refuses, in each of its ways, is replaced on the word of source-controller, which comes in at a
// follower; one mint does, and the source is Ready again.
func TestEventLoop(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	l.sources.notify(t, l.events)
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	var rounds []round
	for name, refusal := range map[string]devops.Answer{
		"sign-in-302":  devops.SignIn(),
		"html-203":     devops.SignInPage(203),
		"html-200":     devops.SignInPage(200),
		"tf400813-401": devops.Unauthorized(),
	} {
		l.sources.devops.Change(func(c *devops.Config) { c.Refusal = refusal })
		for n := range 3 {
			minted := l.minted()
			// Each a source of its own, because notification-controller drops the same message about the same object for a while.
			rounds = append(rounds, l.round(t, fmt.Sprintf("%s-%d", name, n), true))
			got := awaitSecret(t, l.Installation, credential, sound(l.Installation))
			if string(got.Data["ca.crt"]) != string(l.sources.devops.CA()) {
				t.Errorf("%s: the CA beside the token did not survive", name)
			}
			if n := l.minted() - minted; n != 1 {
				t.Errorf("%s: %d tokens were minted, want 1", name, n)
			}
		}
	}
	t.Logf("medians of %d rounds; to reach: 2s from the event to Ready", len(rounds))
	logMedians(t, rounds,
		step{"refused → event received", refused, received},
		step{"event received → 202", received, acknowledged},
		step{"event received → Secret written", received, written},
		step{"Secret written → source woken", written, woken},
		step{"source woken → Ready", woken, ready},
		step{"event received → Ready", received, ready},
		step{"refused → Ready", refused, ready})
}

// TestDoorIsBounded: a replica reads no more of a request than it may have, and waits no longer.
func TestDoorIsBounded(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	const begin = "POST /events HTTP/1.1\r\nHost: refresher\r\n"
	var knocking sync.WaitGroup
	for request, want := range map[string]string{
		begin + "X-Padding: " + strings.Repeat("x", 24<<10) + "\r\n\r\n": "431",
		begin + "X-Padding: ": "", // the connection is closed
		begin + "Content-Length: 100\r\nX-Signature: " + signature(l.sources.key, nil) + "\r\n\r\n{":       "400",
		begin + "Content-Length: 999999999\r\nX-Signature: " + signature(l.sources.key, nil) + "\r\n\r\n{": "413",
	} {
		knocking.Go(func() {
			conn, err := (&net.Dialer{}).DialContext(patient(t), "tcp", strings.TrimSuffix(strings.TrimPrefix(l.events, "http://"), "/events"))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Error(err)
			}
			if _, err := io.WriteString(conn, request); err != nil {
				t.Error(err)
			}
			answer, err := io.ReadAll(conn) // to its end
			if status := strings.TrimPrefix(string(answer), "HTTP/1.1 "); err != nil || !strings.HasPrefix(status, want) || want == "" && status != "" {
				t.Errorf("%.60q was answered with %.60q, and ended with %v; want %s", request, answer, err, want)
			}
		})
	}
	knocking.Wait()
}

// TestEventsAreProven: of a body that was signed once, only the signature counts: headers that could make another event of it are refused,
// and repetitions ask for nothing more.
func TestEventsAreProven(t *testing.T) {
	t.Parallel()
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t))
	l.start(t, "")
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	hook := l.sources.webhook(t) // somebody else gets the event, and repeats it here
	l.read(t, "source")
	minted, token := l.minted(), l.revoke(t)
	// The event alone, and not the leader's own eyes: it looks at nothing while it stands still.
	if err := l.leader.Pause(); err != nil {
		t.Fatal(err)
	}
	l.sources.ask(t, "source")
	body := hook.next(t).body

	signed := map[string]string{"X-Signature": signature(l.sources.key, body)}
	for name, header := range map[string]map[string]string{
		"ce-* headers were added": {
			"X-Signature": signature(l.sources.key, body), "ce-specversion": "1.0", "ce-id": "1", "ce-source": "elsewhere",
			"ce-type": "flux-token-refresher.refresh.requested", "ce-subject": l.Namespace + "/" + credential,
		},
		"unsigned":                {},
		"signed for another body": {"X-Signature": signature(l.sources.key, []byte("{}"))},
	} {
		if status, _ := l.post(t, body, header); status != http.StatusUnauthorized {
			t.Errorf("%s: %d, want 401", name, status)
		}
	}

	outcomes := make(chan string, 10)
	var senders sync.WaitGroup
	for range cap(outcomes) {
		senders.Go(func() {
			status, outcome := l.post(t, body, signed)
			if status != http.StatusAccepted {
				t.Errorf("%d, want 202", status)
			}
			outcomes <- outcome
		})
	}
	senders.Wait()
	// Those that ask for nothing more say in whose trace the refresh is.
	coalesced, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return s.Name == "refresh.request" && len(s.Links) > 0 })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.spans.Wait(patient(t), func(s otlp.Span) bool {
		return isRequest(s) && s.TraceID == coalesced.Links[0] && s.TraceID != coalesced.TraceID && s.Attributes["event.outcome"] == "requested"
	}); err != nil {
		t.Errorf("a coalesced event links to %s, where nothing was requested: %v", coalesced.Links[0], err)
	}
	close(outcomes)
	counted := map[string]int{}
	for outcome := range outcomes {
		counted[outcome]++
	}
	if counted["requested"] != 1 || counted["coalesced"] != 9 {
		t.Errorf("the same event ten times was %v, want one requested and nine coalesced", counted)
	}
	if err := l.leader.Resume(); err != nil {
		t.Fatal(err)
	}
	awaitSecret(t, l.Installation, credential, l.renewed(token))
	l.sources.await(t, "source", isReady)
	if status, outcome := l.post(t, body, signed); status != http.StatusAccepted || outcome != "coalesced" {
		t.Errorf("once more, afterwards: %d %s, want 202 coalesced", status, outcome)
	}
	if n := l.minted() - minted; n != 1 {
		t.Errorf("%d tokens were minted, want 1", n)
	}
}
