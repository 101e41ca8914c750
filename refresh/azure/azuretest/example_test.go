package azuretest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/azure/azuretest"
)

// A token for Azure DevOps, from a ServiceAccount token that the emulator trusts; then an outage.
func Example() {
	const tenant, client = "3f1c2d90-0000-4000-8000-000000000001", "3f1c2d90-0000-4000-8000-000000000002"
	const account = "system:serviceaccount:flux-system:flux-token-refresher"

	issuer, err := azuretest.NewIssuer("https://kubernetes.default.svc.cluster.local")
	if err != nil {
		panic(err)
	}
	entra, err := azuretest.Start(azuretest.Config{
		Applications: []azuretest.Application{{
			TenantID: tenant, ClientID: client,
			Federated: []azuretest.FederatedCredential{issuer.Federate(account)},
		}},
		MinLifetime: 60 * time.Second, MaxLifetime: 90 * time.Second,
	})
	if err != nil {
		panic(err)
	}
	defer entra.Close()

	dir, err := os.MkdirTemp("", "entra")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	caFile, tokenFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	if err := errors.Join(
		os.WriteFile(caFile, entra.CA(), 0o600),
		os.WriteFile(tokenFile, []byte(issuer.Token(account, azuretest.TokenExchange, time.Hour)), 0o600),
	); err != nil {
		panic(err)
	}

	source, err := azure.New(azure.Config{Identities: []azure.Identity{{
		Name: "repos", TenantID: tenant, ClientID: client, AuthorityHost: entra.URL(), CAFile: caFile,
		Type: azure.WorkloadIdentity, TokenFile: tokenFile,
	}}})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	key := refresh.MintKey{Identity: "repos", Scope: azuretest.AzureDevOpsScope}

	token, err := source.Token(ctx, key, "")
	fmt.Println("issued:", err == nil, entra.Minted(client, key.Scope))
	_, err = entra.Validate(token.Reveal(), azuretest.AzureDevOps)
	fmt.Println("good:", err == nil)
	entra.Revoke(token.Reveal())
	_, err = entra.Validate(token.Reveal(), azuretest.AzureDevOps)
	fmt.Println("then:", err)

	entra.Next(azuretest.Throttled("30"))
	_, err = source.Token(ctx, key, token.Hash)
	fmt.Println(err)

	// Output:
	// issued: true 1
	// good: true
	// then: the token was revoked
	// 429: identity repos: Entra takes no more requests for now
}
