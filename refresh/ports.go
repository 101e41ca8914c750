package refresh

import (
	"context"
	"time"
)

// Source issues tokens. refresh/azure implements it. Safe for concurrent use.
type Source interface {
	// Held gives the newest token that this Source issued for key, without asking anybody. ok is false when there is none;
	// it may have expired.
	Held(key MintKey) (t Token, ok bool)
	// Token gives a token whose hash is not notHash: the held one where that fits and it is alive, else a new one. When the
	// issuer insists on the same token, that token comes back without an error. Concurrent calls for
	// one key share one request. Errors are *Error, or the context's.
	Token(ctx context.Context, key MintKey, notHash string) (Token, error)
}

// Store is where Secrets live. refresh/secret implements it; refreshtest has one in memory. Safe for
// concurrent use. Errors are *Error, ErrConflict, or the context's.
type Store interface {
	// Watch tells observe what is there, at once and at every change, until ctx ends; it reconnects by itself
	// and returns ctx's error. Calls of observe for one target never overlap, and never go back to an
	// older version: answers to Apply and Settle come through it too, before those return. observe must not call
	// the Store.
	Watch(ctx context.Context, target Target, observe func(Observed)) error
	// Apply writes the token and all that we own, if the Secret is still the observed one.
	Apply(ctx context.Context, target Target, observed Observed, token Token, record Record) error
	// Settle records that the open request ended without another token, if the Secret is still the observed one. A
	// zero RefreshAt leaves refresh-at as it is.
	Settle(ctx context.Context, target Target, observed Observed, handled Handled, refreshAt time.Time) error
	// Read gives the token that stands in the Secret, if the Secret is still the observed one; the zero Token when the target's
	// format does not show where it stands.
	Read(ctx context.Context, target Target, observed Observed) (Token, error)
}

// Readers are the objects that read a target's Secret: what Flux pulls with. flux implements it. Safe for concurrent
// use. Errors are *Error, or the context's.
type Readers interface {
	// Try shows the token to the Git servers of all readers of the target that may be asked, and to nobody else. When
	// one that takes it is enough, it does not wait for the others after that, whose answers are then left out. Who has not answered
	// by ctx's deadline is silent.
	Try(ctx context.Context, target Target, token Token, enough bool) (Trial, error)
	// Wake tells the readers that fail to try again at once, and gives their number. One that is suspended is left alone.
	Wake(ctx context.Context, target Target) (int, error)
}

// Trial is what the Git servers of a Secret's readers said of a token: how many took it, refused it, or gave no answer that says
// either. All zero: there is nobody to ask.
type Trial struct {
	Accepted, Rejected, Silent int
	// Why is a sentence about the refusals: what most likely has to be changed. Where there are none it is about the silence.
	Why string
}

// Record is what is written beside the token.
type Record struct {
	Reason                 Reason
	RefreshAt, RefreshedAt time.Time
	Handled                Handled
}

// Recorder tells the people who look at a Secret what happened to it (kubectl events --for secret/NAME).
type Recorder interface {
	// Event is best effort and does not block. The note is a sentence for a person.
	Event(name Name, uid string, warning bool, reason, note string)
}
