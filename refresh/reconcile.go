package refresh

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// contended is the repair in a row from which somebody else is told of.
const contended = 3

// reconcile is the one path: it looks at what is, never at what woke it.
func (t *term) reconcile(ctx context.Context, e *entry) {
	if e.ended() {
		return
	}
	m := t.mints[e.target.Mint]
	o, memory := e.look(m, t.Policy)
	memory.Held, _ = t.Source.Held(e.target.Mint)

	d := Decide(e.target, o, memory, t.Policy, time.Now())
	switch {
	case d.Action == Look:
		if d.Reason == "" {
			e.says("")
			if !memory.Misconfigured { // else the next try fails as the last one did, though none is due
				e.fails(false)
			}
			t.end(e, nil)
		}
		t.queue.AddAfter(e.target.Name, min(time.Until(d.At), longestSleep))
	case d.Action == Await:
		t.wait(ctx, e, o, d)
	case !t.leads():
		t.queue.AddAfter(e.target.Name, freshAgain)
	case d.Action == Mint && !t.looksFirst(e, o, d) && !m.begin(e, d):
		// Parked: whoever mints wakes it.
	default:
		t.act(ctx, e, o, d)
		t.queue.Add(e.target.Name)
	}
}

func (t *term) leads() bool { return t.Fresh == nil || t.Fresh() }

// act carries a decision out, and tells of it in every place where that is told.
func (t *term) act(ctx context.Context, e *entry, o Observed, d Decision) {
	started := time.Now()
	ctx, span := t.instruments.start(ctx, e.target, o.Request, d)
	outcome, token, err := t.carryOut(ctx, e, o, d)
	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, errNotLeading)):
		span.gaveUp()
		return
	case errors.Is(err, errParked):
		span.End()
		return
	case errors.Is(err, ErrConflict):
		outcome = Conflicted
	case err != nil:
		outcome, err = Failed, known(err)
	}
	took := time.Since(started)
	span.end(outcome, token, err)
	if d.Action != Fail { // it was counted when the mint failed
		e.counted(d.Reason, outcome)
	}
	t.instruments.took(ctx, d.Reason, outcome, took)

	log := t.log(e, d).With("outcome", outcome, "took", took.Round(time.Millisecond).String())
	switch outcome {
	case Failed:
		if err == nil { // the request ended so; the failure itself was told when the mint failed
			log.InfoContext(ctx, "the request ended without a new token")
			return
		}
		log.WarnContext(ctx, sentences[outcome], "error", err, "expires_at", o.ExpiresAt)
		e.fails(true)
		t.tellFailure(e, o, known(err))
		t.end(e, err)
	case Conflicted:
		log.InfoContext(ctx, sentences[outcome])
	case TokenRejected:
		log.WarnContext(ctx, sentences[outcome], "token_hash", token.Hash, "expires_at", token.Expires)
		t.succeeded(e, o, d, outcome)
	default:
		// An issuer that keeps a token for a day is asked ever more often towards its end; who requested it is answered each time.
		if outcome != Unchanged || e.insists(token.Hash) || d.Reason == RefreshRequested {
			log.InfoContext(ctx, sentences[outcome], "token_hash", token.Hash, "expires_at", token.Expires)
		}
		t.succeeded(e, o, d, outcome)
	}
}

var sentences = map[Outcome]string{
	Failed:        "refresh failed; the Secret stays as it is",
	Conflicted:    "somebody changed the Secret first; looking again",
	Refreshed:     "wrote a new token",
	Repaired:      "wrote the token again",
	Unchanged:     "the issuer gave the same token again",
	StillValid:    "the Git servers still take the token that is there",
	Superseded:    "the request was about an earlier token",
	TokenRejected: "wrote a new token, which the Git servers refuse too",
}

var (
	errNotLeading = errors.New("the lease is not known to be ours")
	errTermEnded  = errors.New("the term of leadership ended")
	// errParked: whoever mints wakes it.
	errParked = errors.New("another target's mint will do")
)

func (t *term) carryOut(ctx context.Context, e *entry, o Observed, d Decision) (Outcome, Token, error) {
	switch {
	case d.Action == Supersede:
		outcome, token, err := t.settle(ctx, e, o, Superseded, time.Time{}, Token{})
		if err == nil {
			t.wake(ctx, e) // whoever failed with the earlier token can try the present one
		}
		return outcome, token, err
	case d.Action == Fail:
		return t.settle(ctx, e, o, Failed, time.Time{}, Token{})
	case d.Action == Keep:
		held, _ := t.Source.Held(e.target.Mint)
		return t.settle(ctx, e, o, Unchanged, d.At, held)
	case d.Action == Mint && t.looksFirst(e, o, d):
		// Before the right to mint is taken: a Git server that is slow holds up no other target.
		taken, err := t.stillTaken(ctx, e, o)
		if err != nil {
			return Failed, Token{}, err
		}
		if taken {
			e.stillTaken(time.Now(), t.Policy.Cooldown)
			return t.settle(ctx, e, o, StillValid, time.Time{}, Token{})
		}
		if !t.mints[e.target.Mint].begin(e, d) {
			e.looks(o.Request.ID)
			return "", Token{}, errParked
		}
	}
	token, err := t.acquire(ctx, e, o, d)
	if err != nil {
		return Failed, Token{}, err
	}
	if d.Renews && token.Hash == o.TokenHash {
		return t.settle(ctx, e, o, Unchanged, UnchangedAt(token.Expires, time.Now()), token)
	}
	if d.Reason == Adopted {
		if err := t.mayReplace(ctx, e, token); err != nil {
			return Failed, token, err
		}
	}
	record := Record{Reason: d.Reason, RefreshAt: t.Policy.RefreshAt(token), RefreshedAt: refreshedAt(o, token, time.Now())}
	another := token.Hash != o.TokenHash
	// A token that was held already may be the very one that the request is about, where the Secret no longer tells.
	if o.Request.Open() && another && (d.Action == Mint || d.Renews || o.TokenHash != "") {
		record.Handled = Handled{Request: o.Request.ID, Outcome: Refreshed}
	}
	outcome := Refreshed
	if d.Repairs() || !another {
		outcome = Repaired
	}
	if err := t.write(ctx, e, o, func(ctx context.Context) error {
		return t.Store.Apply(ctx, e.target, o, token, record)
	}); err != nil {
		return outcome, token, err
	}
	if another {
		t.instruments.answered(ctx, o.Request)
	}
	return t.follow(ctx, e, d, o.Request.Open(), outcome, token, record.Handled)
}

// refreshedAt is since when the Secret can hold the token: an event from before that is about an earlier one. A repair changes nothing about it, whoever
// leads: an issuer that insists on a token may have given it to the leader before, too. Where the Secret does not tell what it held, that may have been this very token.
func refreshedAt(o Observed, token Token, now time.Time) time.Time {
	switch {
	case o.TokenHash != "" && o.TokenHash != token.Hash:
		return now
	case o.TokenHash != "" && !o.RefreshedAt.After(now) && !token.Expires.After(o.RefreshedAt.Add(farthest)): // as implausible has it
		return o.RefreshedAt
	}
	return token.Minted
}

// acquire gives the held token or asks the issuer for one, under the mint that begin gave.
func (t *term) acquire(ctx context.Context, e *entry, o Observed, d Decision) (Token, error) {
	var token Token
	err := t.instruments.span(ctx, "token.acquire", func(ctx context.Context) error {
		if d.Action == Reuse {
			token, _ = t.Source.Held(e.target.Mint)
			t.mints[e.target.Mint].link(ctx)
			return nil
		}
		var err error
		if t.leads() {
			token, err = t.Source.Token(ctx, e.target.Mint, o.TokenHash)
		} else {
			err = errNotLeading
		}
		if err == nil && !token.Alive(time.Now()) {
			err = &Error{Class: Unavailable, Text: "the issuer gave a token that has already ended"}
		}
		var insists time.Time
		if err == nil && token.Hash == o.TokenHash {
			insists = UnchangedAt(token.Expires, time.Now())
		}
		t.minted(ctx, e, o, insists, err)
		return err
	}, attribute.Bool("token.reused", d.Action == Reuse), attribute.String("token.identity", e.target.Mint.Identity))
	return token, err
}

// minted ends a mint: it remembers how it went, and wakes who was parked for it, or tells them how it failed.
func (t *term) minted(ctx context.Context, e *entry, o Observed, insists time.Time, err error) {
	m := t.mints[e.target.Mint]
	var failure *Error
	switch {
	case err == nil:
		m.succeeded(ctx, insists)
	case ctx.Err() == nil && !errors.Is(err, errNotLeading):
		failure = known(err)
		now := time.Now()
		m.failed(failure, now, spread(e.target.Name.String(), now))
	}
	e.looks("")
	if o.Request.Open() && (err == nil || failure != nil && failure.Class == Misconfigured) {
		e.minted(time.Now())
	}
	for parked, decision := range m.end() {
		if failure != nil {
			t.failedToo(ctx, parked, decision, failure)
		}
		t.queue.Add(parked.target.Name)
	}
}

// failedToo tells of a target that was parked for a mint that failed, unless somebody changed their mind meanwhile.
func (t *term) failedToo(ctx context.Context, e *entry, d Decision, failure *Error) {
	o, _ := e.look(t.mints[e.target.Mint], t.Policy)
	if o.Suspended || o.Refused != "" {
		return
	}
	e.counted(d.Reason, Failed)
	e.fails(true)
	if t.tellFailure(e, o, failure) {
		t.log(e, d).WarnContext(ctx, sentences[Failed], "error", failure, "expires_at", o.ExpiresAt)
	}
	t.end(e, failure)
}

func (t *term) settle(ctx context.Context, e *entry, o Observed, outcome Outcome, refreshAt time.Time, token Token) (Outcome, Token, error) {
	var handled Handled
	if o.Request.Open() {
		handled = Handled{Request: o.Request.ID, Outcome: outcome}
	}
	return outcome, token, t.write(ctx, e, o, func(ctx context.Context) error {
		return t.Store.Settle(ctx, e.target, o, handled, refreshAt)
	})
}

// write is where every write passes: only by a leader, and its failure paces this target's writes alone.
func (t *term) write(ctx context.Context, e *entry, o Observed, write func(context.Context) error) error {
	return t.instruments.span(ctx, "secret.apply", func(ctx context.Context) error {
		if !t.leads() {
			return errNotLeading
		}
		err := write(ctx)
		t.pace(ctx, e, o, err)
		return err
	})
}

// pace notes how a request to the Store failed, if it did.
func (t *term) pace(ctx context.Context, e *entry, o Observed, err error) {
	now := time.Now()
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, ErrConflict):
		e.conflict(o.Version, now)
	default:
		e.refused(known(err), o.ExpiresAt.Sub(now), now, spread(e.target.Name.String(), now))
	}
}

func (t *term) succeeded(e *entry, o Observed, d Decision, outcome Outcome) {
	e.says("")
	if d.Action != Supersede && d.Action != Fail {
		e.fails(false)
		t.end(e, nil)
	}
	// A mint for what any token settles cannot come twice: from then on a token is held.
	inARow := e.wrote(d.Repairs() || d.Action == Mint && !d.Renews && !fixable[d.Reason], time.Now())
	name := e.target.Name
	switch {
	case inARow >= contended && o.UID != "":
		other := o.OtherManager
		if other == "" {
			other = "somebody"
		}
		t.Recorder.Event(name, o.UID, true, "Contended", other+" keeps changing this Secret's token; repairs wait longer each time, up to a minute. Take the key out of what "+other+" writes.")
	case d.Reason == Adopted:
		t.Recorder.Event(name, o.UID, false, string(Adopted), beside("A credential that was not ours was replaced by a token of identity "+e.target.Mint.Identity+".", o))
	case d.Reason == RefreshRequested && outcome == Refreshed:
		t.Recorder.Event(name, o.UID, false, string(Refreshed), beside("A new token was written, as requested.", o))
	}
}

// beside adds to a note about a new token what stays of another credential.
func beside(note string, o Observed) string {
	if o.Leftover == "" {
		return note
	}
	return note + " " + o.Leftover
}

// tellFailure puts a failure beside the Secret, once for each kind of it in a row, and tells whether this was the first.
func (t *term) tellFailure(e *entry, o Observed, err *Error) bool {
	first := e.says(string(err.Class) + err.Code)
	if first && o.UID != "" {
		t.Recorder.Event(e.target.Name, o.UID, true, "RefreshFailed", err.Error())
	}
	return first
}

// wait tells once of what only a change of the Secret can help.
func (t *term) wait(ctx context.Context, e *entry, o Observed, d Decision) {
	if e.says(string(d.Reason) + d.Why) {
		e.counted(d.Reason, Waiting)
		level := slog.LevelWarn
		if d.Reason == Suspended {
			level = slog.LevelInfo
		}
		t.log(e, d).Log(ctx, level, "waiting for the Secret to change")
		if d.Reason == Refused {
			t.Recorder.Event(e.target.Name, o.UID, true, string(Refused), d.Why)
		}
	}
	e.fails(d.Reason != Suspended)
	if d.Reason == Suspended {
		t.end(e, nil)
	} else {
		t.end(e, errors.New(d.Why))
	}
}

// end tells Once how a target ended; one end is enough.
func (t *term) end(e *entry, err error) {
	if t.ended != nil && e.finish() {
		t.ended(e.target.Name, err)
	}
}

func (t *term) log(e *entry, d Decision) *slog.Logger {
	return t.Logger.With("target", e.target.Name.String(), "reason", d.Reason, "why", d.Why)
}

// shown gives what may stand in a span: our own sentences, never a server's.
func shown(err error) error {
	for _, ours := range []error{ErrConflict, errNotLeading, errTermEnded, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, ours) {
			return ours
		}
	}
	return known(err)
}

// known gives a failure that may be told to anybody. Anything else says nothing of itself: it could quote a server.
func known(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Class: Unavailable, Text: "failed for a reason that is not shown"}
}
