// Which configurations New takes.

package azure_test

import (
	"testing"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
)

func TestNewRefusesMistakes(t *testing.T) {
	t.Parallel()
	good := azure.Identity{Name: "a", Type: azure.WorkloadIdentity, TenantID: tenant, ClientID: client, TokenFile: "token"}
	bySecret := azure.Identity{
		Name: "a", Type: azure.ClientSecret, TenantID: tenant, ClientID: client,
		CredentialSecret: refresh.Name{Namespace: "tokens", Name: "secret"},
	}
	with := func(id azure.Identity, change func(*azure.Identity)) []azure.Identity {
		change(&id)
		return []azure.Identity{id}
	}
	for name, identities := range map[string][]azure.Identity{
		"twice":          {good, good},
		"no name":        with(good, func(id *azure.Identity) { id.Name = "" }),
		"no tenant":      with(good, func(id *azure.Identity) { id.TenantID = "" }),
		"no client":      with(good, func(id *azure.Identity) { id.ClientID = "" }),
		"no type":        with(good, func(id *azure.Identity) { id.Type = "" }),
		"no token":       with(good, func(id *azure.Identity) { id.TokenFile = "" }),
		"two tokens":     with(good, func(id *azure.Identity) { id.ServiceAccount = refresh.Name{Namespace: "a", Name: "b"} }),
		"no secret":      with(bySecret, func(id *azure.Identity) { id.CredentialSecret = refresh.Name{} }),
		"no certificate": with(bySecret, func(id *azure.Identity) { id.Type, id.CredentialSecret = azure.ClientCertificate, refresh.Name{} }),
		"two names":      {{Name: "a", Type: azure.ManagedIdentity, ClientID: client, ResourceID: resourceID}},
		"plain http":     with(good, func(id *azure.Identity) { id.AuthorityHost = "http://login.example/" }),
		"no host":        with(good, func(id *azure.Identity) { id.AuthorityHost = "https:///tenant" }),
		"user in URL":    with(good, func(id *azure.Identity) { id.AuthorityHost = "https://a:b@login.example/" }),
	} {
		if _, err := azure.New(azure.Config{Identities: identities, Cluster: &cluster{}}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := azure.New(azure.Config{Identities: []azure.Identity{bySecret}}); err == nil {
		t.Error("no cluster: no error")
	}
	for _, smallest := range []azure.Identity{
		good, {Name: "a", Type: azure.ManagedIdentity}, {Name: "a", Type: azure.AzureCLI},
	} {
		if _, err := azure.New(azure.Config{Identities: []azure.Identity{smallest}}); err != nil {
			t.Errorf("the smallest %s: %v", smallest.Type, err)
		}
	}
}
