// The emulator as a plain HTTP client sees it.

package azuretest_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"flux-token-refresher/refresh/azure/azuretest"
)

const (
	tenant = "3f1c2d90-0000-4000-8000-000000000001"
	client = "3f1c2d90-0000-4000-8000-000000000002"
	secret = "a-secret-of-the-application"
	old    = "a-secret-that-has-ended"
	sub    = "system:serviceaccount:flux-system:flux-token-refresher"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type world struct {
	*azuretest.Entra
	issuer *azuretest.Issuer
	http   *http.Client
}

func start(t *testing.T) world {
	t.Helper()
	issuer, err := azuretest.NewIssuer("https://kubernetes.default.svc")
	if err != nil {
		t.Fatal(err)
	}
	entra, err := azuretest.Start(azuretest.Config{Applications: []azuretest.Application{
		{
			TenantID: tenant, ClientID: client,
			Federated: []azuretest.FederatedCredential{issuer.Federate(sub)},
			Secrets:   []azuretest.Secret{{Value: secret}, {Value: old, Expires: time.Now().Add(-time.Hour)}},
		},
		{TenantID: tenant, ClientID: "disabled", Disabled: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(entra.Close)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(entra.CA())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return world{entra, issuer, &http.Client{Transport: transport, Timeout: 10 * time.Second}}
}

type answer struct {
	status      int
	header      http.Header
	raw         string
	Token       string `json:"access_token"`
	ExpiresIn   int    `json:"expires_in"`
	RefreshIn   *int   `json:"refresh_in"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
	Codes       []int  `json:"error_codes"`
	Timestamp   string `json:"timestamp"`
	TraceID     string `json:"trace_id"`
	Correlation string `json:"correlation_id"`
	URI         string `json:"error_uri"`
}

func (w world) ask(t *testing.T, tenant string, form url.Values) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL()+tenant+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("client-request-id", "6f2b1c1e-0000-4000-8000-00000000000a")
	resp, err := w.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, raw: string(body)}
	_ = json.Unmarshal(body, &a) // not every answer is JSON
	return a
}

func form(change func(url.Values)) url.Values {
	f := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {client}, "client_secret": {secret},
		"scope": {azuretest.AzureDevOpsScope},
	}
	if change != nil {
		change(f)
	}
	return f
}

func assertion(f url.Values, jwt string) {
	f.Del("client_secret")
	f.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	f.Set("client_assertion", jwt)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	w := start(t)
	stranger, err := azuretest.NewIssuer("https://kubernetes.default.svc")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := azuretest.NewIssuer("https://elsewhere.example")
	if err != nil {
		t.Fatal(err)
	}
	with := func(jwt string) func(url.Values) { return func(f url.Values) { assertion(f, jwt) } }
	set := func(key, value string) func(url.Values) { return func(f url.Values) { f.Set(key, value) } }
	for _, c := range []struct {
		name   string
		tenant string
		change func(url.Values)
		code   int
		status int
		oauth  string
	}{
		{"tenant unknown", "3f1c2d90-0000-4000-8000-00000000ffff", nil, 90002, 400, "invalid_request"},
		{"tenant malformed", "nobody", nil, 900023, 400, "invalid_request"},
		{"client unknown", tenant, set("client_id", "somebody"), 700016, 400, "unauthorized_client"},
		{"client disabled", tenant, set("client_id", "disabled"), 7000112, 400, "unauthorized_client"},
		{"another grant", tenant, set("grant_type", "password"), 70003, 400, "unsupported_grant_type"},
		{"no proof", tenant, func(f url.Values) { f.Del("client_secret") }, 7000218, 401, "invalid_client"},
		{"secret wrong", tenant, set("client_secret", "guess"), 7000215, 401, "invalid_client"},
		{"secret expired", tenant, set("client_secret", old), 7000222, 401, "invalid_client"},
		{"scope missing", tenant, set("scope", ""), 70011, 400, "invalid_scope"},
		{"scope without default", tenant, set("scope", azuretest.AzureDevOps), 1002012, 400, "invalid_scope"},
		{"scope unknown", tenant, set("scope", "https://vault.azure.net/.default"), 500011, 400, "invalid_resource"},
		{"assertion malformed", tenant, with("no.jwt.here"), 50027, 400, "invalid_request"},
		{"assertion issuer", tenant, with(elsewhere.Token(sub, azuretest.TokenExchange, time.Hour)), 700211, 401, "invalid_client"},
		{"assertion subject", tenant, with(w.issuer.Token("system:serviceaccount:a:b", azuretest.TokenExchange, time.Hour)), 700213, 401, "invalid_client"},
		{"assertion audience", tenant, with(w.issuer.Token(sub, "https://kubernetes.default.svc", time.Hour)), 700212, 401, "invalid_client"},
		{"assertion signature", tenant, with(stranger.Token(sub, azuretest.TokenExchange, time.Hour)), 7000272, 401, "invalid_client"},
		{"assertion expired", tenant, with(w.issuer.Token(sub, azuretest.TokenExchange, -time.Minute)), 700024, 401, "invalid_client"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := w.ask(t, c.tenant, form(c.change))
			if a.status != c.status || a.Error != c.oauth || len(a.Codes) != 1 || a.Codes[0] != c.code {
				t.Fatalf("got %d %s %v, want %d %s [%d]", a.status, a.Error, a.Codes, c.status, c.oauth, c.code)
			}
			if !strings.HasPrefix(a.Description, "AADSTS"+strconv.Itoa(c.code)+": ") || a.Timestamp == "" || a.TraceID == "" || a.URI == "" {
				t.Errorf("not Entra's form: %s", a.raw)
			}
			if a.Correlation != "6f2b1c1e-0000-4000-8000-00000000000a" {
				t.Errorf("correlation id %s is not the client's request id", a.Correlation)
			}
		})
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.Change(func(c *azuretest.Config) { c.RefreshIn = 30 * time.Minute })

	bySecret := w.ask(t, tenant, form(nil))
	byAssertion := w.ask(t, tenant, form(func(f url.Values) {
		assertion(f, w.issuer.Token(sub, azuretest.TokenExchange, time.Hour))
	}))
	for name, a := range map[string]answer{"secret": bySecret, "assertion": byAssertion} {
		if a.status != http.StatusOK || strings.Count(a.Token, ".") != 2 || len(a.Token) < 1400 || len(a.Token) > 1800 {
			t.Fatalf("%s: %d, a token of %d bytes: %s", name, a.status, len(a.Token), a.raw)
		}
		if a.ExpiresIn < 3600 || a.ExpiresIn > 5400 {
			t.Errorf("%s: expires_in %d is not within 60 to 90 minutes", name, a.ExpiresIn)
		}
		if a.RefreshIn == nil || *a.RefreshIn != 1800 {
			t.Errorf("%s: refresh_in %v", name, a.RefreshIn)
		}
		issued, err := w.Validate(a.Token, azuretest.AzureDevOps)
		if err != nil || issued.ClientID != client || issued.TenantID != tenant {
			t.Errorf("%s: %+v, %v", name, issued, err)
		}
	}
	if bySecret.Token == byAssertion.Token {
		t.Error("two tokens are alike")
	}
	if n := w.Minted(client, azuretest.AzureDevOpsScope); n != 2 || w.Requests() != 2 {
		t.Errorf("counted %d tokens and %d requests", n, w.Requests())
	}

	if _, err := w.Validate(bySecret.Token, "another"); !errors.Is(err, azuretest.ErrAudience) {
		t.Errorf("another resource: %v", err)
	}
	if _, err := w.Validate(bySecret.Token+"x", azuretest.AzureDevOps); !errors.Is(err, azuretest.ErrUnknown) {
		t.Errorf("an altered token: %v", err)
	}
	w.Revoke(bySecret.Token)
	if _, err := w.Validate(bySecret.Token, azuretest.AzureDevOps); !errors.Is(err, azuretest.ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
	if _, err := w.Validate(byAssertion.Token, azuretest.AzureDevOps); err != nil {
		t.Errorf("the other token: %v", err)
	}
	w.RevokeAll()
	if _, err := w.Validate(byAssertion.Token, azuretest.AzureDevOps); !errors.Is(err, azuretest.ErrRevoked) {
		t.Errorf("all revoked: %v", err)
	}
}

func TestScript(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.Next(azuretest.Throttled("7"), azuretest.Broken(http.StatusBadGateway), azuretest.AADSTS(53003), azuretest.Garbage())
	if a := w.ask(t, tenant, form(nil)); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "7" {
		t.Errorf("first: %d", a.status)
	}
	if a := w.ask(t, tenant, form(nil)); a.status != http.StatusBadGateway || !strings.Contains(a.raw, "<html>") {
		t.Errorf("second: %d %s", a.status, a.raw)
	}
	if a := w.ask(t, tenant, form(nil)); len(a.Codes) != 1 || a.Codes[0] != 53003 {
		t.Errorf("third: %s", a.raw)
	}
	if a := w.ask(t, tenant, form(nil)); a.status != http.StatusOK || json.Valid([]byte(a.raw)) {
		t.Errorf("fourth: %d %s", a.status, a.raw)
	}
	down := azuretest.AADSTS(90033)
	w.Change(func(c *azuretest.Config) { c.Outage, c.Echo = &down, true })
	if a := w.ask(t, tenant, form(nil)); len(a.Codes) != 1 || a.Codes[0] != 90033 || !strings.Contains(a.raw, secret) {
		t.Errorf("outage with an echo: %s", a.raw)
	}
	w.Change(func(c *azuretest.Config) { c.Outage = nil })
	if a := w.ask(t, tenant, form(nil)); a.Token == "" || !strings.Contains(a.raw, secret) {
		t.Errorf("after the outage, with an echo: %s", a.raw)
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	w := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Await(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	w.ask(t, tenant, form(nil))
	if err := w.Await(ctx, 1); err != nil {
		t.Errorf("a request that has come: %v", err)
	}
}

func TestCloseEndsAHang(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.Next(azuretest.Hang())
	result := make(chan error, 1)
	go func() {
		resp, err := w.http.PostForm(w.URL()+tenant+"/oauth2/v2.0/token", form(nil))
		if err == nil {
			_ = resp.Body.Close()
		}
		result <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Await(ctx, 1); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := <-result; err == nil {
		t.Error("it was answered")
	}
}
