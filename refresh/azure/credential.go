// How an identity proves itself.

package azure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"flux-token-refresher/refresh"
)

// skipInstanceDiscovery: each new credential would first ask login.microsoftonline.com whether it knows the authority
// (MSAL 1.10.1, storage.Manager.Read). The configuration vouches for the authority, the public one knows nothing of
// private clouds, and the aliases that it gives serve a cache that is thrown away.
const skipInstanceDiscovery = true

// Credential is a WorkloadIdentity or a ClientSecret.
type Credential interface {
	// open reads the proof and wraps it in a new credential of azidentity. The claims are those of an assertion, for
	// what is told about a failure. Errors are *refresh.Error.
	open(ctx context.Context, id Identity, options azcore.ClientOptions) (azcore.TokenCredential, claims, error)
}

// WorkloadIdentity proves an identity with a Kubernetes ServiceAccount token that Entra trusts through a
// federated credential.
type WorkloadIdentity struct {
	// TokenFile holds the ServiceAccount token, which the kubelet renews; it is read at each mint.
	TokenFile string
}

func (w WorkloadIdentity) open(_ context.Context, id Identity, options azcore.ClientOptions) (azcore.TokenCredential, claims, error) {
	content, err := os.ReadFile(w.TokenFile)
	if err != nil {
		return nil, claims{}, id.fail(refresh.Misconfigured, fmt.Sprintf("the federated token file cannot be read: %v; "+
			`a pod has one when it carries the label azure.workload.identity/use: "true"`, err))
	}
	assertion := strings.TrimSpace(string(content))
	c, err := parseClaims(assertion)
	if err != nil { // the file may hold anything: nothing that is no token is sent
		return nil, claims{}, id.fail(refresh.Misconfigured, fmt.Sprintf("%s holds no ServiceAccount token (JWT)", w.TokenFile))
	}
	// Not azidentity's WorkloadIdentityCredential: that reads the file by itself, so that the claims told of a
	// failure might not be those that were sent, and does not trim it.
	cred, err := azidentity.NewClientAssertionCredential(id.TenantID, id.ClientID,
		func(context.Context) (string, error) { return assertion, nil },
		&azidentity.ClientAssertionCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: skipInstanceDiscovery})
	if err != nil {
		return nil, claims{}, id.unusable()
	}
	return cred, c, nil
}

// ClientSecret proves an identity with a secret of its application.
type ClientSecret struct {
	// Read gives the secret's value; white space around it does not count. It is called at each mint and ends with
	// its context. An error that is no *refresh.Error is not shown to anybody.
	Read func(context.Context) (string, error)
}

//nolint:unparam // a secret makes no claims
func (c ClientSecret) open(ctx context.Context, id Identity, options azcore.ClientOptions) (azcore.TokenCredential, claims, error) {
	value, err := c.Read(ctx)
	if err != nil {
		var known *refresh.Error
		switch {
		case errors.As(err, &known):
			return nil, claims{}, known
		case ctx.Err() != nil:
			return nil, claims{}, id.fail(refresh.Unavailable, "the client secret could not be read in time")
		}
		return nil, claims{}, id.fail(refresh.Misconfigured, "the client secret cannot be read")
	}
	value = strings.TrimSpace(value)
	if value == "" {
		return nil, claims{}, id.fail(refresh.Misconfigured, "the client secret is empty")
	}
	cred, err := azidentity.NewClientSecretCredential(id.TenantID, id.ClientID, value,
		&azidentity.ClientSecretCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: skipInstanceDiscovery})
	if err != nil {
		return nil, claims{}, id.unusable()
	}
	return cred, claims{}, nil
}

// unusable is for what azidentity refuses before it asks anybody; its reasons are all about the form of these.
func (id Identity) unusable() *refresh.Error {
	return id.fail(refresh.Misconfigured, fmt.Sprintf("tenant %s, client %s, authority %s: one of them is malformed",
		shown(id.TenantID), shown(id.ClientID), shown(id.AuthorityHost)))
}
