package config_test

// Whose word counts for an identity, and what of it changes the hash.

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/internal/config"
)

func TestPrecedence(t *testing.T) {
	t.Parallel()
	secret := func(lines string) string {
		return with(typeLine, "    type: clientSecret\n    credentialSecret: a/b\n"+lines)
	}
	type want struct{ Tenant, Client, Authority, TokenFile, Lease string }
	fromEnv := want{tenant, client, "https://login.microsoftonline.com/", pod["AZURE_FEDERATED_TOKEN_FILE"], "flux-system/flux-token-refresher"}
	change := func(f func(*want)) want { w := fromEnv; f(&w); return w }
	const other = "33333333-3333-3333-3333-333333333333"
	tests := map[string]struct {
		file string
		env  func(string) string
		want want
	}{
		"the environment": {smallest, in(), fromEnv},
		"fields": {with(typeLine, typeLine+"    tenantID: "+other+"\n    clientID: "+other+"\n    tokenFile: /f\n"), in(),
			change(func(w *want) { w.Tenant, w.Client, w.TokenFile = other, other, "/f" })},
		"fields without an environment": {
			with(typeLine, typeLine+"    tenantID: "+other+"\n    clientID: "+other+"\n    tokenFile: /f\n") + "election: {lease: a/b}\n",
			func(string) string { return "" },
			want{other, other, "https://login.microsoftonline.com/", "/f", "a/b"}},
		"an authority of the environment": {smallest, in("AZURE_AUTHORITY_HOST=https://login.microsoftonline.us"),
			change(func(w *want) { w.Authority = "https://login.microsoftonline.us/" })},
		"no authority at all":          {smallest, in("AZURE_AUTHORITY_HOST="), fromEnv},
		"a cloud over the environment": {with(typeLine, typeLine+"    cloud: AzurePublic\n"), in("AZURE_AUTHORITY_HOST=https://a.example"), fromEnv},
		"an authority over the environment": {with(typeLine, typeLine+"    authorityHost: https://b.example/\n"),
			in("AZURE_AUTHORITY_HOST=https://a.example"), change(func(w *want) { w.Authority = "https://b.example/" })},
		"a field hides an environment that is wrong": {
			with(typeLine, typeLine+"    cloud: AzurePublic\n"), in("AZURE_AUTHORITY_HOST=nonsense"), fromEnv},
		"a client secret takes tenant and client too": {secret(""), in("AZURE_FEDERATED_TOKEN_FILE="),
			change(func(w *want) { w.TokenFile = "" })},
		"a certificate takes tenant and client too": {
			with(typeLine, "    type: clientCertificate\n    credentialSecret: a/b\n"), in("AZURE_FEDERATED_TOKEN_FILE="),
			change(func(w *want) { w.TokenFile = "" })},
		"a ServiceAccount's annotations over the environment": {with(typeLine, typeLine+"    serviceAccount: a/b\n"), in(),
			change(func(w *want) { w.Tenant, w.Client, w.TokenFile = "", "", "" })},
		"fields over a ServiceAccount's annotations": {
			with(typeLine, typeLine+"    serviceAccount: a/b\n    tenantID: "+other+"\n    clientID: "+other+"\n"), in(),
			change(func(w *want) { w.Tenant, w.Client, w.TokenFile = other, other, "" })},
		"a ServiceAccount in another cloud": {
			with(typeLine, typeLine+"    serviceAccount: a/b\n"), in("AZURE_AUTHORITY_HOST=https://login.microsoftonline.us"),
			want{"", "", "https://login.microsoftonline.us/", "", "flux-system/flux-token-refresher"}},
		"a managed identity takes the client": {with("workloadIdentity", "managedIdentity"), in(),
			change(func(w *want) { w.Tenant, w.Authority, w.TokenFile = "", "", "" })},
		"a managed identity of the machine": {with("workloadIdentity", "managedIdentity"), in("AZURE_CLIENT_ID="),
			change(func(w *want) { w.Tenant, w.Client, w.Authority, w.TokenFile = "", "", "", "" })},
		"a managed identity by its resource": {
			with(typeLine, "    type: managedIdentity\n    resourceID: "+resource+"\n"), in(),
			change(func(w *want) { w.Tenant, w.Client, w.Authority, w.TokenFile = "", "", "", "" })},
		"az takes the tenant": {with("workloadIdentity", "azureCLI"), in(),
			change(func(w *want) { w.Client, w.Authority, w.TokenFile = "", "", "" })},
		"az without a tenant": {with("workloadIdentity", "azureCLI"), in("AZURE_TENANT_ID="),
			change(func(w *want) { w.Tenant, w.Client, w.Authority, w.TokenFile = "", "", "", "" })},
		"the namespace of the pod": {smallest, in("POD_NAMESPACE=tokens"), change(func(w *want) { w.Lease = "tokens/flux-token-refresher" })},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := config.Parse("config.yaml", []byte(test.file), test.env)
			if err != nil {
				t.Fatal(err)
			}
			id := c.Identities[0]
			got := want{id.TenantID, id.ClientID, id.AuthorityHost, id.TokenFile, c.Election.Lease.String()}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestElsewhere: without an environment a file can be looked at, and what is wrong with it is still found.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	c, err := config.Parse("config.yaml", []byte(smallest), nil)
	if err != nil {
		t.Fatal(err)
	}
	if id := c.Identities[0]; id.TenantID+id.ClientID+id.TokenFile != "" || c.Election.Lease.Namespace != "" {
		t.Errorf("there is something that nobody said: %+v, %+v", id, c.Election)
	}
	expect(t, with(lastLine, "    identity: repo\n"), nil, []string{
		`8: targets[0].identity: there is no identity "repo"; did you mean repos?`})
}

// TestConfigHash: the hash stands on Secrets. Another one for the same configuration would refresh every token
// at an update of the product; the same one for another configuration would leave a token of the old.
func TestConfigHash(t *testing.T) {
	t.Parallel()
	hash := func(file string, env ...string) string {
		t.Helper()
		c, err := config.Parse("config.yaml", []byte(file), in(env...))
		if err != nil {
			t.Fatal(err)
		}
		return c.Targets[0].ConfigHash
	}
	const pinned = "065a0c492638529f"
	same := map[string]string{
		"smallest": smallest,
		"defaults written out": with(typeLine, typeLine+"    tenantID: "+tenant+"\n    clientID: "+client+
			"\n    authorityHost: https://LOGIN.microsoftonline.com\n", lastLine, lastLine+"    scope: "+devops+"\n    format: bearerToken\n"),
		"other names, other schedule": with("name: repos", "name: r", lastLine, "    identity: r\n    create: true\n    labels: {a: b}\n",
			secretLine, "  - secret: a/b\n") + "refresh: {jitter: 0}\n",
		"who is asked and who asks": with(lastLine, lastLine+"    verify: never\n") +
			"refresh: {verifyHosts: [a.example], verifyCAFile: /ca}\nevents: {senders: [{name: a, hmacKeyFile: /k}]}\n",
		"another proof":  with(typeLine, "    type: clientSecret\n    credentialSecret: a/b\n"),
		"a third proof":  with(typeLine, "    type: clientCertificate\n    credentialSecret: a/b\n"),
		"a fourth proof": with(typeLine, typeLine+"    serviceAccount: a/b\n    tenantID: "+tenant+"\n    clientID: "+client+"\n"),
	}
	for name, file := range same {
		if got := hash(file); got != pinned {
			t.Errorf("%s: %s, want %s", name, got, pinned)
		}
	}
	const other = "33333333-3333-3333-3333-333333333333"
	template := func(content string) string {
		return with(lastLine, lastLine+"    format: template\n    template: {"+content+"}\n")
	}
	different := []string{
		hash(smallest),
		hash(smallest, "AZURE_TENANT_ID="+other),
		hash(smallest, "AZURE_CLIENT_ID="+other),
		hash(smallest, "AZURE_AUTHORITY_HOST=https://a.example"),
		hash(with(typeLine, typeLine+"    serviceAccount: a/b\n")),
		hash(with(typeLine, typeLine+"    serviceAccount: a/c\n")),
		hash(with(typeLine, typeLine+"    serviceAccount: a/b\n    clientID: "+other+"\n")),
		hash(with("workloadIdentity", "managedIdentity")),
		hash(with("workloadIdentity", "managedIdentity"), "AZURE_CLIENT_ID="),
		hash(with(typeLine, "    type: managedIdentity\n    resourceID: "+resource+"\n")),
		hash(with("workloadIdentity", "azureCLI")),
		hash(with("workloadIdentity", "azureCLI"), "AZURE_TENANT_ID="),
		hash(with(lastLine, lastLine+"    scope: x/.default\n")),
		hash(with(lastLine, lastLine+"    format: basicAuth\n")),
		hash(with(lastLine, lastLine+"    format: basicAuth\n    username: x\n")),
		hash(template(`a: "{{.Token}}"`)),
		hash(template(`b: "{{.Token}}"`)),
		hash(template(`a: "{{ .Token }}"`)),
		hash(template(`a: "{{.Token}}", b: c`)),
		hash(template(`a: "{{.Token}}\",\"b\":\"c"`)),
	}
	seen := map[string]int{}
	for i, h := range different {
		if j, ok := seen[h]; ok {
			t.Errorf("configurations %d and %d have the hash %s both", j, i, h)
		}
		seen[h] = i
	}
}
