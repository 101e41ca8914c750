package refresh

import (
	"errors"
	"time"
)

// ErrConflict says that the Secret is no longer the one that was observed (another resourceVersion, another uid,
// or it exists where it was to be created). Nothing was written.
var ErrConflict = errors.New("the Secret changed meanwhile")

// Class is what kind of failure it was: it decides when to try again, and is a label of metrics.
type Class string

const (
	// Unavailable: an outage, a timeout, a network error; it mends itself.
	Unavailable Class = "unavailable"
	// Throttled: too many requests; RetryAfter says when, if the other side said.
	Throttled Class = "throttled"
	// Assertion: the proof of the identity was refused because of its age, or of the clock.
	Assertion Class = "assertion"
	// Misconfigured: it fails until somebody changes something.
	Misconfigured Class = "misconfigured"
)

// Error is a failure that may be shown to anybody. Its sentences are written by us: it wraps nothing, because
// what a server answers can hold tenant ids, assertions and whole pages.
type Error struct {
	Class Class
	// Code is the other side's own word for it (AADSTS700016, 429, Forbidden), "" when there is none.
	Code string
	// Text is what failed and what a person can do about it, without the code.
	Text string
	// RetryAfter is how long the other side asked to be left alone; 0 when it did not say.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	if e.Code == "" {
		return e.Text
	}
	return e.Code + ": " + e.Text
}
