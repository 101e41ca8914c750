package refreshtest

import (
	"slices"
	"sync"
	"time"

	"flux-token-refresher/refresh"
)

// Recorder is a refresh.Recorder that keeps what it is told. The zero value is ready.
type Recorder struct {
	mu     sync.Mutex
	events []Event
}

// Event is one call of Recorder.Event.
type Event struct {
	At      time.Time
	Name    refresh.Name
	UID     string
	Warning bool
	Reason  string
	Note    string
}

// Event implements refresh.Recorder.
func (r *Recorder) Event(name refresh.Name, uid string, warning bool, reason, note string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, Event{At: time.Now(), Name: name, UID: uid, Warning: warning, Reason: reason, Note: note})
}

// Events gives all events so far, in their order.
func (r *Recorder) Events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}
