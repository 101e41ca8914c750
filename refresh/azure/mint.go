// One mint: a new credential, one try, one deadline.

package azure

import (
	"context"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	sdktracing "github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"

	"flux-token-refresher/refresh"
)

type minter struct {
	cluster Cluster
	timeout time.Duration
	dial    dialer
	tracing sdktracing.Provider
}

// mint asks Entra, or who stands for it, for a new token. Errors are *refresh.Error.
func (m minter) mint(ctx context.Context, id Identity, scope string) (refresh.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()

	x, err := newExchange(id, m.dial)
	if err != nil {
		return refresh.Token{}, err
	}
	defer x.close()
	a := &attempt{id: id, scope: scope, timeout: m.timeout}
	cred, err := m.open(ctx, a, azcore.ClientOptions{
		Cloud:           cloud.Configuration{ActiveDirectoryAuthorityHost: id.AuthorityHost},
		Retry:           policy.RetryOptions{MaxRetries: -1},
		TracingProvider: m.tracing,
		Transport:       x,
	})
	if err != nil {
		return refresh.Token{}, err
	}
	options := policy.TokenRequestOptions{Scopes: []string{scope}}
	if id.Type == ManagedIdentity {
		options.Claims = pastCache
	}
	minted := time.Now()
	t, err := cred.GetToken(ctx, options)
	switch {
	case err != nil && id.Type == AzureCLI:
		return refresh.Token{}, cliFailure(ctx, a, err)
	case err != nil:
		// Never err itself, which quotes what Entra answered: what went over the wire says all.
		return refresh.Token{}, x.failure(ctx, a)
	case t.Token == "":
		return refresh.Token{}, id.fail(refresh.Unavailable, "an answer without a token; is something between?")
	}
	if !t.ExpiresOn.After(minted) {
		return refresh.Token{}, id.fail(refresh.Unavailable, "Entra issued a token that has ended already; compare the node's clock")
	}
	return refresh.NewToken(t.Token, minted, t.ExpiresOn, t.RefreshOn), nil
}
