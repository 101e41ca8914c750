package e2e

// Events over TLS, from the real Flux, and from a sender with a certificate.

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
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/refresh/azure/azuretest"
)

// TestEventsOverTLS: notification-controller, which signs, trusts the server by the CA in its Provider; a sender with a certificate needs no key,
// and a stranger is refused. (Notification-controller shows a certificate of its own from 1.7 on.)
func TestEventsOverTLS(t *testing.T) {
	t.Parallel()
	const name = "spiffe://cluster.local/ns/ci/sa/pipeline"
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
				`senders: [{name: pipeline, clientName: "`+name+`", namespaces: ["*"]}, `, "DIR", spec.Dir), 1)
		}
	})
	l.start(t, "")
	l.events = strings.Replace(l.events, "http://", "https://", 1)
	trust := applycorev1.Secret("receiver-ca", l.Namespace).WithData(map[string][]byte{"ca.crt": ca})
	if _, err := l.Client.CoreV1().Secrets(l.Namespace).Apply(t.Context(), trust, metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
		t.Fatal(err)
	}
	l.sources.provide(t, map[string]any{"address": l.events, "certSecretRef": map[string]any{"name": "receiver-ca"}})
	awaitSecret(t, l.Installation, credential, sound(l.Installation))

	r := l.round(t, "source", true)
	t.Logf("refused → event received over TLS %s → Ready %s", r.received.Sub(r.refused).Round(time.Millisecond), r.ready.Sub(r.received).Round(time.Millisecond))
	if got := l.answered(t, "202").Attributes["event.sender"]; got != "flux" {
		t.Errorf("the event is from %s, want flux", got)
	}

	pair, err := tls.X509KeyPair(client, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		certificates []tls.Certificate
		want         int
	}{
		"a certificate": {[]tls.Certificate{pair}, http.StatusAccepted},
		"no proof":      {nil, http.StatusUnauthorized},
	} {
		request, err := http.NewRequestWithContext(patient(t), http.MethodPost, l.events, strings.NewReader(requestEvent("1", l.Namespace, credential)))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/cloudevents+json")
		config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), Certificates: test.certificates}
		config.RootCAs.AppendCertsFromPEM(ca)
		sender := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: config}}
		response, err := sender.Do(request)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		_ = response.Body.Close()
		if response.StatusCode != test.want {
			t.Errorf("%s: %d, want %d", what, response.StatusCode, test.want)
		}
	}
	if _, err := l.spans.Wait(patient(t), func(s otlp.Span) bool { return isRequest(s) && s.Attributes["event.sender"] == "pipeline" }); err != nil {
		t.Errorf("no event is from the sender with the certificate: %v", err)
	}
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
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pipeline"}, URIs: []*url.URL{name},
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
