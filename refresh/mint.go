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
		m.after = now.Add(RetryDelay(err, m.failures, left, u))
	} else {
		m.failures = 0
	}
	waiting := m.parked
	m.inFlight, m.parked = false, nil
	return waiting
}

func (m *mint) notBefore() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.after
}
