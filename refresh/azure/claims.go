// What an assertion says of itself, which is no secret; the assertion is.

package azure

import (
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// claims are what a federated credential is matched against, and the assertion's validity.
type claims struct {
	issuer, subject, audience string
	notBefore, expires        string
}

func parseClaims(assertion string) (claims, error) {
	var c jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(assertion, &c); err != nil {
		return claims{}, err
	}
	at := func(d *jwt.NumericDate) string {
		if d == nil {
			return ""
		}
		return d.UTC().Format(time.RFC3339)
	}
	return claims{
		issuer: c.Issuer, subject: c.Subject, audience: strings.Join(c.Audience, " "),
		notBefore: at(c.NotBefore), expires: at(c.ExpiresAt),
	}, nil
}

// shown makes a name fit for a sentence: nothing that breaks a line, nothing without end.
func shown(s string) string {
	const limit = 256
	if s == "" {
		return "(none)"
	}
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}
