package events

// What was taken already.

import (
	"crypto/sha256"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"k8s.io/apimachinery/pkg/util/cache"
)

// maxRemembered bounds the memory of replays, to about 2 MiB. Whoever has more events taken within maxAge can have the oldest looked at again.
const maxRemembered = 4096

// replays remembers what an event concerned that was taken, for as long as it may come again: source and id identify an event
// (CloudEvents 1.0.2, source and id), and whoever heard a signed body can send it until it is stale. Type and subject are looked at too, for senders
// that give every event the same id. What is unrelated is not remembered: it calls nobody the next time either.
type replays struct {
	maxAge time.Duration
	taken  *cache.LRUExpireCache
}

// taken is what an event concerned, and the span of the request that it came in.
type taken struct {
	targets []string
	span    trace.SpanContext
}

func newReplays(maxAge time.Duration) replays {
	return replays{maxAge, cache.NewLRUExpireCache(maxRemembered)}
}

func (r replays) find(sender Sender, e Event) (before taken, found bool) {
	value, found := r.taken.Get(replayKey(sender, e))
	before, _ = value.(taken)
	return before, found
}

func (r replays) remember(sender Sender, e Event, targets []string, span trace.SpanContext) {
	span = span.WithTraceState(trace.TraceState{}) // whose length the sender chose
	r.taken.Add(replayKey(sender, e), taken{targets, span}, time.Until(e.Time().Add(r.maxAge)))
}

// replayKey has a length of ours. No part of it has a control character.
func replayKey(sender Sender, e Event) [sha256.Size]byte {
	return sha256.Sum256([]byte(strings.Join([]string{sender.Name, e.Source(), e.ID(), e.Type(), e.Subject()}, "\x00")))
}
