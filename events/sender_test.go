package events_test

// Who is believed, and how far.

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flux-token-refresher/events"
)

func TestProofs(t *testing.T) {
	t.Parallel()
	flux := fluxEvent("repos", "authentication required", time.Now())
	structured := cloudEvent(nil)
	given := func(value string) with { return header("X-Signature", value) }
	lower := strings.TrimPrefix(macOf(fluxKey, flux), "sha256=")
	for _, test := range []struct {
		name   string
		body   string
		with   []with
		sender string // "" is nobody
	}{
		{"an HMAC", flux, []with{signed(fluxKey)}, "flux"},
		{"an HMAC with another key", flux, []with{signed(otherKey)}, "other"},
		{"a token", flux, []with{bearer(tokenKey)}, "broker"},
		{"another token", flux, []with{bearer(tenantKey)}, "tenant"},
		{"a token in a scheme in lower case", flux, []with{header("Authorization", "bearer "+tokenKey)}, "broker"},
		{"both: the token says more", flux, []with{signed(fluxKey), bearer(tokenKey)}, "broker"},
		{"a token, and an HMAC of nobody", flux, []with{given("sha256=00"), bearer(tokenKey)}, "broker"},
		{"an HMAC, and a token of nobody", flux, []with{signed(fluxKey), bearer("of-nobody")}, "flux"},
		{"an HMAC and ce-* headers, and a token", structured, []with{signed(fluxKey), bearer(tokenKey), header("ce-id", "1"), media("application/cloudevents+json")}, "broker"},

		{"nothing", flux, nil, ""},
		{"an unknown key", flux, []with{signed("a-key-that-nobody-has-0123456789-abcd")}, ""},
		{"a body that was changed", strings.Replace(flux, "repos", "other", 1), []with{given("sha256=" + lower)}, ""},
		{"no algorithm", flux, []with{given(lower)}, ""},
		{"another algorithm", flux, []with{given("sha512=" + lower)}, ""},
		{"half an HMAC", flux, []with{given("sha256=" + lower[:32])}, ""},
		{"an empty HMAC", flux, []with{given("sha256=")}, ""},
		{"no hex", flux, []with{given("sha256=" + strings.Repeat("x", 64))}, ""},
		{"two HMACs", flux, []with{signed(fluxKey), given("sha256=00")}, ""},
		{"an unknown token", flux, []with{bearer("a-token-that-nobody-has-0123456789-ab")}, ""},
		{"half a token", flux, []with{bearer(tokenKey[:32])}, ""},
		{"an empty token", flux, []with{bearer("")}, ""},
		{"two tokens", flux, []with{bearer(tokenKey), bearer(tokenKey)}, ""},
		{"another scheme", flux, []with{header("Authorization", "Basic "+tokenKey)}, ""},
		{"the key of an HMAC as a token", flux, []with{bearer(fluxKey)}, ""},
		{"a token as the key of an HMAC", flux, []with{signed(tokenKey)}, ""},
		{"a token in the query", flux, []with{func(r *http.Request, _ string) { r.URL.RawQuery = "access_token=" + tokenKey }}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			w := b.send(t, test.body, test.with...)
			made := b.requester.made()
			switch {
			case test.sender == "":
				wantStatus(t, w, http.StatusUnauthorized)
				errorOf(t, w)
				if len(made) > 0 || b.router.seen() > 0 || len(b.spans.Started()) > 0 {
					t.Error("an unauthenticated request went further than it may")
				}
			case w.Code != http.StatusAccepted || len(made) != 1 || made[0].Sender != test.sender:
				t.Errorf("status %d, asked %v, want one of %s", w.Code, made, test.sender)
			}
		})
	}
}

// TestSignatureCoversTheBodyOnly: whoever heard a signed request can repeat it, and gets nothing else out of it by other headers.
func TestSignatureCoversTheBodyOnly(t *testing.T) {
	t.Parallel()
	now := time.Now()
	asAnother := []with{
		header("ce-specversion", "1.0"), header("ce-id", "2"), header("ce-source", "/evil"), header("ce-type", events.TypeRefreshRequested),
		header("ce-subject", "prod/repos"), header("ce-time", now.UTC().Format(time.RFC3339)),
	}
	for _, body := range []string{fluxEvent("repos", "authentication required", now), cloudEvent(nil), batchOf(cloudEvent(nil))} {
		original := newBench(t)
		want := original.send(t, body, signed(fluxKey))
		wantStatus(t, want, http.StatusAccepted)

		for name, headers := range map[string][]with{
			"a whole event": asAnother,
			"one header":    {header("ce-id", "2")},
			"an extension":  {header("Ce-Anything", "x")},
			"as Flux":       append([]with{header("Gotk-Component", "source-controller")}, asAnother...),
		} {
			b := newBench(t)
			w := b.send(t, body, append(headers, signed(fluxKey))...)
			wantStatus(t, w, http.StatusUnauthorized)
			if len(b.requester.made()) > 0 {
				t.Errorf("%s: it asked for %v", name, b.requester.made())
			}
		}
		for _, m := range []string{"application/json", "application/json; charset=utf-8", "application/cloudevents+json", "application/cloudevents-batch+json", "application/xml", "text/json"} {
			for _, h := range [][]with{nil, {header("Gotk-Component", "x")}} {
				w := newBench(t).send(t, body, append(h, signed(fluxKey), media(m))...)
				if w.Code == http.StatusAccepted && w.Body.String() != want.Body.String() {
					t.Errorf("as %s: got %s, the original %s", m, w.Body, want.Body)
				}
			}
		}
	}
}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "key")
		write := func(key string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("  " + fluxKey + "\n")
		b := newBench(t, func(c *events.Config) {
			c.Senders = []events.Sender{
				{Name: "flux", HMACKey: events.KeyFile(file), Namespaces: []string{"*"}},
				{Name: "broker", BearerToken: static(tokenKey), Namespaces: []string{"*"}},
			}
		})
		body := fluxEvent("repos", "", time.Now())
		wantStatus(t, b.send(t, body, signed(fluxKey)), http.StatusAccepted)
		write(otherKey)
		wantStatus(t, b.send(t, body, signed(fluxKey)), http.StatusAccepted) // it is not read for each request
		time.Sleep(time.Second)
		wantStatus(t, b.send(t, body, signed(fluxKey)), http.StatusUnauthorized)
		wantStatus(t, b.send(t, body, signed(otherKey)), http.StatusAccepted)
		for _, key := range []string{"", "short"} {
			write(key)
			time.Sleep(time.Second)
			wantStatus(t, b.send(t, body, signed(otherKey)), http.StatusServiceUnavailable)
			wantStatus(t, b.send(t, body, signed(key)), http.StatusServiceUnavailable)
			// The others go on.
			wantStatus(t, b.send(t, body, bearer(tokenKey)), http.StatusAccepted)
		}
		if !strings.Contains(b.log.String(), `the key of sender \"flux\" cannot be used: it has 0 bytes, at least 32 are needed`) {
			t.Errorf("the log does not say what is wrong: %s", b.log)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w := b.send(t, body, signed(otherKey))
		wantStatus(t, w, http.StatusServiceUnavailable)
		if strings.Contains(w.Body.String(), file) {
			t.Errorf("the answer names the file: %s", w.Body)
		}
		write(fluxKey)
		time.Sleep(time.Second)
		wantStatus(t, b.send(t, body, signed(fluxKey)), http.StatusAccepted)
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := events.Sender{Name: "flux", HMACKey: static(fluxKey)}
	for _, test := range []struct {
		name   string
		change func(*events.Config)
		want   string
	}{
		{"no senders", func(c *events.Config) { c.Senders = nil }, "sender is required"},
		{"no decoder", func(c *events.Config) { c.Decoder = nil }, "decoder"},
		{"a negative age", func(c *events.Config) { c.MaxAge = -1 }, "maxAge"},
		{"no name", func(c *events.Config) { c.Senders = []events.Sender{{HMACKey: static(fluxKey)}} }, "name of its own"},
		{"the same name", func(c *events.Config) {
			c.Senders = []events.Sender{good, {Name: "flux", BearerToken: static(tokenKey)}}
		}, "name of its own"},
		{"the same key", func(c *events.Config) {
			c.Senders = []events.Sender{good, {Name: "broker", BearerToken: static(fluxKey)}}
		}, "the same key"},
		{"no key", func(c *events.Config) { c.Senders = []events.Sender{{Name: "flux"}} }, "needs one of"},
		{"two keys", func(c *events.Config) {
			c.Senders = []events.Sender{{Name: "flux", HMACKey: static(fluxKey), BearerToken: static(tokenKey)}}
		}, "needs one of"},
		{"a key and a client name", func(c *events.Config) {
			c.Senders = []events.Sender{{Name: "flux", HMACKey: static(fluxKey), ClientName: "flux.example.com"}}
		}, "needs one of"},
		{"the same client name", func(c *events.Config) {
			c.Senders = []events.Sender{{Name: "flux", ClientName: "flux.example.com"}, {Name: "broker", ClientName: "flux.example.com"}}
		}, "client name"},
		{"a short key", func(c *events.Config) {
			c.Senders = []events.Sender{{Name: "flux", HMACKey: static(fluxKey[:31])}}
		}, `sender "flux" cannot be used: it has 31 bytes`},
		{"no file", func(c *events.Config) {
			c.Senders = []events.Sender{{Name: "flux", HMACKey: events.KeyFile("/does/not/exist")}}
		}, "no such file"},
	} {
		config := events.Config{Senders: []events.Sender{good}, Decoder: decodeFlux}
		if _, err := events.Handler(config, &router{}, &requester{}); err != nil {
			t.Fatal(err)
		}
		test.change(&config)
		_, err := events.Handler(config, &router{}, &requester{})
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), fluxKey[:31]) {
			t.Errorf("%s: error %v, want one with %q", test.name, err, test.want)
		}
	}
	config := events.Config{Senders: []events.Sender{good}, Decoder: decodeFlux}
	if _, err := events.Handler(config, nil, &requester{}); err == nil {
		t.Error("no router, and no error")
	}
	if _, err := events.Handler(config, &router{}, nil); err == nil {
		t.Error("no requester, and no error")
	}
}

// TestNamespaces: a sender that names none may speak of none.
func TestNamespaces(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		namespaces []string
		want       string
	}{
		{nil, "ignored"}, {[]string{"prod"}, "ignored"}, {[]string{"app*"}, "ignored"},
		{[]string{"apps"}, "requested"}, {[]string{"prod", "apps"}, "requested"}, {[]string{"*"}, "requested"},
	} {
		b := newBench(t, func(c *events.Config) {
			c.Senders = []events.Sender{{Name: "flux", HMACKey: static(fluxKey), Namespaces: test.namespaces}}
		})
		if got := answerOf(t, b.send(t, cloudEvent(nil), signed(fluxKey))); got.Outcome != test.want {
			t.Errorf("%q: %s, want %s", test.namespaces, got.Outcome, test.want)
		}
	}
}

// FuzzSenders: whatever stands in a request, it is of the sender whose proof it holds, or of nobody; and the answer holds no key.
func FuzzSenders(f *testing.F) {
	const client = "mesh.example.com"
	hmacs, tokens := map[string]string{"flux": fluxKey, "other": otherKey}, map[string]string{"broker": tokenKey, "tenant": tenantKey}
	body := fluxEvent("repos", "", time.Now())
	f.Add(body, "", macOf(fluxKey, body), "", "", false)
	f.Add(body, "", macOf(otherKey, body), "Id", "", false)
	f.Add(body, "", strings.ToUpper(macOf(otherKey, body)), "", "", false)
	f.Add(body, "", macOf(fluxKey, "{}"), "", "", false)
	f.Add(cloudEvent(nil), "Bearer "+tokenKey, "sha256=", "", "", false)
	f.Add(cloudEvent(nil), "bEARER  "+tenantKey+"\t", macOf(fluxKey, body), "Id", "", false)
	f.Add("[]", "Basic "+tokenKey, "sha256=00", "", "MESH.example.com", true)
	f.Add("{}", "Bearer "+fluxKey, macOf(tokenKey, "{}"), "", client, false)
	f.Add("", "Bearer", "sha512="+strings.Repeat("0", 64), "", "*.example.com", true)
	f.Fuzz(func(t *testing.T, body, authorization, signature, attribute, name string, verified bool) {
		if len(body) > events.MaxSize {
			return
		}
		want := ""
		for sender, key := range hmacs {
			given, ok := strings.CutPrefix(signature, "sha256=")
			if ok && attribute == "" && strings.EqualFold(given, strings.TrimPrefix(macOf(key, body), "sha256=")) {
				want = sender
			}
		}
		if verified && strings.ToLower(name) == client {
			want = "mesh"
		}
		for sender, token := range tokens {
			if scheme, given, ok := strings.Cut(authorization, " "); ok && strings.EqualFold(scheme, "Bearer") && strings.TrimSpace(given) == token {
				want = sender
			}
		}

		b := newBench(t, func(c *events.Config) {
			c.Senders = append(c.Senders, events.Sender{Name: "mesh", ClientName: client, Namespaces: []string{"*"}})
		})
		w := b.send(t, body, header("Authorization", authorization), header("X-Signature", signature), func(r *http.Request, _ string) {
			if attribute != "" {
				r.Header["Ce-"+attribute] = []string{"1"}
			}
			certificate := &x509.Certificate{Subject: pkix.Name{CommonName: client}, DNSNames: []string{name}}
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{certificate}}
			if verified {
				r.TLS.VerifiedChains = [][]*x509.Certificate{{certificate}}
			}
		})
		got := ""
		for _, s := range b.spans.Ended() {
			got = attributesOf(s)["event.sender"]
		}
		if got != want || (w.Code == http.StatusUnauthorized) != (want == "") || want == "" && b.router.seen() > 0 {
			t.Errorf("status %d, from %q, want it from %q", w.Code, got, want)
		}
		for _, key := range []string{fluxKey, otherKey, tokenKey, tenantKey} {
			if strings.Contains(w.Body.String(), key) {
				t.Errorf("the answer holds a key: %s", w.Body)
			}
		}
	})
}
