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

// open reads the proof of a.id anew and wraps it in a new credential of azidentity. It notes in a what the proof says of
// itself, for what is told about a failure. Errors are *refresh.Error.
func (m minter) open(ctx context.Context, a *attempt, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	switch a.id.Type {
	case WorkloadIdentity:
		return m.openWorkloadIdentity(ctx, a, options)
	case ManagedIdentity:
		return openManagedIdentity(a, options)
	case ClientSecret:
		return m.openSecret(ctx, a, options)
	case ClientCertificate:
		return m.openCertificate(ctx, a, options)
	default:
		return openAzureCLI(a)
	}
}

func (m minter) openWorkloadIdentity(ctx context.Context, a *attempt, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	read := readTokenFile
	if a.id.TokenFile == "" {
		read = m.readServiceAccount
	}
	assertion, err := read(ctx, a)
	if err != nil {
		return nil, err
	}
	// Not azidentity's WorkloadIdentityCredential: that reads the file by itself, so that the claims told of a
	// failure might not be those that were sent, and does not trim it.
	cred, err := azidentity.NewClientAssertionCredential(a.id.TenantID, a.id.ClientID,
		func(context.Context) (string, error) { return assertion, nil },
		&azidentity.ClientAssertionCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: skipInstanceDiscovery})
	if err != nil {
		return nil, a.id.unusable()
	}
	return cred, nil
}

func readTokenFile(_ context.Context, a *attempt) (string, error) {
	content, err := os.ReadFile(a.id.TokenFile)
	if err != nil {
		return "", a.id.fail(refresh.Misconfigured, fmt.Sprintf("the federated token file cannot be read: %v; "+
			`a pod has one when it carries the label azure.workload.identity/use: "true"`, err))
	}
	assertion := strings.TrimSpace(string(content))
	if a.claims, err = parseClaims(assertion); err != nil { // the file may hold anything: nothing that is no token is sent
		return "", a.id.fail(refresh.Misconfigured, fmt.Sprintf("%s holds no ServiceAccount token (JWT)", a.id.TokenFile))
	}
	return assertion, nil
}

// readServiceAccount also takes tenant and client from the account's annotations, where the identity does not say them.
func (m minter) readServiceAccount(ctx context.Context, a *attempt) (string, error) {
	name := a.id.ServiceAccount
	account, err := m.cluster.ServiceAccount(ctx, name, TokenExchange)
	if err != nil {
		return "", a.id.unread(ctx, "ServiceAccount "+name.String(), err)
	}
	for _, take := range []struct {
		field                    *string
		value, annotation, right string
	}{
		{&a.id.ClientID, account.ClientID, "azure.workload.identity/client-id", "clientID"},
		{&a.id.TenantID, account.TenantID, "azure.workload.identity/tenant-id", "tenantID"},
	} {
		if *take.field != "" {
			continue
		}
		if take.value == "" {
			return "", a.id.fail(refresh.Misconfigured, fmt.Sprintf("ServiceAccount %s has no annotation %s; annotate it, or write %s",
				name, take.annotation, take.right))
		}
		*take.field = take.value
	}
	if a.claims, err = parseClaims(account.Token); err != nil {
		return "", a.id.fail(refresh.Unavailable, fmt.Sprintf("the API server gave no token (JWT) of ServiceAccount %s", name))
	}
	return account.Token, nil
}

func (m minter) openSecret(ctx context.Context, a *attempt, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	values, err := m.readSecret(ctx, a, "clientSecret")
	if err != nil {
		return nil, err
	}
	cred, err := azidentity.NewClientSecretCredential(a.id.TenantID, a.id.ClientID, values[0],
		&azidentity.ClientSecretCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: skipInstanceDiscovery})
	if err != nil {
		return nil, a.id.unusable()
	}
	return cred, nil
}

// readSecret gives what stands in keys of the CredentialSecret; white space around it does not count.
func (m minter) readSecret(ctx context.Context, a *attempt, keys ...string) ([]string, error) {
	name := a.id.CredentialSecret
	values, err := m.cluster.Secret(ctx, name, keys...)
	if err != nil {
		return nil, a.id.unread(ctx, "Secret "+name.String(), err)
	}
	for i := range values {
		if values[i] = strings.TrimSpace(values[i]); values[i] == "" {
			return nil, a.id.fail(refresh.Misconfigured, fmt.Sprintf("%s of Secret %s is empty", keys[i], name))
		}
	}
	return values, nil
}

// unread is for a proof that the Cluster does not give.
func (id Identity) unread(ctx context.Context, what string, err error) *refresh.Error {
	if known, ok := errors.AsType[*refresh.Error](err); ok {
		failure := id.fail(known.Class, known.Text)
		failure.Code, failure.RetryAfter = known.Code, known.RetryAfter
		return failure
	}
	if ctx.Err() != nil {
		return id.fail(refresh.Unavailable, what+" could not be read in time")
	}
	return id.fail(refresh.Misconfigured, what+" cannot be read")
}

// unusable is for what azidentity refuses before it asks anybody; its reasons are all about the form of these.
func (id Identity) unusable() *refresh.Error {
	return id.fail(refresh.Misconfigured, fmt.Sprintf("tenant %s, client %s, authority %s: one of them is malformed",
		shown(id.TenantID), shown(id.ClientID), shown(id.AuthorityHost)))
}
