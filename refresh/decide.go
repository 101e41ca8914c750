package refresh

import (
	"fmt"
	"time"
)

// Reason is why a reconciliation does something, or why it waits.
type Reason string

const (
	// SecretMissing: the Secret does not exist; it is created where the target allows it, else waited for.
	SecretMissing Reason = "SecretMissing"
	// Suspended: the Secret's owner said hands off; it is waited for.
	Suspended Reason = "Suspended"
	// Refused: the Secret can never take the token as it is; it is waited for.
	Refused Reason = "Refused"
	// Adopted: a credential that is not ours stands there.
	Adopted Reason = "Adopted"
	// ConfigChanged: it was written for another tenant, client, scope or format.
	ConfigChanged Reason = "ConfigChanged"
	// TokenMissing: a key of the target is missing or empty.
	TokenMissing Reason = "TokenMissing"
	// TokenAltered: what stands there is not what we wrote.
	TokenAltered Reason = "TokenAltered"
	// TokenExpired: the token's end has passed.
	TokenExpired Reason = "TokenExpired"
	// RefreshRequested: a request is open.
	RefreshRequested Reason = "RefreshRequested"
	// RefreshDue: the time to refresh has come, or what the annotations say of it cannot be true.
	RefreshDue Reason = "RefreshDue"
)

// Action is what a Decision asks for.
type Action string

const (
	// Look again at Decision.At; until then all is well, or it is too early to try again.
	Look Action = "look"
	// Await a change of the Secret; nothing else can help.
	Await Action = "await"
	// Reuse the token that is held: write it, mint nothing.
	Reuse Action = "reuse"
	// Mint a token that is not the one with Observed.TokenHash, then write it.
	Mint Action = "mint"
	// Keep the token that stands there: the issuer insists on it, as it said when it was asked for another target.
	Keep Action = "keep"
	// Supersede the open request: it is about a token that is no longer there.
	Supersede Action = "supersede"
	// Fail the open request: the mint that it asked for failed until somebody changes something.
	Fail Action = "fail"
)

// Decision is what to do about one target.
type Decision struct {
	Action Action
	// Reason is "" when the token is good.
	Reason Reason
	// Why says it in a sentence for a person.
	Why string
	// Renews tells that the Secret is sound and the token itself is to go, for Reuse and Mint.
	Renews bool
	// At is when to look again, for Look, and when to ask the issuer again, for Keep.
	At time.Time
}

// Memory is what a leader knows of a target beside the Secret. It starts empty with each term, which costs one
// mint at the most.
type Memory struct {
	// Held is the token that the source issued last for this target's MintKey; zero when there is none.
	Held Token
	// No request to the issuer starts before MintAfter, no write before WriteAfter, no repair before
	// RepairAfter, no requested mint before RequestAfter.
	MintAfter, WriteAfter, RepairAfter, RequestAfter time.Time
	// Misconfigured tells that the last mint failed until somebody changes something, and Mended that the open request came
	// after it: that is taken for the word that somebody did, and does not wait for MintAfter.
	Misconfigured, Mended bool
	// Until InsistsUntil the issuer insists on the token that is held; zero where it does not. Answered tells that it said so when it was asked
	// after the open request was seen.
	InsistsUntil time.Time
	Answered     bool
}

const (
	// farthest bounds what an annotation may claim: we write nothing beyond longestLife.
	farthest = longestLife + time.Hour
	// skew is how far the clocks of two leaders may differ.
	skew = 5 * time.Minute
)

// kind says how a check's reason is acted upon.
type kind int

const (
	await   kind = iota // only the Secret can change it
	repair              // the held token will do, as long as it lives; repeated ones are paced
	renewal             // a token other than the one that stands there, unless the issuer insists on it
	request             // a renewal that somebody asked for; repeated ones cool down
)

type facts struct {
	t      Target
	o      Observed
	within time.Duration
	now    time.Time
}

// checks are tried in this order; the first that finds something wrong decides. Each returns a sentence, or "".
var checks = []struct {
	reason Reason
	kind   kind
	wrong  func(facts) string
}{
	{SecretMissing, await, func(f facts) string {
		return when(!f.o.Exists && !f.t.Create, "the Secret does not exist and the target does not say create: true")
	}},
	{SecretMissing, repair, func(f facts) string {
		return when(!f.o.Exists, "the Secret does not exist")
	}},
	{Suspended, await, func(f facts) string {
		return when(f.o.Suspended, "the Secret is annotated suspend: \"true\"")
	}},
	{Refused, await, func(f facts) string { return f.o.Refused }},
	{Adopted, repair, func(f facts) string {
		return when(f.o.Foreign, "a credential that is not ours stands in the Secret")
	}},
	{ConfigChanged, repair, func(f facts) string {
		return when(f.o.TokenHash != "" && f.o.ConfigHash != f.t.ConfigHash,
			"the Secret was written for another configuration of the target")
	}},
	{TokenMissing, repair, func(f facts) string {
		return when(f.o.ContentHash == "", "a key of the target is missing or empty")
	}},
	{TokenAltered, repair, func(f facts) string {
		return when(f.o.ContentHash != f.o.WrittenHash, "what stands in the Secret is not what was written")
	}},
	{TokenExpired, repair, func(f facts) string {
		if f.o.ExpiresAt.IsZero() || f.now.Before(f.o.ExpiresAt) {
			return ""
		}
		return "the token ended at " + f.o.ExpiresAt.UTC().Format(time.RFC3339)
	}},
	{RefreshRequested, request, func(f facts) string {
		return when(f.o.Request.Open(), "a refresh was requested")
	}},
	{RefreshDue, repair, func(f facts) string { return implausible(f.o, f.now) }},
	{RefreshDue, renewal, func(f facts) string {
		at := f.o.RefreshAt.Add(-f.within)
		if f.now.Before(at) {
			return ""
		}
		return "the token was to be refreshed from " + f.o.RefreshAt.UTC().Format(time.RFC3339)
	}},
}

// Decide says what to do about a target: pure, and blind to what caused the look. docs/decisions.md has the table
// that its tests run.
func Decide(t Target, o Observed, m Memory, p Policy, now time.Time) Decision {
	next, good := earliest(o.RefreshAt.Add(-p.Within), o.ExpiresAt), "the token is good"
	f := facts{t: t, o: o, within: p.Within, now: now}
	for _, c := range checks {
		why := c.wrong(f)
		if why == "" {
			continue
		}
		d := Decision{Action: Mint, Reason: c.reason, Why: why, Renews: c.kind == renewal || c.kind == request}
		switch {
		case !m.Held.Alive(now):
		case fixable[c.reason] || m.Held.Hash != o.TokenHash:
			d.Action = Reuse
		case c.kind != request && now.Before(p.RefreshAt(m.Held).Add(-p.Within)), c.kind == repair && now.Before(m.InsistsUntil):
			// It is the token that stands there, and its time has not come: what is wrong is what the annotations say.
			d.Action, d.Renews = Reuse, false
		case c.kind == renewal && now.Before(m.InsistsUntil), c.kind == request && m.Answered:
			d.Action, d.At = Keep, m.InsistsUntil
		}
		notBefore := m.WriteAfter
		switch {
		case c.kind == await:
			return Decision{Action: Await, Reason: c.reason, Why: why}
		case c.kind != request:
		case o.Request.About != "" && o.Request.About != o.TokenHash:
			d = Decision{Action: Supersede, Reason: c.reason, Why: "the request is about a token that is no longer there"}
		case d.Action == Mint && m.Misconfigured && !m.Mended:
			d = Decision{Action: Fail, Reason: c.reason, Why: "the mint that was requested failed until somebody changes something"}
		case d.Action == Mint && now.Before(m.RequestAfter):
			// A request that cools down stays open and holds up nothing that comes after it.
			next, good = earliest(next, m.RequestAfter), "a request cools down"
			continue
		}
		if d.Repairs() || d.Action == Mint && c.kind == repair {
			notBefore = latest(notBefore, m.RepairAfter)
		}
		if d.Action == Mint && (!m.Misconfigured || !m.Mended || now.Before(m.RequestAfter)) {
			notBefore = latest(notBefore, m.MintAfter)
		}
		if now.Before(notBefore) {
			return Decision{Action: Look, Reason: c.reason, Why: why, At: notBefore}
		}
		return d
	}
	return Decision{Action: Look, Why: good, At: next}
}

// fixable are the reasons that any token settles, as long as it lives; the others want another one than that which stands there.
var fixable = map[Reason]bool{SecretMissing: true, Adopted: true, ConfigChanged: true, TokenMissing: true, TokenAltered: true}

// Repairs tells whether a decision puts a Secret right with the token that is held.
func (d Decision) Repairs() bool { return d.Action == Reuse && !d.Renews }

// implausible tells what cannot be true of the times on the Secret. They are input like any other: whoever may
// patch the Secret could otherwise put a refresh off for ever.
func implausible(o Observed, now time.Time) string {
	limit := earliest(o.RefreshedAt, now).Add(farthest)
	switch {
	case o.ExpiresAt.IsZero() || o.RefreshAt.IsZero() || o.RefreshedAt.IsZero():
		return "expires-at, refresh-at or refreshed-at is missing or is no time"
	case o.ExpiresAt.After(limit) || o.RefreshAt.After(limit):
		return fmt.Sprintf("expires-at or refresh-at lies more than %s ahead", farthest)
	case o.RefreshedAt.After(now.Add(skew)):
		return "refreshed-at lies ahead: the clock of whoever wrote it was wrong, or this one is"
	}
	return ""
}

func when(wrong bool, why string) string {
	if wrong {
		return why
	}
	return ""
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
