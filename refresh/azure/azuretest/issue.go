// The tokens: shaped like Entra's, about 1.5 kB, no two alike.

package azuretest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	mathrand "math/rand/v2"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// Issued is what is known of a token.
type Issued struct {
	TenantID, ClientID, Resource string
	Expires                      time.Time
	Revoked                      bool

	lifetime time.Duration
}

type signer struct {
	key *ecdsa.PrivateKey
	id  string
}

func newSigner() (*signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key for tokens: %w", err)
	}
	return &signer{key: key, id: filler(20)}, nil
}

func (s *signer) sign(claims jwt.Claims) string {
	t := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	t.Header["kid"], t.Header["x5t"] = s.id, s.id
	signed, err := t.SignedString(s.key)
	if err != nil {
		panic(err) // an ECDSA key always signs ES256
	}
	return signed
}

// Issue gives a token as the token endpoint would, without a request: for tests of what takes tokens.
func (e *Entra) Issue(clientID, resource string) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, app := range e.config.Applications {
		if app.ClientID == clientID {
			token, _ := e.issue(app, resource)
			return token, nil
		}
	}
	return "", fmt.Errorf("this Entra knows no application %s", clientID)
}

// issue needs e.mu.
func (e *Entra) issue(app Application, resource string) (string, *Issued) {
	now := time.Now()
	issued := &Issued{TenantID: app.TenantID, ClientID: app.ClientID, Resource: resource, lifetime: e.config.lifetime()}
	issued.Expires = now.Add(issued.lifetime)
	token := e.signer.sign(jwt.MapClaims{
		"aud": resource, "iss": "https://sts.windows.net/" + app.TenantID + "/",
		"iat": now.Unix() - 300, "nbf": now.Unix() - 300, "exp": issued.Expires.Unix(), // Entra dates back by 5 minutes
		"aio": filler(60), "appid": app.ClientID, "appidacr": "2", "idtyp": "app", "ver": "1.0",
		"idp": "https://sts.windows.net/" + app.TenantID + "/", "tid": app.TenantID,
		"oid": app.ClientID, "sub": app.ClientID, "rh": "1." + filler(60), "uti": uuid.NewString(),
		"xms_ftd": filler(60), "xms_idrel": "7 16", "xms_rd": filler(60), "xms_sub_fct": "3 9", "xms_tdbr": filler(40),
	})
	e.issued[token] = issued
	e.counts[[2]string{app.ClientID, resource + "/.default"}]++
	return token, issued
}

// lifetime is random within the bounds, in whole seconds.
func (c *Config) lifetime() time.Duration {
	least, most := c.MinLifetime, c.MaxLifetime
	if least == 0 {
		least = 60 * time.Minute
	}
	if most == 0 {
		most = 90 * time.Minute
	}
	spread := max(most-least, 0)
	return max((least + mathrand.N(spread+1)).Round(time.Second), time.Second)
}

// filler is n random bytes in base64.
func filler(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b)
}
