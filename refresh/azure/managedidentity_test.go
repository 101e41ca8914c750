// Tokens from the machine's endpoint, in both of its forms.

package azure_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/azure/azuretest"
)

// TestManagedIdentity: a token is asked for each time, whatever MSAL keeps for the whole process, and the endpoint may give the same again.
func TestManagedIdentity(t *testing.T) {
	t.Parallel()
	keepsAndRenews(t, newBench(t, nil))
}

func keepsAndRenews(t *testing.T, b *bench) {
	t.Helper()
	b.Change(func(c *azuretest.Config) { c.MinLifetime, c.MaxLifetime = 24*time.Hour, 24*time.Hour })
	first := b.token(t, managed, "")
	if _, err := b.Validate(first.Reveal(), azuretest.AzureDevOps); err != nil {
		t.Error(err)
	}
	if life := first.Expires.Sub(first.Minted); life < 23*time.Hour {
		t.Errorf("lives for %s", life)
	}
	// Where the endpoint does not say when to renew a long-lived token, MSAL says half-way.
	if half := first.RefreshOn.Sub(first.Minted); half < 11*time.Hour || half > 13*time.Hour {
		t.Errorf("to be refreshed in %s", half)
	}

	same := b.token(t, managed, first.Hash)
	if same != first || b.endpoint.Requests() != 2 {
		t.Errorf("%v after %d requests, want the same as before, with its time: %v", same, b.endpoint.Requests(), first)
	}
	b.endpoint.Renew()
	second := b.token(t, managed, first.Hash)
	if second.Hash == first.Hash || b.endpoint.Requests() != 3 {
		t.Errorf("%v after %d requests, want another one", second, b.endpoint.Requests())
	}

	// Another term of leadership: MSAL still holds the last token.
	b.endpoint.Renew()
	next, err := azure.New(b.config)
	must(err)
	third, err := next.Token(deadline(t), managed, "")
	if err != nil || third.Hash == second.Hash || b.endpoint.Requests() != 4 {
		t.Errorf("a new Source got %v, %v after %d requests", third, err, b.endpoint.Requests())
	}
	if b.Requests() != 0 {
		t.Errorf("Entra was asked %d times", b.Requests())
	}
}

// naming is a way to say which managed identity is meant.
type naming struct {
	name     string
	assigned []azuretest.ManagedIdentity
	named    func(*azure.Identity)
	says     string // the failure; "" is a token
}

var namings = []naming{
	{"client id", []azuretest.ManagedIdentity{{ClientID: "another", ResourceID: "/a"}, {ClientID: client, ResourceID: resourceID}}, func(*azure.Identity) {}, ""},
	{"resource id", []azuretest.ManagedIdentity{{ClientID: "another", ResourceID: "/a"}, {ClientID: client, ResourceID: resourceID}}, byResource, ""},
	{"system-assigned", []azuretest.ManagedIdentity{{ClientID: "another", ResourceID: "/a"}, {ClientID: client}}, byNothing, ""},
	{"the only one", []azuretest.ManagedIdentity{{ClientID: client, ResourceID: resourceID}}, byNothing, ""},
	{"client id of none", nil, func(*azure.Identity) {}, "no managed identity with the client id " + client + "; assign it"},
	{"resource id of none", []azuretest.ManagedIdentity{{ClientID: client, ResourceID: "/a"}}, byResource, "no managed identity with the resource id " + resourceID},
	{"several", []azuretest.ManagedIdentity{{ClientID: "a", ResourceID: "/a"}, {ClientID: client, ResourceID: "/b"}}, byNothing, "or several and clientID does not say which"},
}

func byResource(id *azure.Identity) { id.ClientID, id.ResourceID = "", resourceID }
func byNothing(id *azure.Identity)  { id.ClientID = "" }

func TestManagedIdentityNames(t *testing.T) {
	t.Parallel()
	for _, c := range namings {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.try(t, func(*bench) {})
		})
	}
}

// try asks on a machine that enter has prepared.
func (c naming) try(t *testing.T, enter func(*bench)) {
	t.Helper()
	b := newBench(t, func(b *bench) { c.named(b.identity(managed)) })
	enter(b)
	b.endpoint.Change(func(e *azuretest.EndpointConfig) { e.Identities = c.assigned })
	if c.says == "" {
		if issued, err := b.Validate(b.token(t, managed, "").Reveal(), azuretest.AzureDevOps); err != nil || issued.ClientID != client {
			t.Errorf("got a token of %+v, %v", issued, err)
		}
		return
	}
	if got := b.failure(t, managed); got.Class != refresh.Misconfigured || got.Code != "400" || !strings.Contains(got.Text, c.says) {
		t.Errorf("got %s %q: %s\nwant …%s…", got.Class, got.Code, got.Text, c.says)
	}
}

func TestManagedIdentityFails(t *testing.T) {
	t.Parallel()
	for _, c := range []refusal{
		{"identity", page(400, `{"error":"invalid_request","error_description":"Identity not found"}`), refresh.Misconfigured, "400", "no managed identity with the client id"},
		{"resource", page(400, `{"error":"invalid_resource","error_description":"AADSTS50001"}`), refresh.Misconfigured, "400", "correct the scope"},
		{"resource, by its code", page(400, `{"error":"invalid_request","error_codes":[500011]}`), refresh.Misconfigured, "AADSTS500011", "the resource of scope " + managed.Scope},
		{"identity disabled", azuretest.AADSTS(7000112), refresh.Misconfigured, "AADSTS7000112", "enable it"},
		{"not known", page(401, ""), refresh.Misconfigured, "401", "compare IDENTITY_HEADER"},
		{"closed to pods", page(403, "unreachable"), refresh.Misconfigured, "403", "does not let this pod ask"},
		{"updating", page(404, ""), refresh.Unavailable, "404", "is being updated"},
		{"gone", page(410, ""), refresh.Unavailable, "410", "169.254.169.254 is being updated"},
		{"throttled", azuretest.Throttled("17"), refresh.Throttled, "429", "169.254.169.254 takes no more requests"},
		{"broken", page(500, `{"error":"unknown","error_description":"Failed to retrieve token from the Active directory"}`), refresh.Unavailable, "500", "answered 500"},
		{"garbage", azuretest.Garbage(), refresh.Unavailable, "200", "without a token"},
		{"no token", page(200, "{}"), refresh.Unavailable, "200", "without a token"},
		{"a redirect", azuretest.Answer{Status: 302, Header: http.Header{"Location": {"https://elsewhere.invalid/"}}}, refresh.Misconfigured, "302", "is it the endpoint"},
		{"another status", page(418, ""), refresh.Misconfigured, "418", "is it the endpoint of managed identities?"},
		{"a correlation id", page(400, `{"statusCode":400,"message":"no","correlationId":"6f2b1c1e-0000-4000-8000-00000000000a"}`), refresh.Misconfigured, "400", "(correlation id 6f2b1c1e-0000-4000-8000-00000000000a)"},
		{"a correlation id that is none", page(400, `{"correlationId":"<script>"}`), refresh.Misconfigured, "400", "or resourceID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.endpoint.Next(c.answer)
			got := b.failure(t, managed)
			c.check(t, got)
			if strings.Contains(got.Text, "script") {
				t.Errorf("it repeats what was no correlation id: %s", got.Text)
			}
			if c.name == "throttled" && got.RetryAfter != 17*time.Second {
				t.Errorf("Retry-After is %s", got.RetryAfter)
			}
			if b.endpoint.Requests() != 1 {
				t.Errorf("one call made %d tries", b.endpoint.Requests())
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, func(b *bench) { b.config.Timeout = 300 * time.Millisecond })
		b.endpoint.Next(azuretest.Hang())
		if got := b.failure(t, managed); got.Class != refresh.Unavailable || !strings.Contains(got.Text, "169.254.169.254 did not answer within 300ms; does it run on a machine in Azure") {
			t.Errorf("%s: %s", got.Class, got.Text)
		}
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		nobody := deaf(t)
		b := newBench(t, func(b *bench) { b.config.Dial = dialer(nobody) })
		if got := b.failure(t, managed); got.Class != refresh.Unavailable || !strings.HasSuffix(got.Text, "169.254.169.254 cannot be reached: connection refused") {
			t.Errorf("%s: %s", got.Class, got.Text)
		}
	})
}

// TestAppService is the same in the other form. It is not parallel: the environment names the endpoint, and belongs to the process.
func TestAppService(t *testing.T) {
	enter := func(t *testing.T, b *bench) {
		t.Helper()
		t.Setenv("IDENTITY_ENDPOINT", b.endpoint.AppService())
		t.Setenv("IDENTITY_HEADER", identityHeader)
	}
	t.Run("keeps and renews", func(t *testing.T) {
		b := newBench(t, nil)
		enter(t, b)
		keepsAndRenews(t, b)
	})
	for _, c := range namings {
		t.Run(c.name, func(t *testing.T) { c.try(t, func(b *bench) { enter(t, b) }) })
	}
	t.Run("another header", func(t *testing.T) {
		b := newBench(t, nil)
		enter(t, b)
		t.Setenv("IDENTITY_HEADER", "a-guess")
		if got := b.failure(t, managed); got.Class != refresh.Misconfigured || got.Code != "401" || !strings.Contains(got.Text, b.endpoint.Address()+" does not know who asks") {
			t.Errorf("%s %s: %s", got.Class, got.Code, got.Text)
		}
	})
	t.Run("Service Fabric", func(t *testing.T) {
		b := newBench(t, nil)
		enter(t, b)
		t.Setenv("IDENTITY_SERVER_THUMBPRINT", "0123")
		if got := b.failure(t, managed); got.Class != refresh.Misconfigured || !strings.Contains(got.Text, "cannot be used") || b.endpoint.Requests() != 0 {
			t.Errorf("%s: %s", got.Class, got.Text)
		}
	})
}

// TestManagedIdentityWithoutProxy: a proxy would be asked for its own machine's identity, and read the token. Which proxies there are
// is the whole process's, and read once.
func TestManagedIdentityWithoutProxy(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	said := b.child(1, managed).start(t, "HTTP_PROXY=http://"+deaf(t), "NO_PROXY=")
	if !strings.Contains(said, "Token(") || b.endpoint.Requests() != 1 {
		t.Errorf("no token: %s", said)
	}
}
