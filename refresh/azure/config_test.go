// Which configurations New takes.

package azure_test

import (
	"testing"

	"flux-token-refresher/refresh/azure"
)

func TestNewRefusesMistakes(t *testing.T) {
	t.Parallel()
	good := azure.Identity{Name: "a", TenantID: tenant, ClientID: client, Credential: azure.WorkloadIdentity{TokenFile: "token"}}
	with := func(change func(*azure.Identity)) []azure.Identity {
		id := good
		change(&id)
		return []azure.Identity{id}
	}
	for name, identities := range map[string][]azure.Identity{
		"twice":         {good, good},
		"no name":       with(func(id *azure.Identity) { id.Name = "" }),
		"no tenant":     with(func(id *azure.Identity) { id.TenantID = "" }),
		"no client":     with(func(id *azure.Identity) { id.ClientID = "" }),
		"no credential": with(func(id *azure.Identity) { id.Credential = nil }),
		"plain http":    with(func(id *azure.Identity) { id.AuthorityHost = "http://login.example/" }),
		"no host":       with(func(id *azure.Identity) { id.AuthorityHost = "https:///tenant" }),
		"user in URL":   with(func(id *azure.Identity) { id.AuthorityHost = "https://a:b@login.example/" }),
	} {
		if _, err := azure.New(azure.Config{Identities: identities}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := azure.New(azure.Config{Identities: []azure.Identity{good}}); err != nil {
		t.Errorf("the smallest one: %v", err)
	}
}
