package events

// What was asked for already.

import (
	"crypto/sha256"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/trace"
	"k8s.io/apimachinery/pkg/util/cache"
)

// maxRemembered bounds the memory of replays, to about 1 MiB. Whoever has more events taken within maxAge can have the oldest asked for again.
const maxRemembered = 4096

// replays remembers of which events the request for which target is durable, for as long as they may come again: source and id
// identify an event (CloudEvents 1.0.2, source and id), and whoever heard a signed body can send it until it is stale.
type replays struct {
	maxAge time.Duration
	asked  *cache.LRUExpireCache
}

func newReplays(maxAge time.Duration) replays {
	return replays{maxAge, cache.NewLRUExpireCache(maxRemembered)}
}

// find gives the span under which it was asked for.
func (r replays) find(sender Sender, e Event, target string) (span trace.SpanContext, found bool) {
	value, found := r.asked.Get(replayKey(sender, e, target))
	span, _ = value.(trace.SpanContext)
	return span, found
}

func (r replays) remember(sender Sender, e Event, target string, span trace.SpanContext) {
	r.asked.Add(replayKey(sender, e, target), span, time.Until(e.Time().Add(r.maxAge)))
}

func replayKey(sender Sender, e Event, target string) [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%q", []string{sender.Name, e.Source(), e.ID(), target}))
}
