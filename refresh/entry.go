package refresh

import (
	"sync"
	"time"
)

// entry is what a term knows of one target. The workqueue gives it to one worker at a time; the
// mutex is for the watch, the metrics and a shared mint's failure, which come from other goroutines.
type entry struct {
	target Target

	mu       sync.Mutex
	observed Observed

	writeAfter, repairAfter time.Time

	failures   int       // writes in a row
	conflicts  int       // writes in a row that came too late for the version that is observed
	askedAt    time.Time // when the open request was first seen
	mintedAt   time.Time // when a request was last answered with a mint
	takenAt    time.Time // when the Git servers last took the token that a request complained of
	taken      int       // such answers in a row
	looked     string    // the request about which the Git servers were asked, while it waits for somebody else's mint
	repairs    int       // in a row, without contentionEnds between them
	repairedAt time.Time
	rejections int // new tokens in a row that every Git server refused

	finished bool   // for Once
	said     string // what was said last of a state that lasts
	failing  bool   // a token is needed, and cannot be had or written
	insisted string // the hash of the token that the issuer gave again last
	counts   map[count]int64
}

// count is a series of refreshes_total, beside the target's labels.
type count struct {
	reason  Reason
	outcome Outcome
}

func (e *entry) observe(o Observed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o.Request.Open() && o.Request.ID != e.observed.Request.ID {
		e.askedAt = time.Now()
	}
	e.observed = o
	if e.conflicts > 0 {
		e.conflicts, e.writeAfter = 0, time.Time{}
	}
}

// look gives what is known of the target, with what the mint remembers.
func (e *entry) look(m *mint, p Policy) (Observed, Memory) {
	e.mu.Lock()
	defer e.mu.Unlock()
	memory := Memory{WriteAfter: e.writeAfter, RepairAfter: e.repairAfter, RequestAfter: e.requestAfter(p.Cooldown)}
	m.remember(&memory, e.observed.ExpiresAt, e.askedAt)
	return e.observed, memory
}

// ended tells, for Once, whether the work on the target has ended.
func (e *entry) ended() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.finished
}

// finish ends the work on a target, for Once; false when it had ended.
func (e *entry) finish() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := !e.finished
	e.finished = true
	return first
}

// fails notes whether the target is failing.
func (e *entry) fails(failing bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failing = failing
}

func (e *entry) counted(reason Reason, outcome Outcome) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.counts[count{reason, outcome}]++
}

// says tells whether a state that lasts is to be told: once, until it is another.
func (e *entry) says(what string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.said == what {
		return false
	}
	e.said = what
	return true
}

// insists tells whether it is the first time that the issuer gives this token again.
func (e *entry) insists(hash string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := e.insisted != hash
	e.insisted = hash
	return first
}

// wrote notes a write that succeeded, and gives the unplanned ones in a row.
func (e *entry) wrote(unplanned bool, now time.Time) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failures = 0
	if !unplanned {
		return 0
	}
	if now.Sub(e.repairedAt) > contentionEnds {
		e.repairs = 0
	}
	e.repairs++
	e.repairedAt = now
	e.repairAfter = now.Add(RepairDelay(e.repairs))
	return e.repairs
}

// refused notes a write that failed, or that may not be; left is what remains of the credential that stands there.
func (e *entry) refused(err *Error, left time.Duration, now time.Time, u float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failures++
	e.writeAfter = now.Add(RetryDelay(err, e.failures, left, u))
}

// conflict notes a write that came too late for the version it was about. The next observation clears it, and should be on its
// way; where it does not come, the watch is blind.
func (e *entry) conflict(version string, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.observed.Version == version {
		e.conflicts++
		e.writeAfter = now.Add(RepairDelay(e.conflicts))
	}
}

// requestAfter is when the open request may be acted upon. Who demands a token may have mended what had them rejected, so that waits for no
// more than the plain cool-down. It is called with mu.
func (e *entry) requestAfter(cooldown time.Duration) time.Time {
	if e.observed.Request.About == "" {
		return e.mintedAt.Add(cooldown)
	}
	looks := min(RepairDelay(max(e.taken, 1)), cooldown)
	return latest(e.mintedAt.Add(Cooldown(cooldown, e.rejections)), e.takenAt.Add(looks))
}

// minted notes that a request was answered with a mint.
func (e *entry) minted(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mintedAt = now
}

// stillTaken notes that a request was answered without a mint, because the Git servers take the token.
func (e *entry) stillTaken(now time.Time, cooldown time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Sub(e.takenAt) > 2*cooldown {
		e.taken = 0
	}
	e.taken++
	e.takenAt, e.rejections = now, 0
}

// tried notes what the Git servers said of a new token.
func (e *entry) tried(rejected bool, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if rejected {
		e.rejections++
		e.mintedAt = now
	} else {
		e.rejections = 0
	}
}

// hasLooked tells whether the Git servers were asked about a request already.
func (e *entry) hasLooked(request string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.looked == request
}

// looks notes about which request the Git servers were asked; "" forgets it.
func (e *entry) looks(request string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.looked = request
}
