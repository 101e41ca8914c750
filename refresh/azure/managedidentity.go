// The endpoint of managed identities, and what its refusals mean.

package azure

import (
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"flux-token-refresher/refresh"
)

// pastCache is what makes azidentity ask the endpoint: MSAL's cache of managed identities belongs to the whole process, so that
// a new credential does not help, and is passed by where there are claims. They are not sent (MSAL 1.10.1, managedidentity.AcquireToken).
const pastCache = "{}"

func openManagedIdentity(a *attempt, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
	switch {
	case a.id.ClientID != "":
		o.ID = azidentity.ClientID(a.id.ClientID)
	case a.id.ResourceID != "":
		o.ID = azidentity.ResourceID(a.id.ResourceID)
	}
	cred, err := azidentity.NewManagedIdentityCredential(o)
	if err != nil {
		return nil, a.id.fail(refresh.Misconfigured, "the environment names an endpoint of managed identities that cannot be used; "+
			"IMDS and the App Service form can (IDENTITY_ENDPOINT and IDENTITY_HEADER, without IDENTITY_SERVER_THUMBPRINT)")
	}
	return cred, nil
}

// managedName is what a managed identity is called in a sentence.
func (id Identity) managedName() string {
	switch {
	case id.ClientID != "":
		return "with the client id " + shown(id.ClientID)
	case id.ResourceID != "":
		return "with the resource id " + shown(id.ResourceID)
	}
	return "of its own (system-assigned), or several and clientID does not say which"
}

const unknownResource = "the resource of scope {scope} is not in the tenant of the managed identity; correct the scope"

// endpointCodes are Entra's error_codes that the endpoint passes on, where a managed identity makes them mean something else.
var endpointCodes = map[int]meaning{
	50001:  {refresh.Misconfigured, unknownResource},
	500011: {refresh.Misconfigured, unknownResource},
}

// endpointAnswers are the statuses of IMDS ("How to use managed identities to acquire an access token": error handling) and of
// the App Service form. IMDS says 404 and 410 while it is being updated, for 70 seconds at the most.
var endpointAnswers = map[int]meaning{
	http.StatusBadRequest: {refresh.Misconfigured, "this machine has no managed identity {managed}; " +
		"assign it (on AKS to the scale set of the node pool: az vmss identity assign), or correct clientID or resourceID"},
	http.StatusUnauthorized: {refresh.Misconfigured, "{endpoint} does not know who asks; compare IDENTITY_HEADER, and whether something stands between"},
	http.StatusForbidden:    {refresh.Misconfigured, "{endpoint} does not let this pod ask; managed identities may be closed to pods here"},
	http.StatusNotFound:     {refresh.Unavailable, "{endpoint} is being updated, or is no endpoint of managed identities"},
	http.StatusGone:         {refresh.Unavailable, "{endpoint} is being updated"},
}
