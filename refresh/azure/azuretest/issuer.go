// The other side of a federated credential: who issues ServiceAccount tokens.

package azuretest

import (
	"crypto"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// Issuer signs assertions as a Kubernetes API server signs ServiceAccount tokens.
type Issuer struct {
	url    string
	signer *signer
}

// NewIssuer makes an issuer with a key of its own.
func NewIssuer(url string) (*Issuer, error) {
	s, err := newSigner()
	if err != nil {
		return nil, err
	}
	return &Issuer{url: url, signer: s}, nil
}

// Keys are what the issuer's jwks_uri would serve.
func (i *Issuer) Keys() []crypto.PublicKey { return []crypto.PublicKey{i.signer.key.Public()} }

// Federate gives the federated credential that trusts tokens of a ServiceAccount for TokenExchange.
func (i *Issuer) Federate(subject string) FederatedCredential {
	return FederatedCredential{Issuer: i.url, Subject: subject, Audience: TokenExchange, Keys: i.Keys()}
}

// Token signs a token for a subject (system:serviceaccount:<namespace>:<name>) and an audience. It has expired
// already when lifetime is negative. No two are alike.
func (i *Issuer) Token(subject, audience string, lifetime time.Duration) string {
	now := time.Now()
	issued := now
	if lifetime < 0 {
		issued = now.Add(2 * lifetime)
	}
	return i.signer.sign(jwt.RegisteredClaims{
		Issuer: i.url, Subject: subject, Audience: jwt.ClaimStrings{audience}, ID: uuid.NewString(),
		IssuedAt: jwt.NewNumericDate(issued), NotBefore: jwt.NewNumericDate(issued), ExpiresAt: jwt.NewNumericDate(now.Add(lifetime)),
	})
}
