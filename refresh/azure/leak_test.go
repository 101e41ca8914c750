// Nothing that proves an identity, and no token, gets out: not by an error, a span, a metric or a log.

package azure_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/azure/azuretest"
)

// leaks gives the forms in which a part of the value stands in the text: plain, URL, hex or base64, wherever
// it begins inside of what was encoded.
func leaks(text, value string) []string {
	const part = 24
	var found []string
	for _, at := range []int{0, (len(value) - part) / 2, len(value) - part} {
		piece := value[at : at+part]
		forms := map[string]string{
			"plain": piece, "query": url.QueryEscape(piece), "path": url.PathEscape(piece),
			"hex": hex.EncodeToString([]byte(piece)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(piece))),
		}
		for shift := range 3 { // base64 has three ways to write the same bytes
			whole := (part - shift) / 3 * 3
			aligned := []byte(piece[shift : shift+whole])
			forms[fmt.Sprintf("base64+%d", shift)] = base64.StdEncoding.EncodeToString(aligned)
			forms[fmt.Sprintf("base64url+%d", shift)] = base64.URLEncoding.EncodeToString(aligned)
		}
		for name, form := range forms {
			if strings.Contains(text, form) {
				found = append(found, fmt.Sprintf("%s of bytes %d to %d", name, at, at+part))
			}
		}
	}
	return found
}

func TestLeaksFindsEveryForm(t *testing.T) {
	t.Parallel()
	value := "begin:" + strings.Repeat("0123456789?/~>", 10) + ":end"
	for i := range 3 {
		around := strings.Repeat("x", i) + value + "yz"
		for name, text := range map[string]string{
			"plain": around, "query": url.QueryEscape(around), "hex": fmt.Sprintf("%x", around), "HEX": fmt.Sprintf("%X", around),
			"base64": base64.StdEncoding.EncodeToString([]byte(around)), "base64url": base64.RawURLEncoding.EncodeToString([]byte(around)),
			"a part": value[:40],
		} {
			if len(leaks(text, value)) == 0 {
				t.Errorf("%s after %d bytes: not found", name, i)
			}
		}
	}
	if found := leaks("identity repos: all is well", value); len(found) > 0 {
		t.Errorf("found in nothing: %v", found)
	}
}

// echoes are answers that repeat what was sent, besides those that Entra itself gives.
var echoes = []azuretest.Answer{
	azuretest.AADSTS(700213), azuretest.AADSTS(7000215), azuretest.AADSTS(1234567),
	azuretest.Throttled("1"), azuretest.Broken(http.StatusServiceUnavailable), azuretest.Garbage(),
	{Status: http.StatusBadRequest, Body: "<html>"},
	{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {"https://elsewhere.invalid/"}}},
}

func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	reader := sdkmetric.NewManualReader()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	b := newBench(t, func(b *bench) {
		b.config.TracerProvider = tracer
		b.config.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
		b.config.Timeout = 5 * time.Second
	})
	b.Change(func(c *azuretest.Config) { c.Echo = true })
	b.endpoint.Change(func(c *azuretest.EndpointConfig) { c.Echo = true })

	var said bytes.Buffer
	try := func(key refresh.MintKey) error {
		ctx, span := tracer.Tracer("test").Start(deadline(t), "token.acquire")
		defer span.End()
		_, err := b.source.Token(ctx, key, "")
		fmt.Fprintf(&said, "%v\n%+v\n%#v\n", err, err, err)
		return err
	}
	ask := func(key refresh.MintKey, next func(...azuretest.Answer)) {
		for _, answer := range echoes {
			next(answer)
			if try(key) == nil {
				t.Fatalf("%s: a token after %+v", key, answer)
			}
		}
		token := b.token(t, key, "")
		fmt.Fprintf(&said, "%v %+v %#v %d %+v %#v\n", token, token, token, token, b.source, b.source)
	}
	for _, key := range byProof {
		ask(key, b.Next)
	}
	ask(managed, b.endpoint.Next)
	b.az(t, "echo 'AADSTS700082: "+secret+"' >&2; echo '"+secret+"'; exit 1")
	if try(cli) == nil {
		t.Error("a token from an az that fails")
	}
	for _, broken := range []map[string]string{
		{"tls.crt": b.certificate.CertificatePEM, "tls.key": strings.ReplaceAll(b.certificate.KeyPEM, "PRIVATE", "SECRET")},
		{"tls.crt": b.certificate.KeyPEM, "tls.key": b.certificate.CertificatePEM[:200]},
	} {
		b.cluster.Values = broken
		var err error
		b.source, err = azure.New(b.config)
		must(err)
		if try(byCertificate) == nil {
			t.Error("a token by a broken key")
		}
	}

	content, err := json.Marshal(spans.GetSpans())
	must(err)
	said.Write(content)
	for _, s := range spans.GetSpans() {
		if s.Status.Description != "" || len(s.Events) > 0 {
			t.Errorf("span %s says %+v %+v", s.Name, s.Status, s.Events)
		}
		for _, attribute := range s.Attributes {
			fmt.Fprintln(&said, s.Name, attribute.Key, attribute.Value.String())
		}
	}
	var metrics metricdata.ResourceMetrics
	must(reader.Collect(t.Context(), &metrics))
	fmt.Fprintf(&said, "%+v\n", metrics)

	b.mayNotStandIn(t, said.String(), 5)
}

// mayNotStandIn looks for everything that proves an identity, and for the tokens, of which there are so many at least.
func (b *bench) mayNotStandIn(t *testing.T, text string, tokens int) {
	t.Helper()
	issued, proofs := b.Tokens(), b.Proofs()
	// The pod's token, the other account's, the client secret, and an assertion that the certificate signed for each try.
	if len(issued) < tokens || len(proofs) < 3+len(echoes) {
		t.Errorf("%d tokens and %d proofs: less was driven than is claimed", len(issued), len(proofs))
	}
	_, key, _ := strings.Cut(strings.ReplaceAll(b.certificate.KeyPEM, "\n", ""), "PRIVATE KEY-----")
	forbidden := map[string]string{
		"the client secret": secret, "the key": key, "the key's lines": strings.SplitAfterN(b.certificate.KeyPEM, "\n", 2)[1],
		"the account's token": b.cluster.Account.Token, "IDENTITY_HEADER": identityHeader,
	}
	for i, proof := range proofs {
		forbidden[fmt.Sprintf("proof %d", i)] = proof
	}
	for i, token := range issued {
		forbidden[fmt.Sprintf("token %d", i)] = token
	}
	for name, value := range forbidden {
		if found := leaks(text, value); len(found) > 0 {
			t.Errorf("%s: %v", name, found)
		}
	}
}

// childEnv turns the test binary into a process that asks for tokens while everything wants to be logged.
const childEnv = "AZURE_TEST_CHILD"

// child is what that process has to know.
type child struct {
	URL, CAFile, TokenFile, AzTenant string
	Cluster                          *cluster
	// IMDS is what stands for it.
	IMDS string
	// Keys are what it asks for, each so many times.
	Keys []refresh.MintKey
	Asks int
}

func (b *bench) child(asks int, keys ...refresh.MintKey) child {
	return child{
		URL: b.URL(), CAFile: b.caFile, TokenFile: b.tokenFile, AzTenant: b.azTenant, Cluster: b.cluster,
		IMDS: b.endpoint.Address(), Keys: keys, Asks: asks,
	}
}

// start runs it in a process of its own, with more in its environment, and gives all that it wrote.
func (c child) start(t *testing.T, environment ...string) string {
	t.Helper()
	task, err := json.Marshal(c)
	must(err)
	exe, err := os.Executable()
	must(err)
	cmd := exec.CommandContext(deadline(t), exe)
	cmd.Env = append(append(os.Environ(), childEnv+"="+string(task)), environment...)
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return string(said)
}

// everybody is one key of each type.
var everybody = []refresh.MintKey{workload, account, bySecret, byCertificate, managed, cli}

// run asks for a token of each identity, again and again, and prints what becomes of it.
func (c child) run() {
	source, err := azure.New(azure.Config{Identities: identities(c.URL, c.CAFile, c.TokenFile, c.AzTenant), Cluster: c.Cluster, Dial: dialer(c.IMDS)})
	must(err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, key := range c.Keys {
		for range c.Asks {
			token, err := source.Token(ctx, key, "")
			fmt.Fprintln(os.Stdout, key, token, err)
		}
	}
	must(goleak.Find()) // Entra still runs: a connection that was left open would be seen
}

func TestNothingIsLogged(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.Change(func(c *azuretest.Config) { c.Echo = true })
	b.endpoint.Change(func(c *azuretest.EndpointConfig) { c.Echo = true })
	asks := len(echoes) + 1
	token := tokenAnswer(t, map[string]any{"access_token": strings.Repeat("a-token-", 200), "expires_in": 3600})
	for range byProof {
		b.Next(echoes...)
		b.Next(token)
	}
	b.endpoint.Next(echoes...)
	b.endpoint.Next(token)
	b.az(t, "echo '"+secret+"' >&2; echo '"+secret+"'; exit 1")
	said := b.child(asks, everybody...).start(t, "AZURE_SDK_GO_LOGGING=all", "GODEBUG=http2debug=2",
		"IDENTITY_ENDPOINT="+b.endpoint.AppService(), "IDENTITY_HEADER="+identityHeader)
	lines, requests := strings.Count(said, "\n"), b.Requests()+b.endpoint.Requests()
	if lines != len(everybody)*asks || requests != lines-asks { // az asks nobody
		t.Errorf("it asked %d times for %d answers, or somebody else wrote, too:\n%s", requests, lines, said)
	}
	b.mayNotStandIn(t, said, 0)
	if found := leaks(said, strings.Repeat("a-token-", 200)); len(found) > 0 {
		t.Errorf("the token: %v", found)
	}
}
