// A certificate of an application, and what a refusal has to say of it.

package azure

import (
	"context"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // names a certificate as the portal does
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"flux-token-refresher/refresh"
)

func (m minter) openCertificate(ctx context.Context, a *attempt, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	values, err := m.readSecret(ctx, a, "tls.crt", "tls.key")
	if err != nil {
		return nil, err
	}
	bad := func(what string) error {
		return a.id.fail(refresh.Misconfigured, fmt.Sprintf("Secret %s: %s", a.id.CredentialSecret, what))
	}
	certificates, key, err := azidentity.ParseCertificates([]byte(values[0]+"\n"+values[1]), nil)
	if err != nil {
		return nil, bad("tls.crt and tls.key are no certificate and RSA key in PEM (Entra takes no other key, and it may not be encrypted)")
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, bad("tls.key is no RSA key; Entra takes no other")
	}
	own := slices.IndexFunc(certificates, func(c *x509.Certificate) bool { return private.PublicKey.Equal(c.PublicKey) })
	if own < 0 {
		return nil, bad("tls.key does not belong to tls.crt")
	}
	a.certificate = certificates[own]
	cred, err := azidentity.NewClientCertificateCredential(a.id.TenantID, a.id.ClientID, certificates, key,
		&azidentity.ClientCertificateCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: skipInstanceDiscovery})
	if err != nil {
		return nil, a.id.unusable()
	}
	return cred, nil
}

// describeCertificate names it as the portal and az do, by its SHA-1 thumbprint, with its end.
func describeCertificate(c *x509.Certificate, now time.Time) string {
	if c == nil {
		return ""
	}
	verb := "ends"
	if now.After(c.NotAfter) {
		verb = "ended"
	}
	return fmt.Sprintf("thumbprint %X, which %s at %s", sha1.Sum(c.Raw), verb, c.NotAfter.UTC().Format(time.RFC3339)) //nolint:gosec // a name
}
