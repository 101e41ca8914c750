package events_test

// Senders that speak TLS: who is who by a certificate, and files that change.

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flux-token-refresher/events"
)

// authority issues certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.certificate = a.sign(t, template, template, &a.key.PublicKey)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) sign(t *testing.T, template, parent *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// issue gives a certificate for these names, DNS names or URIs, and its key as PEM.
func (a *authority) issue(t *testing.T, usage x509.ExtKeyUsage, names ...string) (certificate, key []byte) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "flux.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	for _, name := range names {
		if uri, err := url.Parse(name); err == nil && uri.Scheme != "" {
			template.URIs = append(template.URIs, uri)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	private := newKey(t)
	leaf := a.sign(t, template, a.certificate, &private.PublicKey)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("CERTIFICATE", leaf.Raw), pemOf("PRIVATE KEY", der)
}

func (a *authority) pem() []byte { return pemOf("CERTIFICATE", a.certificate.Raw) }

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// encrypted is a bench behind TLS, on loopback.
type encrypted struct {
	*bench
	files   events.TLSFiles
	address string
	// issuer of the server's certificate, and of the clients'.
	server, clients *authority
}

const mesh = "spiffe://cluster.local/ns/flux-system/sa/notification-controller"

func newEncrypted(t *testing.T) *encrypted {
	t.Helper()
	dir := t.TempDir()
	e := &encrypted{
		bench: newBench(t, func(c *events.Config) {
			c.Senders = append(c.Senders,
				events.Sender{Name: "client", ClientName: "flux.example.com", Namespaces: []string{"*"}},
				events.Sender{Name: "mesh", ClientName: mesh, Namespaces: []string{"*"}})
		}),
		files:  events.TLSFiles{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), ClientCA: filepath.Join(dir, "ca.crt")},
		server: newAuthority(t), clients: newAuthority(t),
	}
	e.renew(t)
	put(t, e.files.ClientCA, e.clients.pem())
	config, err := events.ServerTLS(e.files, slog.New(slog.NewJSONHandler(e.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: e, TLSConfig: config, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	events.Guard(s)
	served := make(chan error, 1)
	go func() { served <- s.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	e.address = listener.Addr().String()
	return e
}

// renew writes another certificate of the server, and its key.
func (e *encrypted) renew(t *testing.T) {
	t.Helper()
	certificate, key := e.server.issue(t, x509.ExtKeyUsageServerAuth, "receiver.example.com")
	put(t, e.files.Certificate, certificate)
	put(t, e.files.Key, key)
}

// put writes a file as the kubelet does: another one under the same name.
func put(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(name+".new", content, 0o600), os.Rename(name+".new", name)); err != nil {
		t.Fatal(err)
	}
}

// client gives a configuration that trusts the server, and shows a certificate if there is one.
func (e *encrypted) client(t *testing.T, certificate, key []byte) *tls.Config {
	t.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "receiver.example.com", RootCAs: x509.NewCertPool(), ClientSessionCache: tls.NewLRUClientSessionCache(1),
		NextProtos: []string{"h2", "http/1.1"}}
	config.RootCAs.AddCert(e.server.certificate)
	if certificate != nil {
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		// Whatever the server says that it takes.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config
}

// post sends an event on a new connection. It fails where the handshake does.
func (e *encrypted) post(t *testing.T, config *tls.Config, body string, changes ...with) (status int, serial *big.Int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dialed, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", e.address)
	if err != nil {
		return 0, nil, err
	}
	defer dialed.Close()
	conn := dialed.(*tls.Conn)
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	r := newRequest(ctx, "/events", body, changes...)
	if err := r.Write(conn); err != nil {
		return 0, nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	state := conn.ConnectionState()
	if state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "http/1.1" || state.DidResume {
		t.Errorf("version %x, protocol %q, resumed %t", state.Version, state.NegotiatedProtocol, state.DidResume)
	}
	return response.StatusCode, state.PeerCertificates[0].SerialNumber, nil
}

// TestOlderTLS: TLS 1.2 is refused, whatever the client could have proven.
func TestOlderTLS(t *testing.T) {
	t.Parallel()
	e := newEncrypted(t)
	config := e.client(t, nil, nil)
	config.MaxVersion = tls.VersionTLS12
	if status, _, err := e.post(t, config, cloudEvent(nil), signed(fluxKey)); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("status %d, %v", status, err)
	}
}

// TestClientCertificates: all ways to prove oneself side by side, and what is no proof.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	e := newEncrypted(t)
	stranger := newAuthority(t)
	binary := func(id string) []with {
		return []with{
			header("ce-specversion", "1.0"), header("ce-id", id), header("ce-source", "/test"), header("ce-type", events.TypeRefreshRequested),
			header("ce-subject", "apps/repos"), header("ce-time", time.Now().UTC().Format(time.RFC3339)), header("traceparent", httpParent),
		}
	}
	for _, test := range []struct {
		name   string
		issuer *authority
		usage  x509.ExtKeyUsage
		names  []string
		with   []with
		sender string // "" is nobody
		shaken bool   // the handshake fails
	}{
		{"a DNS name", e.clients, x509.ExtKeyUsageClientAuth, []string{"flux.example.com"}, nil, "client", false},
		{"a DNS name in capitals", e.clients, x509.ExtKeyUsageClientAuth, []string{"Flux.Example.com"}, nil, "client", false},
		{"a URI", e.clients, x509.ExtKeyUsageClientAuth, []string{mesh}, nil, "mesh", false},
		{"one of two names", e.clients, x509.ExtKeyUsageClientAuth, []string{"other.example.com", mesh}, nil, "mesh", false},
		{"the names of two senders: the first", e.clients, x509.ExtKeyUsageClientAuth, []string{mesh, "flux.example.com"}, nil, "client", false},
		{"binary mode", e.clients, x509.ExtKeyUsageClientAuth, []string{"flux.example.com"}, binary("2"), "client", false},
		{"a certificate and a token", e.clients, x509.ExtKeyUsageClientAuth, []string{"flux.example.com"}, []with{bearer(tokenKey)}, "broker", false},
		{"a certificate and a wrong signature", e.clients, x509.ExtKeyUsageClientAuth, []string{"flux.example.com"}, []with{signed("x")}, "client", false},
		{"an unknown name, and a signature", e.clients, x509.ExtKeyUsageClientAuth, []string{"other.example.com"}, []with{signed(fluxKey)}, "flux", false},
		{"no certificate, and a signature", nil, 0, nil, []with{signed(fluxKey)}, "flux", false},
		{"no certificate, and a token", nil, 0, nil, []with{bearer(tokenKey)}, "broker", false},

		{"no certificate", nil, 0, nil, nil, "", false},
		{"an unknown name", e.clients, x509.ExtKeyUsageClientAuth, []string{"other.example.com"}, nil, "", false},
		{"a wildcard", e.clients, x509.ExtKeyUsageClientAuth, []string{"*.example.com"}, nil, "", false},
		{"a common name alone", e.clients, x509.ExtKeyUsageClientAuth, nil, nil, "", false},
		{"of a stranger", stranger, x509.ExtKeyUsageClientAuth, []string{"flux.example.com"}, nil, "", true},
		{"of a server", e.clients, x509.ExtKeyUsageServerAuth, []string{"flux.example.com"}, nil, "", true},
	} {
		var certificate, key []byte
		if test.issuer != nil {
			certificate, key = test.issuer.issue(t, test.usage, test.names...)
		}
		before, routed, started := len(e.requester.made()), e.router.seen(), len(e.spans.Started())
		status, _, err := e.post(t, e.client(t, certificate, key), cloudEvent(map[string]any{"id": test.name}), test.with...)
		made := e.requester.made()[before:]
		switch {
		case test.shaken:
			if err == nil {
				t.Errorf("%s: status %d", test.name, status)
			}
		case err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.sender != "" && (status != http.StatusAccepted || len(made) != 1 || made[0].Sender != test.sender):
			t.Errorf("%s: status %d, asked %v, want one of %s", test.name, status, made, test.sender)
		case test.sender == "" && status != http.StatusUnauthorized:
			t.Errorf("%s: status %d", test.name, status)
		}
		if test.sender == "" && (len(made) > 0 || e.router.seen() > routed || len(e.spans.Started()) > started) {
			t.Errorf("%s: it went further than it may", test.name)
		}
	}
	// Under a certificate the headers count too.
	var below []string
	for _, s := range e.spans.Ended() {
		if s.Name() == "POST /events" && s.SpanContext().TraceID().String() == httpTrace {
			below = append(below, attributesOf(s)["event.sender"])
		}
	}
	if fmt.Sprint(below) != "[client]" {
		t.Errorf("in the trace of the header are %v", below)
	}
	if counts := e.countsBy(t, "sender", "outcome"); counts["client requested"] != 5 || counts["mesh requested"] != 2 || counts["broker requested"] != 2 ||
		counts["flux requested"] != 2 || counts["none unauthenticated"] != 4 || len(counts) != 5 {
		t.Errorf("counted %v", counts)
	}
}

// TestCertificatesChange: the next connection sees what the files hold, and what cannot be used changes nothing and is said once.
func TestCertificatesChange(t *testing.T) {
	t.Parallel()
	e := newEncrypted(t)
	certificate, key := e.clients.issue(t, x509.ExtKeyUsageClientAuth, "flux.example.com")
	config, count := e.client(t, certificate, key), 0
	post := func(step string, want int) *big.Int {
		t.Helper()
		count++
		status, serial, err := e.post(t, config, cloudEvent(map[string]any{"id": fmt.Sprint(count)}))
		if status != want || (err != nil) != (want == 0) {
			t.Fatalf("%s: status %d, %v", step, status, err)
		}
		return serial
	}
	warnings := func() int { return strings.Count(e.log.String(), `"level":"WARN"`) }

	first := post("at first", http.StatusAccepted)
	e.renew(t)
	second := post("renewed", http.StatusAccepted)
	if first.Cmp(second) == 0 {
		t.Error("the certificate that was renewed is not shown")
	}
	broken := map[string][]byte{}
	for _, file := range []string{e.files.Certificate, e.files.Key, e.files.ClientCA} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		broken[file] = content
	}
	said := 0
	for file, good := range broken {
		for name, destroy := range map[string]func(){
			"is broken": func() { put(t, file, []byte("-----BEGIN CERTIFICATE-----")) },
			"is empty":  func() { put(t, file, nil) },
			"is gone": func() {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			},
		} {
			destroy()
			for range 3 {
				if serial := post(file+" "+name, http.StatusAccepted); serial.Cmp(second) != 0 {
					t.Errorf("%s %s: another certificate is shown", file, name)
				}
			}
			if said++; warnings() != said {
				t.Errorf("%s %s: %d warnings, want %d", file, name, warnings(), said)
			}
			put(t, file, good)
			post(file+" is there again", http.StatusAccepted)
		}
	}
	// Who issued the client's certificate is trusted no longer, though there were sessions with it.
	put(t, e.files.ClientCA, newAuthority(t).pem())
	post("another authority", 0)
	if strings.Contains(e.log.String(), "PRIVATE") || warnings() != said {
		t.Errorf("the log holds more than it should: %s", e.log)
	}
}

// TestServerTLS: at the start, files that cannot be used are an error that names them.
func TestServerTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		put(t, filepath.Join(dir, name), content)
		return filepath.Join(dir, name)
	}
	a := newAuthority(t)
	certificate, key := a.issue(t, x509.ExtKeyUsageServerAuth, "receiver.example.com")
	_, other := a.issue(t, x509.ExtKeyUsageServerAuth, "receiver.example.com")
	good := events.TLSFiles{Certificate: file("tls.crt", certificate), Key: file("tls.key", key), ClientCA: file("ca.crt", a.pem())}
	for _, test := range []struct {
		name   string
		change func(*events.TLSFiles)
		want   string
	}{
		{"good", func(*events.TLSFiles) {}, ""},
		{"no authority for clients", func(f *events.TLSFiles) { f.ClientCA = "" }, ""},
		{"no file", func(f *events.TLSFiles) { f.Key = filepath.Join(dir, "none") }, "none"},
		{"another key", func(f *events.TLSFiles) { f.Key = file("other", other) }, "tls.crt and " + filepath.Join(dir, "other")},
		{"an empty authority", func(f *events.TLSFiles) { f.ClientCA = file("empty", nil) }, "empty: there is no certificate"},
	} {
		files := good
		test.change(&files)
		_, err := events.ServerTLS(files, nil)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}
