// The bench: an emulated Entra, an issuer of ServiceAccount tokens and a Source between them.

package azure_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/azure/azuretest"
)

const (
	tenant = "3f1c2d90-0000-4000-8000-000000000001"
	client = "3f1c2d90-0000-4000-8000-000000000002"
	issuer = "https://oidc.example/cluster"
	secret = "Ab8Q~a-secret-of-the-application-0123456789"

	podAccount   = "system:serviceaccount:flux-system:flux-token-refresher"
	otherAccount = "system:serviceaccount:team-a:repos"

	resourceID = "/subscriptions/3f1c2d90-0000-4000-8000-000000000003/resourceGroups/rg/providers/" +
		"Microsoft.ManagedIdentity/userAssignedIdentities/repos"
	identityHeader = "853b9a84-5bfa-4b22-a3f3-0b9a43d9ad8a"
)

// What a bench's identities are called, and how each proves itself.
var (
	workload      = key("workload")    // the pod's own token file
	account       = key("account")     // the token of another ServiceAccount
	bySecret      = key("secret")      // a client secret
	byCertificate = key("certificate") // a client certificate
	managed       = key("managed")     // the machine's endpoint
	cli           = key("cli")         // az
)

// byProof are those that prove themselves to Entra.
var byProof = []refresh.MintKey{workload, account, bySecret, byCertificate}

func key(identity string) refresh.MintKey {
	return refresh.MintKey{Identity: identity, Scope: azuretest.AzureDevOpsScope}
}

func TestMain(m *testing.M) {
	if task := os.Getenv(childEnv); task != "" {
		var c child
		must(json.Unmarshal([]byte(task), &c))
		c.run()
		return
	}
	must(os.Setenv("NO_PROXY", "*")) // whatever the machine has for names that are not loopback
	dir, err := installAz()
	must(err)
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		must(os.RemoveAll(dir))
		os.Exit(code)
	}))
}

// bench is an application with an identity of each type.
type bench struct {
	*azuretest.Entra
	endpoint    *azuretest.Endpoint
	source      *azure.Source
	config      azure.Config
	issuer      *azuretest.Issuer
	certificate *azuretest.ClientCertificate
	cluster     *cluster

	tokenFile, caFile string
	azTenant          string
}

// cluster is what stands in a Kubernetes cluster: the keys of its one Secret, and its one other ServiceAccount.
type cluster struct {
	Values  map[string]string
	Account azure.ServiceAccount
	err     error                       // of every reading
	during  func(context.Context) error // runs at every reading
}

func (c *cluster) read(ctx context.Context) error {
	if c.during != nil {
		return c.during(ctx)
	}
	return c.err
}

func (c *cluster) Secret(ctx context.Context, _ refresh.Name, keys ...string) ([]string, error) {
	var values []string
	for _, key := range keys {
		values = append(values, c.Values[key])
	}
	return values, c.read(ctx)
}

func (c *cluster) ServiceAccount(ctx context.Context, _ refresh.Name, audience string) (azure.ServiceAccount, error) {
	if audience != azuretest.TokenExchange {
		return azure.ServiceAccount{}, errors.New("asked for the audience " + audience)
	}
	return c.Account, c.read(ctx)
}

// signWith makes certificates once: an RSA key takes a while.
var signWith = sync.OnceValue(func() *azuretest.ClientCertificate {
	c, err := azuretest.NewClientCertificate(time.Now().Add(90 * 24 * time.Hour))
	must(err)
	return c
})

func newBench(t testing.TB, change func(*bench)) *bench {
	t.Helper()
	b := &bench{certificate: signWith(), azTenant: uuid.NewString()}
	var err error
	if b.issuer, err = azuretest.NewIssuer(issuer); err != nil {
		t.Fatal(err)
	}
	b.Entra, err = azuretest.Start(azuretest.Config{Applications: []azuretest.Application{{
		TenantID: tenant, ClientID: client,
		Federated:    []azuretest.FederatedCredential{b.issuer.Federate(podAccount), b.issuer.Federate(otherAccount)},
		Secrets:      []azuretest.Secret{{Value: secret}},
		Certificates: []*x509.Certificate{b.certificate.Certificate},
		Resources:    []string{azuretest.AzureDevOps, "https://vault.azure.net"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	b.endpoint, err = b.StartEndpoint(azuretest.EndpointConfig{
		Identities: []azuretest.ManagedIdentity{{ClientID: client, ResourceID: resourceID}}, Header: identityHeader,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.endpoint.Close)
	dir := t.TempDir()
	b.tokenFile, b.caFile = filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt")
	write(t, b.tokenFile, b.assertion())
	write(t, b.caFile, string(b.CA()))
	b.cluster = &cluster{
		Values: map[string]string{
			"clientSecret": secret, "tls.crt": b.certificate.CertificatePEM, "tls.key": b.certificate.KeyPEM,
		},
		Account: azure.ServiceAccount{
			Token: b.issuer.Token(otherAccount, azuretest.TokenExchange, time.Hour), TenantID: tenant, ClientID: client,
		},
	}
	b.config = azure.Config{Identities: identities(b.URL(), b.caFile, b.tokenFile, b.azTenant), Cluster: b.cluster, Dial: b.dial}
	if change != nil {
		change(b)
	}
	if b.source, err = azure.New(b.config); err != nil {
		t.Fatal(err)
	}
	return b
}

// imds is where azidentity looks for it, whatever the environment says.
const imds = "169.254.169.254:80"

// dial puts the bench's endpoint in the place of IMDS.
func (b *bench) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return dialer(b.endpoint.Address())(ctx, network, address)
}

func dialer(endpoint string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == imds {
			address = endpoint
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}

// identities are one of each type, in the order of the keys above.
func identities(url, caFile, tokenFile, azTenant string) []azure.Identity {
	entra := azure.Identity{TenantID: tenant, ClientID: client, AuthorityHost: url, CAFile: caFile}
	ids := []azure.Identity{entra, entra, entra, entra, {}, {}}
	ids[0].Name, ids[0].Type, ids[0].TokenFile = workload.Identity, azure.WorkloadIdentity, tokenFile
	ids[1].Name, ids[1].Type, ids[1].ServiceAccount = account.Identity, azure.WorkloadIdentity, refresh.Name{Namespace: "team-a", Name: "repos"}
	ids[1].TenantID, ids[1].ClientID = "", ""
	ids[2].Name, ids[2].Type, ids[2].CredentialSecret = bySecret.Identity, azure.ClientSecret, refresh.Name{Namespace: "tokens", Name: "secret"}
	ids[3].Name, ids[3].Type, ids[3].CredentialSecret = byCertificate.Identity, azure.ClientCertificate, refresh.Name{Namespace: "tokens", Name: "certificate"}
	ids[4].Name, ids[4].Type, ids[4].ClientID = managed.Identity, azure.ManagedIdentity, client
	ids[5].Name, ids[5].Type, ids[5].TenantID = cli.Identity, azure.AzureCLI, azTenant
	return ids
}

// identity is one of the configuration's, to change.
func (b *bench) identity(key refresh.MintKey) *azure.Identity {
	for i := range b.config.Identities {
		if b.config.Identities[i].Name == key.Identity {
			return &b.config.Identities[i]
		}
	}
	panic("no identity " + key.Identity)
}

// assertion is a good one, and unlike any other.
func (b *bench) assertion() string {
	return b.issuer.Token(podAccount, azuretest.TokenExchange, time.Hour)
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
