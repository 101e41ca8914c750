package e2e

// Events over TLS, from the real Flux, which proves itself by a certificate.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/refresh/azure/azuretest"
)

// TestEventsOverTLS: notification-controller sends to a server that speaks TLS, in the name that its certificate has, without a key; beside it a sender
// with a key is known too, and a stranger is not.
func TestEventsOverTLS(t *testing.T) {
	t.Parallel()
	const name = "spiffe://cluster.local/ns/flux-system/sa/notification-controller"
	ca, server, err := azuretest.NewCertificate("")
	if err != nil {
		t.Fatal(err)
	}
	serverKey, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	client, clientKey := newClientCertificate(t, name)
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t), func(_ *loop, spec *installation.Spec) {
		spec.Edit = func(config string) string {
			for file, content := range map[string][]byte{
				"tls.crt": pemOf("CERTIFICATE", server.Certificate[0]), "tls.key": pemOf("PRIVATE KEY", serverKey), "clients.crt": client,
			} {
				if err := os.WriteFile(filepath.Join(spec.Dir, file), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			return strings.Replace(config, "senders: [", strings.ReplaceAll("tls: {certFile: DIR/tls.crt, keyFile: DIR/tls.key, clientCAFile: DIR/clients.crt}, "+
				`senders: [{name: mesh, clientName: "`+name+`", namespaces: ["*"]}, `, "DIR", spec.Dir), 1)
		}
	})
	l.start(t, "")
	l.events = strings.Replace(l.events, "http://", "https://", 1)
	shown := applycorev1.Secret("notification-controller-tls", l.Namespace).WithData(map[string][]byte{"ca.crt": ca, "tls.crt": client, "tls.key": clientKey})
	if _, err := l.Client.CoreV1().Secrets(l.Namespace).Apply(t.Context(), shown, metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
		t.Fatal(err)
	}
	l.sources.provide(t, map[string]any{"type": "generic", "address": l.events, "certSecretRef": map[string]any{"name": "notification-controller-tls"}})
	awaitSecret(t, l.Installation, credential, sound(l.Installation))

	r := l.round(t, "source", true)
	t.Logf("refused → event received over TLS %s → Ready %s", r.received.Sub(r.refused).Round(time.Millisecond), r.ready.Sub(r.received).Round(time.Millisecond))
	if got := l.answered(t, "202").Attributes["event.sender"]; got != "mesh" {
		t.Errorf("the event is from %s, want mesh", got)
	}

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	trusting := newTrusting(roots)
	body := requestEvent("1", l.Namespace, credential)
	for what, test := range map[string]struct {
		signature string
		want      int
	}{
		"a key":      {signature(l.sources.key, []byte(body)), http.StatusAccepted},
		"a stranger": {"", http.StatusUnauthorized},
	} {
		request, err := http.NewRequestWithContext(patient(t), http.MethodPost, l.events, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("X-Signature", test.signature)
		response, err := trusting.Do(request)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		_ = response.Body.Close()
		if response.StatusCode != test.want {
			t.Errorf("%s: %d, want %d", what, response.StatusCode, test.want)
		}
	}
}

// newTrusting is a client that trusts these authorities, and keeps no connection.
func newTrusting(roots *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}}}
}

// newClientCertificate makes one that is its own authority, for a URI, and its key.
func newClientCertificate(t *testing.T, uri string) (certificate, key []byte) {
	t.Helper()
	name, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "notification-controller"}, URIs: []*url.URL{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("CERTIFICATE", der), pemOf("PRIVATE KEY", encoded)
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
