package refresh

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// mint is what a term knows of one MintKey. One worker at a time asks the issuer; the targets that need the same token are
// parked meanwhile, so that a slow issuer holds up one worker and nobody else's targets.
type mint struct {
	mu       sync.Mutex
	inFlight bool
	began    time.Time // the last one
	parked   map[*entry]Decision
	// origin is the span in which the token that is held was minted, if that was in this term.
	origin trace.SpanContext
	// Until insistsUntil the issuer has no other token than the one that is held, as it said when it was asked at insistedAt. Both are zero
	// where it gave another one.
	insistedAt, insistsUntil time.Time

	// The failures in a row, and the last of them: when, why, and its share of the jitter.
	failures int
	failure  *Error
	failedAt time.Time
	u        float64
}

// begin takes the right to ask, or parks the target until whoever has it is done.
func (m *mint) begin(e *entry, d Decision) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inFlight {
		if m.parked == nil {
			m.parked = map[*entry]Decision{}
		}
		m.parked[e] = d
		return false
	}
	m.inFlight, m.began = true, time.Now()
	return true
}

// end gives the right back, and gives whoever was parked.
func (m *mint) end() map[*entry]Decision {
	m.mu.Lock()
	defer m.mu.Unlock()
	waiting := m.parked
	m.inFlight, m.parked = false, nil
	return waiting
}

// succeeded forgets the failures. insists is until when the issuer insists on the token that it gave again; zero for another token.
func (m *mint) succeeded(ctx context.Context, insists time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures, m.failure = 0, nil
	m.origin = trace.SpanContextFromContext(ctx)
	m.insistedAt, m.insistsUntil = time.Time{}, insists
	if !insists.IsZero() {
		m.insistedAt = m.began
	}
}

// link links the span of whoever takes the token that is held to its mint, which belongs to another target's trace.
func (m *mint) link(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.origin.IsValid() {
		trace.SpanFromContext(ctx).AddLink(trace.Link{SpanContext: m.origin})
	}
}

func (m *mint) failed(err *Error, now time.Time, u float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures++
	m.failure, m.failedAt, m.u = err, now, u
}

// remember adds what Decide needs to know about the mint, for a target whose token ends at expires and whose open request was
// first seen at asked.
func (m *mint) remember(memory *Memory, expires, asked time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	memory.InsistsUntil = m.insistsUntil
	memory.Answered = !m.insistsUntil.IsZero() && !m.insistedAt.Before(asked)
	if m.failure == nil {
		return
	}
	memory.MintAfter = m.failedAt.Add(RetryDelay(m.failure, m.failures, expires.Sub(m.failedAt), m.u))
	memory.Misconfigured = m.failure.Class == Misconfigured
	memory.Mended = asked.After(m.failedAt)
}
