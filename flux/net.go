// The safety net: what no event told, the objects themselves tell.

package flux

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
)

const (
	// grace is how long the net waits for the event about a failure. The event goes first because it carries a trace.
	grace = 500 * time.Millisecond
	// sourceAgain is when to look again at an object whose source was not listed yet.
	sourceAgain = 5 * time.Second
	// An object that still fails is asked for again after firstAgain, and then after twice as long each time, up to lastAgain: the longest
	// pause between two tries of source-controller. What was asked before may have come to nothing: the identity was misconfigured
	// then, a Git server had not heard of the revocation yet, or the leader ended before it told the object.
	firstAgain = 30 * time.Second
	lastAgain  = 15 * time.Minute
)

// Ask is what a request for a refresh says of its cause.
type Ask struct {
	// Source is the object, ID its failure, and how often that was asked for: the same ones mean the same, in another term as well.
	Source, ID string
	Verdict    Verdict
	// Time is when the object was last known to fail.
	Time time.Time
}

// safetyNet asks for a refresh for each object that fails to authenticate. It is one worker of the Sources' queue.
type safetyNet struct {
	*Sources
	asked map[key]*asked
}

// asked is what the net did about an object that fails.
type asked struct {
	id        string // the failure that was asked for last
	again     int    // how often it was asked for before that
	times     int    // how often the object was, since it was Ready
	notBefore time.Time
	woken     time.Time // once for each Wake, also when somebody takes the annotation back
	warned    bool
	failed    bool // the last request was not taken, and that was said
}

func (n *safetyNet) run(ctx context.Context) {
	for {
		k, shutdown := n.queue.Get()
		if shutdown {
			return
		}
		if ctx.Err() == nil {
			n.look(ctx, k)
		}
		n.queue.Done(k)
	}
}

// look is level-triggered: any change of an object, and any time that was set for it, leads here.
func (n *safetyNet) look(ctx context.Context, k key) {
	n.mu.Lock()
	o := n.shelves[place{k.kind, k.namespace}].objects[k.name]
	if o == nil || o.failure.id == "" || o.suspended {
		n.mu.Unlock()
		delete(n.asked, k)
		n.queue.Forget(k)
		return
	}
	secret, known := n.secretOf(o)
	target := refresh.Name{Namespace: k.namespace, Name: secret}
	woken, overtaken := n.woken[target], n.overtaken(o)
	n.mu.Unlock()

	if !known {
		n.queue.AddAfter(k, sourceAgain)
		return
	}
	if !n.targets[target] {
		delete(n.asked, k)
		return
	}
	a := n.asked[k]
	if a == nil {
		a = &asked{}
		n.asked[k] = a
	}
	log := n.Logger.With("kind", k.kind.name, "namespace", k.namespace, "name", k.name, "target", target.String(), "rule", o.failure.Rule)
	switch now := time.Now(); {
	case o.failure.Rule == ruleURLUser:
		if !a.warned {
			log.WarnContext(ctx, "the object's URL names a user, which Flux does not take beside a bearer token; remove the user (org@) from spec.url: no refresh helps")
		}
		a.warned = true
	case o.failure.Verdict == Unrelated:
	case overtaken:
		// It failed with the token before. source-controller sends the event before it writes the status, so that it can be seen
		// too late to be woken with the others.
		if o.woken.Before(woken) && a.woken.Before(woken) {
			_, err := n.API.wake(ctx, k, now)
			if n.done(ctx, log, k, a, err); err == nil {
				a.woken = now
			}
		}
	case now.Before(a.notBefore):
		n.queue.AddAfter(k, a.notBefore.Sub(now))
	default:
		again := 0
		if a.id == o.failure.id {
			again = a.again + 1
		}
		bounded, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
		overtaken, err := n.Request(bounded, target, Ask{
			Source: Object{Kind: k.kind.name, Namespace: k.namespace, Name: k.name}.source(),
			ID:     fmt.Sprintf("%s/%d", o.failure.id, again), Verdict: o.failure.Verdict, Time: o.failure.since,
		})
		cancel()
		if err == nil && overtaken {
			_, err = n.API.wake(ctx, k, now) // a leader before us ended before it did
		}
		if n.done(ctx, log, k, a, err); err == nil {
			log.InfoContext(ctx, "the object fails to authenticate; a refresh was requested, unless it was already",
				"verdict", string(o.failure.Verdict), "overtaken", overtaken)
			a.id, a.again = o.failure.id, again
			pause := min(firstAgain<<a.times, lastAgain)
			a.notBefore, a.times = now.Add(pause), min(a.times+1, 5)
			n.queue.AddAfter(k, pause)
		}
	}
}

// done has what failed tried again, and says so once.
func (n *safetyNet) done(ctx context.Context, log *slog.Logger, k key, a *asked, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		n.queue.Forget(k)
		a.failed = false
	default:
		if !a.failed {
			log.WarnContext(ctx, "the object fails to authenticate, and the API server did not take what is to be done about it; trying again", "error", err)
		}
		a.failed = true
		n.queue.AddRateLimited(k)
	}
}
