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
	assertion, err := os.ReadFile(b.tokenFile)
	must(err)
	proofs := []string{secret, string(assertion)}

	var said bytes.Buffer
	for _, key := range []refresh.MintKey{workload, bySecret} {
		for _, answer := range echoes {
			b.Next(answer)
			ctx, span := tracer.Tracer("test").Start(deadline(t), "token.acquire")
			_, err := b.source.Token(ctx, key, "")
			span.End()
			if err == nil {
				t.Fatalf("%s: a token after %+v", key, answer)
			}
			fmt.Fprintf(&said, "%v\n%+v\n%#v\n", err, err, err)
		}
		token := b.token(t, key, "")
		proofs = append(proofs, token.Reveal())
		fmt.Fprintf(&said, "%v %+v %#v %d %+v %#v\n", token, token, token, token, b.source, b.source)
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

	for i, proof := range proofs {
		if found := leaks(said.String(), proof); len(found) > 0 {
			t.Errorf("proof %d: %v", i, found)
		}
	}
}

// childEnv turns the test binary into a process that asks for tokens while everything wants to be logged.
const childEnv = "AZURE_TEST_CHILD"

// child is what that process has to know.
type child struct {
	URL, CAFile, TokenFile string
	Asks                   int
}

// run asks for a token of each identity, again and again, and prints what becomes of it.
func (c child) run() {
	source, err := azure.New(azure.Config{Identities: identities(c.URL, c.CAFile, c.TokenFile,
		func(context.Context) (string, error) { return secret, nil })})
	must(err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, key := range []refresh.MintKey{workload, bySecret} {
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
	asks := len(echoes) + 1
	for range 2 {
		b.Next(echoes...)
		b.Next(tokenAnswer(t, map[string]any{"access_token": strings.Repeat("a-token-", 200), "expires_in": 3600}))
	}
	task, err := json.Marshal(child{URL: b.URL(), CAFile: b.caFile, TokenFile: b.tokenFile, Asks: asks})
	must(err)
	assertion, err := os.ReadFile(b.tokenFile)
	must(err)
	exe, err := os.Executable()
	must(err)
	cmd := exec.CommandContext(deadline(t), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+string(task), "AZURE_SDK_GO_LOGGING=all", "GODEBUG=http2debug=2")
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if lines := bytes.Count(said, []byte("\n")); lines != 2*asks || b.Requests() != 2*asks {
		t.Errorf("it asked %d times of %d and somebody else wrote, too:\n%s", b.Requests(), 2*asks, said)
	}
	for name, proof := range map[string]string{"secret": secret, "assertion": string(assertion), "token": strings.Repeat("a-token-", 200)} {
		if found := leaks(string(said), proof); len(found) > 0 {
			t.Errorf("%s: %v", name, found)
		}
	}
}
