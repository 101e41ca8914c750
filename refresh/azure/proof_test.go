// What is said of a proof that is no good, for those that stand in the cluster.

package azure_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // names a certificate as the portal does
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
)

func TestCertificate(t *testing.T) {
	t.Parallel()
	certificate := func(end time.Time) *azuretest.ClientCertificate {
		c, err := azuretest.NewClientCertificate(end)
		must(err)
		return c
	}
	another, ended := certificate(time.Now().Add(time.Hour)), certificate(time.Now().Add(-time.Hour))
	use := func(c *azuretest.ClientCertificate) func(*bench) {
		return func(b *bench) { b.cluster.Values["tls.crt"], b.cluster.Values["tls.key"] = c.CertificatePEM, c.KeyPEM }
	}
	set := func(key, value string) func(*bench) { return func(b *bench) { b.cluster.Values[key] = value } }
	thumbprint := func(c *azuretest.ClientCertificate) string {
		return fmt.Sprintf("thumbprint %X, which ", sha1.Sum(c.Raw)) //nolint:gosec // a name
	}
	const malformed = "Secret tokens/certificate: tls.crt and tls.key are no certificate and RSA key in PEM"
	for _, c := range []struct {
		name       string
		change     func(*bench)
		code, says string
	}{
		{"of another application", use(another), "AADSTS700027", "Secret tokens/certificate: " + thumbprint(another) + "ends at " + another.NotAfter.Format(time.RFC3339) + "; add it"},
		{"ended", func(b *bench) {
			use(ended)(b)
			b.Change(func(c *azuretest.Config) { c.Applications[0].Certificates = []*x509.Certificate{ended.Certificate} })
		}, "AADSTS700027", thumbprint(ended) + "ended at " + ended.NotAfter.Format(time.RFC3339)},
		{"key of another", set("tls.key", another.KeyPEM), "", "Secret tokens/certificate: tls.key does not belong to tls.crt"},
		{"elliptic key", set("tls.key", ellipticKey()), "", "tls.key is no RSA key"},
		{"no PEM", set("tls.crt", "certificate"), "", malformed},
		{"no key", set("tls.key", "key"), "", malformed},
		{"empty key", set("tls.key", "\n"), "", "tls.key of Secret tokens/certificate is empty"},
		{"malformed tenant", func(b *bench) { b.identity(byCertificate).TenantID = "a tenant" }, "", "malformed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, c.change)
			got := b.failure(t, byCertificate)
			if got.Class != refresh.Misconfigured || got.Code != c.code || !strings.Contains(got.Text, c.says) {
				t.Errorf("got %s %q: %s\nwant …%s…", got.Class, got.Code, got.Text, c.says)
			}
		})
	}
	t.Run("with those that signed it, and replaced", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, func(b *bench) { b.cluster.Values["tls.crt"] = another.CertificatePEM + b.certificate.CertificatePEM })
		first := b.token(t, byCertificate, "")
		b.Change(func(c *azuretest.Config) { c.Applications[0].Certificates = []*x509.Certificate{another.Certificate} })
		use(another)(b)
		b.token(t, byCertificate, first.Hash)
	})
}

func ellipticKey() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func TestServiceAccount(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(*bench)
		class  refresh.Class
		code   string
		says   string
	}{
		{"client not annotated", func(b *bench) { b.cluster.Account.ClientID = "" }, refresh.Misconfigured, "",
			"ServiceAccount team-a/repos has no annotation azure.workload.identity/client-id; annotate it, or write clientID"},
		{"tenant not annotated", func(b *bench) { b.cluster.Account.TenantID = "" }, refresh.Misconfigured, "",
			"ServiceAccount team-a/repos has no annotation azure.workload.identity/tenant-id; annotate it, or write tenantID"},
		{"client wrong", func(b *bench) { b.cluster.Account.ClientID = "3f1c2d90-0000-4000-8000-00000000ffff" }, refresh.Misconfigured, "AADSTS700016", "ffff is not in tenant " + tenant},
		{"tenant malformed", func(b *bench) { b.cluster.Account.TenantID = "a tenant" }, refresh.Misconfigured, "", "tenant a?tenant, client"},
		{"no token", func(b *bench) { b.cluster.Account.Token = secret }, refresh.Unavailable, "", "no token (JWT) of ServiceAccount team-a/repos"},
		{"not federated", func(b *bench) {
			b.cluster.Account.Token = b.issuer.Token("system:serviceaccount:team-b:repos", azuretest.TokenExchange, time.Hour)
		}, refresh.Misconfigured, "AADSTS700213", "subject system:serviceaccount:team-b:repos,"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, c.change)
			got := b.failure(t, account)
			if got.Class != c.class || got.Code != c.code || !strings.Contains(got.Text, c.says) {
				t.Errorf("got %s %q: %s\nwant %s %q: …%s…", got.Class, got.Code, got.Text, c.class, c.code, c.says)
			}
		})
	}
	t.Run("fields come before annotations, which are read anew", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, func(b *bench) {
			b.identity(account).ClientID = client
			b.cluster.Account.ClientID = "3f1c2d90-0000-4000-8000-00000000ffff"
			b.cluster.Account.TenantID = ""
		})
		_ = b.failure(t, account)
		b.cluster.Account.TenantID = tenant
		b.token(t, account, "")
	})
}
