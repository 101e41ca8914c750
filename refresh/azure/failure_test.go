// What becomes of each way to fail.

package azure_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
)

const federation = "it needs issuer " + issuer + ", subject " + podAccount + ", audience " + azuretest.TokenExchange

// refusal is an answer without a token, and what becomes of it.
type refusal struct {
	name   string
	answer azuretest.Answer
	class  refresh.Class
	code   string
	says   string
}

func (r refusal) check(t *testing.T, got *refresh.Error) {
	t.Helper()
	if got.Class != r.class || got.Code != r.code || !strings.Contains(got.Text, r.says) {
		t.Errorf("got %s %q: %s\nwant %s %q: …%s…", got.Class, got.Code, got.Text, r.class, r.code, r.says)
	}
}

func page(status int, body string) azuretest.Answer {
	return azuretest.Answer{Status: status, Body: body}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []refusal{
		{"application unknown", azuretest.AADSTS(700016), refresh.Misconfigured, "AADSTS700016", "application " + client + " is not in tenant " + tenant},
		{"no service principal", azuretest.AADSTS(7000229), refresh.Misconfigured, "AADSTS7000229", "create it"},
		{"application disabled", azuretest.AADSTS(7000112), refresh.Misconfigured, "AADSTS7000112", "enable it"},
		{"tenant unknown", azuretest.AADSTS(90002), refresh.Misconfigured, "AADSTS90002", "tenant " + tenant + " is not known to 127.0.0.1:"},
		{"tenant malformed", azuretest.AADSTS(900023), refresh.Misconfigured, "AADSTS900023", "correct tenantID"},
		{"scope", azuretest.AADSTS(70011), refresh.Misconfigured, "AADSTS70011", workload.Scope + " is not valid"},
		{"scope without default", azuretest.AADSTS(1002012), refresh.Misconfigured, "AADSTS1002012", "/.default"},
		{"resource unknown", azuretest.AADSTS(500011), refresh.Misconfigured, "AADSTS500011", workload.Scope},
		{"conditional access", azuretest.AADSTS(53003), refresh.Misconfigured, "AADSTS53003", "Conditional Access"},
		{"federation", azuretest.AADSTS(70021), refresh.Misconfigured, "AADSTS70021", federation},
		{"issuer", azuretest.AADSTS(700211), refresh.Misconfigured, "AADSTS700211", federation},
		{"audience", azuretest.AADSTS(700212), refresh.Misconfigured, "AADSTS700212", federation},
		{"subject", azuretest.AADSTS(700213), refresh.Misconfigured, "AADSTS700213", federation},
		{"subject's case", azuretest.AADSTS(7002138), refresh.Misconfigured, "AADSTS7002138", federation},
		{"issuer's keys", azuretest.AADSTS(7000272), refresh.Misconfigured, "AADSTS7000272", issuer},
		{"issuer unreachable", azuretest.AADSTS(50166), refresh.Unavailable, "AADSTS50166", issuer},
		{"issuer unreachable too", azuretest.AADSTS(501661), refresh.Unavailable, "AADSTS501661", issuer},
		{"issuer unreachable as well", azuretest.AADSTS(90061), refresh.Unavailable, "AADSTS90061", issuer},
		{"assertion's age", azuretest.AADSTS(700024), refresh.Assertion, "AADSTS700024", "the node's clock"},
		{"secret wrong", azuretest.AADSTS(7000215), refresh.Misconfigured, "AADSTS7000215", "not its id"},
		{"secret expired", azuretest.AADSTS(7000222), refresh.Misconfigured, "AADSTS7000222", "create another"},
		{"key unknown", azuretest.AADSTS(700027), refresh.Misconfigured, "AADSTS700027", "key"},
		{"transient", azuretest.AADSTS(90033), refresh.Unavailable, "AADSTS90033", "passing problem"},
		{"transient too", azuretest.AADSTS(90006), refresh.Unavailable, "AADSTS90006", "passing problem"},
		{"timeout inside", azuretest.AADSTS(90012), refresh.Unavailable, "AADSTS90012", "passing problem"},
		{"budget", azuretest.AADSTS(90024), refresh.Unavailable, "AADSTS90024", "passing problem"},
		{"tenant busy", azuretest.AADSTS(90055), refresh.Throttled, "AADSTS90055", "no more requests"},
		{"loop", azuretest.AADSTS(50196), refresh.Throttled, "AADSTS50196", "no more requests"},
		{"a code of tomorrow", azuretest.AADSTS(4242424), refresh.Misconfigured, "AADSTS4242424", "does not accept the request"},

		{"throttled", azuretest.Throttled(""), refresh.Throttled, "429", "no more requests"},
		{"throttled in words", page(429, `{"error":"invalid_client","error_codes":[7000215]}`), refresh.Throttled, "AADSTS7000215", "no more requests"},
		{"bad gateway", azuretest.Broken(502), refresh.Unavailable, "502", "answered 502 Bad Gateway"},
		{"internal error", page(500, `{"error":"invalid_client"}`), refresh.Unavailable, "500", "answered 500"},
		{"unknown code in an outage", page(503, `{"error_codes":[700016]}`), refresh.Unavailable, "AADSTS700016", "answered 503"},
		{"garbage", azuretest.Garbage(), refresh.Unavailable, "200", "without a token"},
		{"nothing", page(204, ""), refresh.Unavailable, "204", "without a token"},
		{"a page", page(200, "<html>please log in</html>"), refresh.Unavailable, "200", "without a token"},
		{"not there", page(404, "<html>no such page</html>"), refresh.Misconfigured, "404", "answered 404 Not Found"},
		{"only an OAuth error", page(401, `{"error":"invalid_client"}`), refresh.Misconfigured, "401", "does not accept the credential"},
		{"a word of nobody's", page(400, `{"error":"own_goal"}`), refresh.Misconfigured, "400", "answered 400 Bad Request"},
		{"codes of another type", page(400, `{"error":"invalid_scope","error_codes":"700016"}`), refresh.Misconfigured, "400", ""},
		{"codes out of range", page(400, `{"error":"invalid_scope","error_codes":[-1,99999999999]}`), refresh.Misconfigured, "400", "does not accept scope"},
		{"the code among others", page(400, `{"error":"x","error_codes":[1,700016]}`), refresh.Misconfigured, "AADSTS700016", "is not in tenant"},
		{"ids that are none", page(400, `{"error":"x","trace_id":"<script>","correlation_id":"6f2b1c1e-0000-4000-8000-00000000000a"}`), refresh.Misconfigured, "400", ""},
		{"a redirect", azuretest.Answer{Status: 307, Header: http.Header{"Location": {"https://elsewhere.invalid/"}}}, refresh.Misconfigured, "307", "answered 307"},
		{"too long", page(400, strings.Repeat("x", 2<<20)), refresh.Unavailable, "", "more than a token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.Next(c.answer)
			got := b.failure(t, workload)
			c.check(t, got)
			ids := regexp.MustCompile(` \(trace id [0-9a-f-]{36}, correlation id [0-9a-f-]{36}\)$`)
			if own := c.answer.Code != 0; own != ids.MatchString(got.Text) || own != strings.Contains(got.Text, "trace id") {
				t.Errorf("Entra's ids: %s", got.Text)
			}
			if b.Requests() != 1 {
				t.Errorf("one call made %d tries", b.Requests())
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value       string
		least, most time.Duration
	}{
		{"", 0, 0},
		{"17", 17 * time.Second, 17 * time.Second},
		{"soon", 0, 0},
		{"-3", 0, 0},
		{"4000000000", 24 * time.Hour, 24 * time.Hour},
		{time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), 59 * time.Minute, time.Hour},
		{time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), 0, 0},
	} {
		b := newBench(t, nil)
		b.Next(azuretest.Throttled(c.value))
		if got := b.failure(t, workload).RetryAfter; got < c.least || got > c.most {
			t.Errorf("Retry-After %q: %s, want %s to %s", c.value, got, c.least, c.most)
		}
	}
	b := newBench(t, nil)
	b.Next(azuretest.Answer{Status: 503, Header: http.Header{"Retry-After": {"5"}}})
	if got := b.failure(t, workload); got.Class != refresh.Unavailable || got.RetryAfter != 5*time.Second {
		t.Errorf("503 with Retry-After: %+v", got)
	}
}

// What Entra itself says about a wrong configuration, with nothing scripted.
func TestMisconfigured(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(*bench)
		key    refresh.MintKey
		class  refresh.Class
		code   string
		says   string
	}{
		{"identity", nil, refresh.MintKey{Identity: "nobody"}, refresh.Misconfigured, "", "add it to identities"},
		{"scope", nil, refresh.MintKey{Identity: "workload", Scope: "https://graph.microsoft.com/.default"}, refresh.Misconfigured, "AADSTS500011", "https://graph.microsoft.com/.default"},
		{"tenant", func(b *bench) { b.identity(workload).TenantID = "3f1c2d90-0000-4000-8000-00000000ffff" }, workload, refresh.Misconfigured, "AADSTS90002", "ffff is not known"},
		{"tenant malformed", func(b *bench) { b.identity(workload).TenantID = "a tenant" }, workload, refresh.Misconfigured, "", "malformed"},
		{"tenant malformed, with a secret", func(b *bench) { b.identity(bySecret).TenantID = "a tenant" }, bySecret, refresh.Misconfigured, "", "malformed"},
		{"client", func(b *bench) { b.identity(workload).ClientID = "3f1c2d90-0000-4000-8000-00000000ffff" }, workload, refresh.Misconfigured, "AADSTS700016", "ffff is not in tenant"},
		{"subject", func(b *bench) {
			must(os.WriteFile(b.tokenFile, []byte(b.issuer.Token("system:serviceaccount:a:b", azuretest.TokenExchange, time.Hour)), 0o600))
		}, workload, refresh.Misconfigured, "AADSTS700213", "subject system:serviceaccount:a:b,"},
		{"a subject to break sentences with", func(b *bench) {
			must(os.WriteFile(b.tokenFile, []byte(b.issuer.Token("a\nb"+strings.Repeat("c", 1000), azuretest.TokenExchange, time.Hour)), 0o600))
		}, workload, refresh.Misconfigured, "AADSTS700213", "subject a?bccc"},
		{"assertion expired", func(b *bench) {
			must(os.WriteFile(b.tokenFile, []byte(b.issuer.Token(podAccount, azuretest.TokenExchange, -time.Hour)), 0o600))
		}, workload, refresh.Assertion, "AADSTS700024", " to " + time.Now().Add(-time.Hour).UTC().Format("2006-01-02T")},
		{"no token file", func(b *bench) { must(os.Remove(b.tokenFile)) }, workload, refresh.Misconfigured, "", `azure.workload.identity/use: "true"`},
		{"another file", func(b *bench) { must(os.WriteFile(b.tokenFile, []byte(secret), 0o600)) }, workload, refresh.Misconfigured, "", "holds no ServiceAccount token"},
		{"secret wrong", func(b *bench) { b.cluster.Values["clientSecret"] = "a-guess" }, bySecret, refresh.Misconfigured, "AADSTS7000215", "in Secret tokens/secret, is wrong; it takes the secret's value, not its id"},
		{"secret expired", func(b *bench) {
			b.Change(func(c *azuretest.Config) { c.Applications[0].Secrets[0].Expires = time.Now().Add(-time.Hour) })
		}, bySecret, refresh.Misconfigured, "AADSTS7000222", "in Secret tokens/secret, has expired"},
		{"secret empty", func(b *bench) { b.cluster.Values["clientSecret"] = " \n" }, bySecret, refresh.Misconfigured, "", "is empty"},
		{"no CA file", func(b *bench) { must(os.Remove(b.caFile)) }, workload, refresh.Misconfigured, "", "caFile cannot be read"},
		{"no CA in the file", func(b *bench) { must(os.WriteFile(b.caFile, []byte("PEM?"), 0o600)) }, workload, refresh.Misconfigured, "", "holds no certificate"},
		{"CA not named", func(b *bench) { b.identity(workload).CAFile = "" }, workload, refresh.Misconfigured, "", "name its CA in caFile"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, c.change)
			got := b.failure(t, c.key)
			if got.Class != c.class || got.Code != c.code || !strings.Contains(got.Text, c.says) {
				t.Errorf("got %s %q: %s\nwant %s %q: …%s…", got.Class, got.Code, got.Text, c.class, c.code, c.says)
			}
		})
	}
}

func TestUnreadableProof(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for _, key := range []refresh.MintKey{bySecret, byCertificate, account} {
		b.cluster.err = errors.New("the value is " + secret)
		if got := b.failure(t, key); got.Class != refresh.Misconfigured || strings.Contains(got.Text, secret) || !strings.HasSuffix(got.Text, " cannot be read") {
			t.Errorf("an error of anybody's: %+v", got)
		}
		b.cluster.err = &refresh.Error{Class: refresh.Throttled, Code: "429", Text: "too many requests", RetryAfter: time.Second}
		want := refresh.Error{Class: refresh.Throttled, Code: "429", Text: "identity " + key.Identity + ": too many requests", RetryAfter: time.Second}
		if got := b.failure(t, key); *got != want {
			t.Errorf("an error that may be shown: %+v", got)
		}
	}
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and hangs up
	if err != nil {
		t.Fatal(err)
	}
	hungUp := make(chan struct{})
	go func() {
		defer close(hungUp)
		for {
			conn, err := mute.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = mute.Close(); <-hungUp })
	for _, c := range []struct{ name, host, says string }{
		{"refused", deaf(t), "cannot be reached: connection refused"},
		{"no such name", "login..invalid", "login..invalid or the proxy to it cannot be resolved"},
		{"hung up", mute.Addr().String(), mute.Addr().String() + " or the proxy to it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(b *bench) { b.identity(workload).AuthorityHost = "https://" + c.host })
			if got := b.failure(t, workload); got.Class != refresh.Unavailable || !strings.Contains(got.Text, c.says) {
				t.Errorf("%s: %s, want …%s…", got.Class, got.Text, c.says)
			}
		})
	}
}

// deaf is an address that is taken, so that nobody else gets it, and refuses connections.
func deaf(t *testing.T) string {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	must(err)
	t.Cleanup(func() { must(syscall.Close(socket)) })
	must(syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	bound, err := syscall.Getsockname(socket)
	must(err)
	return fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
}

// The proof is read for each mint, so that a kubelet or a person can renew it.
func TestProofIsReadAnew(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	first := b.token(t, workload, "")
	write(t, b.tokenFile, b.issuer.Token("system:serviceaccount:another:one", azuretest.TokenExchange, time.Hour))
	if _, err := b.source.Token(deadline(t), workload, first.Hash); err == nil {
		t.Error("the new assertion was not sent")
	}
	write(t, b.tokenFile, "\n"+b.assertion()+"\n")
	b.token(t, workload, first.Hash)

	first = b.token(t, bySecret, "")
	b.cluster.Values["clientSecret"] = "a-guess"
	if _, err := b.source.Token(deadline(t), bySecret, first.Hash); err == nil {
		t.Error("the new secret was not sent")
	}
	b.cluster.Values["clientSecret"] = secret + "\n"
	b.token(t, bySecret, first.Hash)

	write(t, b.caFile, string(newBench(t, nil).CA()))
	if _, err := b.source.Token(deadline(t), workload, b.token(t, workload, "").Hash); err == nil {
		t.Error("the new CA was not read")
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
