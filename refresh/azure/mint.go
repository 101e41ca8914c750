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
	timeout time.Duration
	tracing sdktracing.Provider
}

// mint asks Entra for a new token. Errors are *refresh.Error.
func (m minter) mint(ctx context.Context, id Identity, scope string) (refresh.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()

	x, err := newExchange(id)
	if err != nil {
		return refresh.Token{}, err
	}
	defer x.close()
	cred, claims, err := id.Credential.open(ctx, id, azcore.ClientOptions{
		Cloud:           cloud.Configuration{ActiveDirectoryAuthorityHost: id.AuthorityHost},
		Retry:           policy.RetryOptions{MaxRetries: -1},
		TracingProvider: m.tracing,
		Transport:       x,
	})
	if err != nil {
		return refresh.Token{}, err
	}
	minted := time.Now()
	t, err := cred.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{scope}})
	if err != nil {
		// Never err itself, which quotes what Entra answered: what went over the wire says all.
		return refresh.Token{}, x.failure(ctx, attempt{id: id, scope: scope, claims: claims, timeout: m.timeout})
	}
	if !t.ExpiresOn.After(minted) {
		return refresh.Token{}, id.fail(refresh.Unavailable, "Entra issued a token that has ended already; compare the node's clock")
	}
	return refresh.NewToken(t.Token, minted, t.ExpiresOn, t.RefreshOn), nil
}
