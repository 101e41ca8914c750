package refresh

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// What the Git servers of a Secret's readers have to say: before a mint, before an adoption, after a write.

const (
	// lookTimeout bounds the question whether the token that stands there is still taken. A server that hangs says nothing of
	// it, and to mint one that was not needed costs less than to wait for that.
	lookTimeout = 2 * time.Second
	// verifyTimeout bounds what nobody waits for, however many servers there are.
	verifyTimeout = 10 * time.Second
)

// looksFirst tells whether the token that stands there is to be tried before another one is minted: an event complains of it, and
// what failed may have been something else. Who demands a token means it, and is not second-guessed.
func (t *term) looksFirst(e *entry, o Observed, d Decision) bool {
	return d.Reason == RefreshRequested && e.target.Verify && o.Request.About != "" && o.Request.About == o.TokenHash && !e.hasLooked(o.Request.ID)
}

// stillTaken tells whether a Git server takes the token that stands there.
func (t *term) stillTaken(ctx context.Context, e *entry, o Observed) (bool, error) {
	token, held := t.Source.Held(e.target.Mint)
	if !held || token.Hash != o.TokenHash {
		var err error
		if token, err = t.Store.Read(ctx, e.target, o); err != nil {
			t.pace(ctx, e, o, err)
			return false, err
		}
		if token.Hash != o.TokenHash {
			return false, nil // the format does not show it
		}
	}
	trial, err := t.try(ctx, e, token, true, lookTimeout)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return err == nil && trial.Accepted > 0, nil
}

// mayReplace tells whether a credential that is not ours may go: every Git server that can be asked took the new token. Its
// refusal paces the next try.
func (t *term) mayReplace(ctx context.Context, e *entry, token Token) error {
	trial, err := t.try(ctx, e, token, false, verifyTimeout)
	var refusal *Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		refusal = known(err)
	case trial.Rejected > 0:
		refusal = &Error{Class: Misconfigured, Text: "the credential that stands there is left alone, because a Git server refuses the new token: " + trial.Why}
	case trial.Silent > 0:
		refusal = &Error{Class: Unavailable, Text: "the credential that stands there is left alone, because a Git server gave no answer to the new token: " + trial.Why}
	default:
		return nil
	}
	// How long somebody else's credential lives is not known; nothing says that it is in a hurry.
	now := time.Now()
	e.refused(refusal, longestLife, now, spread(e.target.Name.String(), now))
	return refusal
}

// follow sees to it, after a write that somebody waits for, that whoever failed tries again, and that the new token is taken. In this order:
// they need not wait for a Git server that is slow to answer us. A refresh by the timer that nobody asked for needs neither: the old
// token still worked.
func (t *term) follow(
	ctx context.Context, e *entry, d Decision, asked bool, outcome Outcome, token Token, handled Handled,
) (Outcome, Token, error) {
	if d.Reason == RefreshDue && !asked {
		return outcome, token, nil
	}
	t.wake(ctx, e)
	if outcome != Refreshed || d.Reason == Adopted {
		return outcome, token, nil
	}
	return t.judge(ctx, e, outcome, token, handled)
}

// keep leaves the token on which the issuer insists where it is. Where somebody asked for another one, what the Git servers say of it decides how that
// ends: a managed identity that was shut out gets the same token for hours.
func (t *term) keep(ctx context.Context, e *entry, o Observed, token Token, refreshAt time.Time) (Outcome, Token, error) {
	outcome, token, err := t.settle(ctx, e, o, Unchanged, refreshAt, token)
	if err != nil || !o.Request.Open() {
		return outcome, token, err
	}
	return t.judge(ctx, e, outcome, token, Handled{Request: o.Request.ID, Outcome: outcome})
}

// judge asks the Git servers about the token that was issued; handled is the request that it answers.
func (t *term) judge(ctx context.Context, e *entry, outcome Outcome, token Token, handled Handled) (Outcome, Token, error) {
	trial, _ := t.try(ctx, e, token, true, verifyTimeout) // one that failed is empty, and no verdict
	switch {
	case trial.Accepted > 0:
		e.tried(false, time.Now())
	case trial.Rejected > 0 && trial.Silent == 0:
		e.tried(true, time.Now())
		return t.rejected(ctx, e, outcome, token, trial, handled)
	}
	return outcome, token, nil
}

// rejected tells of a token that Entra issued and that no Git server takes: not the token is at fault, but what it may do.
func (t *term) rejected(ctx context.Context, e *entry, outcome Outcome, token Token, trial Trial, handled Handled) (Outcome, Token, error) {
	o, _ := e.look(t.mints[e.target.Mint], t.Policy)
	if o.UID != "" {
		which := "the new token"
		if outcome == Unchanged {
			which = "the token that is given again"
		}
		t.Recorder.Event(e.target.Name, o.UID, true, string(TokenRejected), "Every Git server refuses "+which+" of identity "+e.target.Mint.Identity+": "+trial.Why)
	}
	if handled.Request != "" && o.Handled == handled {
		err := t.write(ctx, e, o, func(ctx context.Context) error {
			return t.Store.Settle(ctx, e.target, o, Handled{Request: handled.Request, Outcome: TokenRejected}, time.Time{})
		})
		if err != nil && !errors.Is(err, ErrConflict) {
			return TokenRejected, token, err
		}
	}
	return TokenRejected, token, nil
}

// try shows a token to the Git servers of the target's readers, and says why none of them answered. Where one that takes it is enough, a
// server that hangs holds nobody up.
func (t *term) try(ctx context.Context, e *entry, token Token, enough bool, within time.Duration) (trial Trial, err error) {
	if !e.target.Verify {
		return Trial{}, nil
	}
	err = t.instruments.span(ctx, "token.verify", func(ctx context.Context) error {
		bounded, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		trial, err = t.Readers.Try(bounded, e.target, token, enough)
		setAttributes(ctx,
			attribute.Int("token.accepted", trial.Accepted), attribute.Int("token.rejected", trial.Rejected), attribute.Int("token.silent", trial.Silent))
		return err
	})
	if err == nil && trial.Silent > 0 && trial.Accepted == 0 && trial.Rejected == 0 {
		t.Logger.WarnContext(ctx, "no Git server says whether it takes the token", "target", e.target.Name.String(), "token_hash", token.Hash, "answers", trial.Why)
	}
	return trial, err
}

// wake is best effort: a reader that is not told looks again by itself, if later.
func (t *term) wake(ctx context.Context, e *entry) {
	err := t.instruments.span(ctx, "flux.wake", func(ctx context.Context) error {
		woken, err := t.Readers.Wake(ctx, e.target)
		setAttributes(ctx, attribute.Int("flux.woken", woken))
		return err
	})
	if err != nil && ctx.Err() == nil {
		t.Logger.WarnContext(ctx, "readers of the Secret were not told of the new token", "target", e.target.Name.String(), "error", known(err))
	}
}
