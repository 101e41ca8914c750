// The endpoint of managed identities as a plain HTTP client sees it, and certificates.

package azuretest_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"flux-token-refresher/refresh/azure/azuretest"
)

const (
	machine = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"
	header  = "a-header-of-the-machine"
)

type machineAnswer struct {
	status    int
	raw       string
	Token     string `json:"access_token"`
	ExpiresOn string `json:"expires_on"`
	ExpiresIn string `json:"expires_in"`
	ClientID  string `json:"client_id"`
	Resource  string `json:"resource"`
	Error     string `json:"error"`
	Text      string `json:"error_description"`
	Message   string `json:"message"`
}

func startEndpoint(t *testing.T, w world) *azuretest.Endpoint {
	t.Helper()
	endpoint, err := w.StartEndpoint(azuretest.EndpointConfig{
		Identities: []azuretest.ManagedIdentity{{ClientID: client, ResourceID: machine}, {ClientID: "elsewhere", ResourceID: "/other"}}, Header: header,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endpoint.Close)
	return endpoint
}

// askMachine asks IMDS, or the App Service form where the query is of that version.
func askMachine(t *testing.T, endpoint *azuretest.Endpoint, query url.Values, set ...string) machineAnswer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	address := "http://" + endpoint.Address() + "/metadata/identity/oauth2/token"
	if query.Get("api-version") == "2019-08-01" {
		address = endpoint.AppService()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"?"+query.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(set); i += 2 {
		req.Header.Set(set[i], set[i+1])
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := machineAnswer{status: resp.StatusCode, raw: string(body)}
	_ = json.Unmarshal(body, &a) // not every answer is JSON
	return a
}

func imds(pairs ...string) url.Values {
	q := url.Values{"api-version": {"2018-02-01"}, "resource": {azuretest.AzureDevOps}, "client_id": {client}}
	for i := 0; i < len(pairs); i += 2 {
		q.Del(pairs[i])
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

func appService(pairs ...string) url.Values {
	return imds(append([]string{"api-version", "2019-08-01"}, pairs...)...)
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	w := start(t)
	endpoint := startEndpoint(t, w)
	first := askMachine(t, endpoint, imds(), "Metadata", "true")
	issued, err := w.Validate(first.Token, azuretest.AzureDevOps)
	if err != nil || issued.ClientID != client || first.ClientID != client || first.Resource != azuretest.AzureDevOps {
		t.Errorf("IMDS gave %s: %+v, %v", first.raw, issued, err)
	}
	if first.ExpiresOn != strconv.FormatInt(issued.Expires.Unix(), 10) || first.ExpiresIn == "" {
		t.Errorf("its end is not as text: %s", first.raw)
	}
	second := askMachine(t, endpoint, appService("client_id", "", "mi_res_id", strings.ToUpper(machine)), "X-IDENTITY-HEADER", header)
	if second.Token != first.Token || second.ExpiresOn != first.ExpiresOn || second.ExpiresIn != "" {
		t.Errorf("App Service gave %s", second.raw)
	}
	endpoint.Renew()
	third := askMachine(t, endpoint, imds("client_id", "", "msi_res_id", machine), "Metadata", "true")
	if third.Token == first.Token || third.Token == "" {
		t.Errorf("after Renew: %s", third.raw)
	}
	if endpoint.Requests() != 3 || w.Requests() != 0 || w.Minted(client, azuretest.AzureDevOpsScope) != 2 {
		t.Errorf("%d requests, %d of Entra", endpoint.Requests(), w.Requests())
	}
}

func TestEndpointRefuses(t *testing.T) {
	t.Parallel()
	w := start(t)
	endpoint := startEndpoint(t, w)
	for name, c := range map[string]struct {
		query  url.Values
		set    []string
		status int
		says   string // error: text, of IMDS; message, of App Service
	}{
		"no Metadata header": {imds(), nil, 400, "bad_request_102: Required metadata header not specified"},
		"another version":    {imds("api-version", "2017-01-01"), []string{"Metadata", "true"}, 400, "invalid_request: The request is missing"},
		"no resource":        {imds("resource", ""), []string{"Metadata", "true"}, 400, "invalid_request: The request is missing"},
		"another resource":   {imds("resource", "https://vault.azure.net"), []string{"Metadata", "true"}, 400, "invalid_resource: AADSTS500011"},
		"no such identity":   {imds("client_id", "nobody"), []string{"Metadata", "true"}, 400, "invalid_request: Identity not found"},
		"the other form's":   {imds("client_id", "", "mi_res_id", machine), []string{"Metadata", "true"}, 400, "invalid_request: Multiple"},
		"several":            {imds("client_id", ""), []string{"Metadata", "true"}, 400, "invalid_request: Multiple user assigned identities exist"},
		"no header":          {appService(), nil, 401, ""},
		"a wrong header":     {appService(), []string{"X-IDENTITY-HEADER", "guess"}, 401, ""},
		"no such resource":   {appService("client_id", "", "mi_res_id", "/x"), []string{"X-IDENTITY-HEADER", header}, 400, "Identity not found"},
	} {
		a := askMachine(t, endpoint, c.query, c.set...)
		said := a.Message
		if a.Error != "" {
			said = a.Error + ": " + a.Text
		}
		if a.status != c.status || !strings.HasPrefix(said, c.says) || a.Token != "" {
			t.Errorf("%s: got %d %s, want %d %s", name, a.status, a.raw, c.status, c.says)
		}
	}
	endpoint.Next(azuretest.Throttled("1"))
	endpoint.Change(func(c *azuretest.EndpointConfig) { outage := azuretest.Broken(503); c.Outage = &outage })
	for _, want := range []int{429, 503, 503} {
		if a := askMachine(t, endpoint, imds(), "Metadata", "true"); a.status != want {
			t.Errorf("got %d, want %d", a.status, want)
		}
	}
}

// TestCertificates: an assertion that a certificate of the application signed, as MSAL makes it.
func TestCertificates(t *testing.T) {
	t.Parallel()
	w := start(t)
	certificate := func(end time.Time) *azuretest.ClientCertificate {
		c, err := azuretest.NewClientCertificate(end)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	good, ended, stranger := certificate(time.Now().Add(time.Hour)), certificate(time.Now().Add(-time.Hour)), certificate(time.Now().Add(time.Hour))
	w.Change(func(c *azuretest.Config) {
		c.Applications[0].Certificates = []*x509.Certificate{good.Certificate, ended.Certificate}
	})
	endpoint := w.URL() + tenant + "/oauth2/v2.0/token"
	sign := func(named, by *azuretest.ClientCertificate, change func(*jwt.RegisteredClaims)) string {
		claims := jwt.RegisteredClaims{
			Issuer: client, Subject: client, Audience: jwt.ClaimStrings{endpoint},
			NotBefore: jwt.NewNumericDate(time.Now()), ExpiresAt: jwt.NewNumericDate(time.Now().Add(10 * time.Minute)),
		}
		change(&claims)
		block, _ := pem.Decode([]byte(by.KeyPEM))
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(named.Raw)
		token := jwt.NewWithClaims(jwt.SigningMethodPS256, claims)
		token.Header["x5t#S256"] = base64.StdEncoding.EncodeToString(sum[:])
		signed, err := token.SignedString(key.(crypto.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	as := func(*jwt.RegisteredClaims) {}
	for name, c := range map[string]struct {
		assertion string
		code      int // 0 is a token
	}{
		"good":             {sign(good, good, as), 0},
		"not registered":   {sign(stranger, stranger, as), 700027},
		"ended":            {sign(ended, ended, as), 700027},
		"signed by others": {sign(good, stranger, as), 700027},
		"for others":       {sign(good, good, func(c *jwt.RegisteredClaims) { c.Audience = jwt.ClaimStrings{w.URL()} }), 700023},
		"about others":     {sign(good, good, func(c *jwt.RegisteredClaims) { c.Subject = "somebody" }), 700023},
		"too old":          {sign(good, good, func(c *jwt.RegisteredClaims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-time.Minute)) }), 700024},
	} {
		a := w.ask(t, tenant, form(func(f url.Values) { assertion(f, c.assertion) }))
		if c.code == 0 && a.Token == "" || c.code != 0 && (len(a.Codes) != 1 || a.Codes[0] != c.code) {
			t.Errorf("%s: got %d %s, want %d", name, a.status, a.raw, c.code)
		}
	}
	if proofs := w.Proofs(); len(proofs) != 7 {
		t.Errorf("%d proofs were sent, want 7", len(proofs))
	}
}
