package refresh

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

// Token is an access token that cannot be printed by accident. Its value stands behind a pointer, which fmt
// does not follow where the Token is an unexported field of somebody else's struct, and the type
// formats itself under every verb (a Stringer alone still prints through %d: measured).
type Token struct {
	v *string
	// Hash is Hash(value): safe to log, to store and to compare.
	Hash string
	// Minted is when the request for this token was sent; a token's lifetime is counted from here.
	Minted time.Time
	// Expires is the end of the token as its issuer said.
	Expires time.Time
	// RefreshOn is when the issuer would like it to be renewed (refresh_in); zero when it did not say.
	RefreshOn time.Time
}

// longestLife is that of the longest tokens that are issued, those of managed-identity endpoints. A longer one is renewed as if it
// ended then, so that no mistake of an issuer puts a refresh off for ever.
const longestLife = 24 * time.Hour

// NewToken wraps the value of an access token.
func NewToken(value string, minted, expires, refreshOn time.Time) Token {
	return Token{
		v: &value, Hash: Hash(value), Minted: minted, Expires: earliest(expires, minted.Add(longestLife)), RefreshOn: refreshOn,
	}
}

// Reveal gives the value itself, or "" for the zero Token. Call it only where the value leaves for a
// Secret, for a Git server, or for a user who asked for it.
func (t Token) Reveal() string {
	if t.v == nil {
		return ""
	}
	return *t.v
}

// IsZero tells whether this is no token at all.
func (t Token) IsZero() bool { return t.v == nil }

// Alive tells whether the token still works at now, as far as its issuer said.
func (t Token) Alive(now time.Time) bool { return t.v != nil && now.Before(t.Expires) }

// Format implements fmt.Formatter: every verb prints the hash and the end, never the value.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.redacted()) }

// MarshalText implements encoding.TextMarshaler, which encoding/json and slog's handlers use.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.redacted()), nil }

func (t Token) redacted() string {
	return fmt.Sprintf("Token(%s until %s)", t.Hash, t.Expires.UTC().Format(time.RFC3339))
}

// Hash is how a secret value is named in logs, annotations and comparisons: the first 16 hex digits
// of its SHA-256.
func Hash(value string) string {
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:8])
}

// LongHash names several texts together: 32 hex digits of SHA-256 over each, preceded by its length.
func LongHash(texts ...string) string {
	h := sha256.New()
	for _, text := range texts {
		writeSized(h, []byte(text))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// writeSized writes a part so that no other division of the same bytes gives the same stream.
func writeSized(w io.Writer, part []byte) {
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(part)))
	_, _ = w.Write(size[:])
	_, _ = w.Write(part)
}
