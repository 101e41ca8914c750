package refresh

import (
	"sync"
	"time"
)

// mint is what a term knows of one MintKey. One worker at a time asks the issuer; the targets that need the same token are
// parked meanwhile, so that a slow issuer holds up nobody else's.
type mint struct {
	mu       sync.Mutex
	inFlight bool
	parked   []parked
	failures int
	last     Class // of the failures in a row
	after    time.Time
}

type parked struct {
	entry    *entry
	decision Decision
}

// begin takes the right to ask, or parks the target until whoever has it is done.
func (m *mint) begin(e *entry, d Decision) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inFlight {
		m.parked = append(m.parked, parked{e, d})
		return false
	}
	m.inFlight = true
	return true
}

// end gives the right back, and gives whoever was parked. err is nil for a success and for a try that was given up.
func (m *mint) end(err *Error, left time.Duration, now time.Time, u float64) []parked {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.failures++
		m.last = err.Class
		m.after = now.Add(RetryDelay(err, m.failures, left, u))
	} else {
		m.failures, m.last = 0, ""
	}
	waiting := m.parked
	m.inFlight, m.parked = false, nil
	return waiting
}

// remember adds to what Decide needs.
func (m *mint) remember(memory *Memory) {
	m.mu.Lock()
	defer m.mu.Unlock()
	memory.MintAfter, memory.Misconfigured = m.after, m.last == Misconfigured
}
