// The bench: an emulated Entra, an issuer of ServiceAccount tokens and a Source between them.

package azure_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/azure/azuretest"
)

const (
	tenant  = "3f1c2d90-0000-4000-8000-000000000001"
	client  = "3f1c2d90-0000-4000-8000-000000000002"
	account = "system:serviceaccount:flux-system:flux-token-refresher"
	issuer  = "https://oidc.example/cluster"
	secret  = "Ab8Q~a-secret-of-the-application-0123456789"
)

var (
	workload = refresh.MintKey{Identity: "workload", Scope: azuretest.AzureDevOpsScope}
	bySecret = refresh.MintKey{Identity: "secret", Scope: azuretest.AzureDevOpsScope}
)

func TestMain(m *testing.M) {
	if task := os.Getenv(childEnv); task != "" {
		var c child
		must(json.Unmarshal([]byte(task), &c))
		c.run()
		return
	}
	must(os.Setenv("NO_PROXY", "*")) // whatever the machine has for names that are not loopback
	goleak.VerifyTestMain(m)
}

// bench has two identities of one application.
type bench struct {
	*azuretest.Entra
	source            *azure.Source
	config            azure.Config
	issuer            *azuretest.Issuer
	tokenFile, caFile string
	readSecret        func(context.Context) (string, error)
}

func newBench(t testing.TB, change func(*bench)) *bench {
	t.Helper()
	b := &bench{}
	var err error
	if b.issuer, err = azuretest.NewIssuer(issuer); err != nil {
		t.Fatal(err)
	}
	b.Entra, err = azuretest.Start(azuretest.Config{Applications: []azuretest.Application{{
		TenantID: tenant, ClientID: client,
		Federated: []azuretest.FederatedCredential{b.issuer.Federate(account)},
		Secrets:   []azuretest.Secret{{Value: secret}},
		Resources: []string{azuretest.AzureDevOps, "https://vault.azure.net"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	dir := t.TempDir()
	b.tokenFile, b.caFile = filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt")
	write(t, b.tokenFile, b.assertion())
	write(t, b.caFile, string(b.CA()))
	b.readSecret = func(context.Context) (string, error) { return secret, nil }
	b.config.Identities = identities(b.URL(), b.caFile, b.tokenFile,
		func(ctx context.Context) (string, error) { return b.readSecret(ctx) })
	if change != nil {
		change(b)
	}
	if b.source, err = azure.New(b.config); err != nil {
		t.Fatal(err)
	}
	return b
}

// identities are "workload" and "secret".
func identities(url, caFile, tokenFile string, read func(context.Context) (string, error)) []azure.Identity {
	common := azure.Identity{TenantID: tenant, ClientID: client, AuthorityHost: url, CAFile: caFile}
	byToken, bySecret := common, common
	byToken.Name, byToken.Credential = "workload", azure.WorkloadIdentity{TokenFile: tokenFile}
	bySecret.Name, bySecret.Credential = "secret", azure.ClientSecret{Read: read}
	return []azure.Identity{byToken, bySecret}
}

// assertion is a good one, and unlike any other.
func (b *bench) assertion() string {
	return b.issuer.Token(account, azuretest.TokenExchange, time.Hour)
}

func (b *bench) token(t *testing.T, key refresh.MintKey, notHash string) refresh.Token {
	t.Helper()
	token, err := b.source.Token(deadline(t), key, notHash)
	if err != nil {
		t.Fatalf("Token(%s): %v", key, err)
	}
	return token
}

// failure fails to get a token, and gives the error.
func (b *bench) failure(t *testing.T, key refresh.MintKey) *refresh.Error {
	t.Helper()
	token, err := b.source.Token(deadline(t), key, "")
	var failure *refresh.Error
	if !errors.As(err, &failure) {
		t.Fatalf("Token(%s) = %v, %v; want a *refresh.Error", key, token, err)
	}
	if !strings.HasPrefix(failure.Text, "identity "+key.Identity+": ") {
		t.Errorf("%q does not name the identity", failure.Text)
	}
	if failure.Class == "" || len(failure.Text) > 1200 || strings.ContainsAny(failure.Text, "\n\r{}") {
		t.Errorf("not fit to be shown: %q (%s)", failure.Text, failure.Class)
	}
	return failure
}

func write(t testing.TB, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
