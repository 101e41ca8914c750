package refresh

import "time"

// Observed is what a Secret says about itself; it never holds the token. A time that is missing or does not
// parse is zero.
type Observed struct {
	Exists bool
	// UID and Version (the resourceVersion) fence the next write.
	UID, Version string
	// Created tells that we created this Secret, so that its labels are ours to keep.
	Created bool

	// Suspended is the annotation suspend: "true".
	Suspended bool
	// Refused says why this Secret can never take the token (immutable, a type of somebody else's); "" when it can.
	Refused string
	// Foreign tells that a credential which is not ours stands there.
	Foreign bool
	// Leftover says what of that credential stays beside our token, and how to remove it; "" when nothing does. Where the token is ours already, it
	// is about what Flux uses instead.
	Leftover string
	// OtherManager is the field manager, other than ours, that last wrote a key of the target; "" when none did.
	OtherManager string

	// TokenHash, WrittenHash and ConfigHash are the annotations token-hash, content-hash and config-hash.
	TokenHash, WrittenHash, ConfigHash string
	// ContentHash is Format.ContentHash of what stands there now.
	ContentHash string

	ExpiresAt, RefreshAt, RefreshedAt time.Time

	// Request is the open request for a refresh; the zero Request when none is open.
	Request Request
	// Handled is the request that was handled last, and how it ended.
	Handled Handled
}

// Request is somebody's wish for a new token, as it stands on the Secret.
type Request struct {
	// ID is Hash(raw value of the annotation request).
	ID string
	// About is the hash of the token that the request complains of; "" for a human's, who means whatever is there.
	About string
	// Received is when the event behind it came in; zero when there is none.
	Received time.Time
	// TraceParent is the W3C traceparent of the event behind it; "" when there is none.
	TraceParent string
}

// Open tells whether there is a request.
func (r Request) Open() bool { return r.ID != "" }

// Handled is the annotations handled-request and handled-outcome.
type Handled struct {
	Request string
	Outcome Outcome
}

// Outcome is how a reconciliation ended.
type Outcome string

const (
	// Refreshed: another token stands in the Secret.
	Refreshed Outcome = "Refreshed"
	// Repaired: the token that was held already stands in the Secret again; nothing was minted.
	Repaired Outcome = "Repaired"
	// Unchanged: the issuer gave the same token again, which managed-identity endpoints do for hours.
	Unchanged Outcome = "Unchanged"
	// StillValid: the request was about a token that the Git servers still take; nothing was minted.
	StillValid Outcome = "StillValid"
	// TokenRejected: another token stands in the Secret, and every Git server refuses that too.
	TokenRejected Outcome = "TokenRejected"
	// Superseded: the request was about a token that is no longer there.
	Superseded Outcome = "Superseded"
	// Conflicted: somebody changed the Secret first; the token is kept and tried on the next observation.
	Conflicted Outcome = "Conflicted"
	// Waiting: only a change of the Secret can help (it is missing, suspended or refused).
	Waiting Outcome = "Waiting"
	// Failed: the Secret stays as it is; tried again later.
	Failed Outcome = "Failed"
)
