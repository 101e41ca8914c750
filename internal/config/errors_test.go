package config_test

// What is wrong with a file, and what would be right.

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/internal/config"
)

// with is the smallest file with lines put in the place of others: an old line, then its new text, and so on.
func with(changes ...string) string {
	out := smallest
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(out, changes[i]) {
			panic("the file has no " + changes[i])
		}
		out = strings.Replace(out, changes[i], changes[i+1], 1)
	}
	return out
}

const (
	header     = "apiVersion: flux-token-refresher/v1alpha1\nkind: Config\n"
	lastLine   = "    identity: repos\n"
	typeLine   = "    type: workloadIdentity\n"
	secretLine = "  - secret: flux-system/flux-system\n"
	label      = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end " +
		"with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
	neither = "is neither a DNS name nor a URI; write one of the certificate's subject alternative names, like flux.example.com or " +
		"spiffe://cluster.local/ns/flux-system/sa/notification-controller"
)

func TestErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		file string
		env  func(string) string
		want []string
	}{
		// The file as a whole.
		"empty": {file: "", want: []string{
			"1: is empty; start with apiVersion: flux-token-refresher/v1alpha1 and kind: Config"}},
		"only a comment": {file: "# nothing\n", want: []string{
			"1: is empty; start with apiVersion: flux-token-refresher/v1alpha1 and kind: Config"}},
		"null": {file: "---\n", want: []string{
			"1: is empty; start with apiVersion: flux-token-refresher/v1alpha1 and kind: Config"}},
		"too large": {file: "#" + strings.Repeat("x", 1<<20), want: []string{
			"1: is larger than 1048576 bytes; that is no configuration file"}},
		"no mapping": {file: "- a\n", want: []string{
			"1: is a list; write fields (name: value)"}},
		"syntax": {file: header + "identities: [\ntargets: x\n", want: []string{
			"5: not YAML: did not find expected ',' or ']'"}},
		"not UTF-8": {file: "a: \xff\n", want: []string{
			"1: not YAML: invalid leading UTF-8 octet (value: 255)"}},
		"two documents": {file: smallest + "---\n" + smallest, want: []string{
			"9: a second document starts here; one file holds one configuration"}},
		"a second document that is not YAML": {file: smallest + "---\n@", want: []string{
			"10: not YAML: found character that cannot start any token"}},
		"another version": {file: with("v1alpha1", "v1"), want: []string{
			`1: apiVersion: is "flux-token-refresher/v1"; this version reads flux-token-refresher/v1alpha1`}},
		"another kind": {file: with("kind: Config", "kind: Configuration"), want: []string{
			`2: kind: is "Configuration"; this version reads Config`}},
		"only unknown things": {file: "a: b\n", want: []string{
			"1: a: is not a known field; known here: apiVersion, kind, identities, targets, refresh, events, election, health",
			"1: apiVersion: is missing; write flux-token-refresher/v1alpha1",
			"1: identities: is missing; write at least one",
			"1: kind: is missing; write Config",
			"1: targets: is missing; write at least one"}},

		// Fields.
		"mistyped field": {file: smallest + "refresh: {lifetimefracton: 0.5}\n", want: []string{
			"9: refresh.lifetimefracton: is not a known field; did you mean lifetimeFraction?"}},
		"unknown field": {file: with(lastLine, lastLine+"    password: hunter2\n"), want: []string{
			"9: targets[0].password: is not a known field; " +
				"known here: secret, identity, scope, format, username, template, labels, create, verify"}},
		"field with a strange name": {file: smallest + "\"a\\nb\": 1\n", want: []string{
			`9: "a\nb": is not a known field; known here: apiVersion, kind, identities, targets, refresh, events, election, health`}},
		"duplicate field": {file: with(lastLine, lastLine+"    create: true\n    create: false\n"), want: []string{
			"10: targets[0].create: is set twice; it stands in line 9 already"}},
		"duplicate key in a map": {file: with(lastLine, lastLine+"    create: true\n    labels: {a: b, a: c}\n"), want: []string{
			"10: targets[0].labels.a: is set twice; it stands in line 10 already"}},
		"a key that is no string": {file: smallest + "1: x\n", want: []string{
			`9: has the plain value "1" for the name of a field; write a plain name`}},
		"merge key": {file: with(lastLine, lastLine+"    <<: {create: true}\n"), want: []string{
			"9: targets[0]: has a merge key, which this file may not have, for the name of a field; write a plain name"}},
		"alias": {file: with("name: repos", "name: &repos repos", lastLine, "    identity: *repos\n"), want: []string{
			"8: targets[0].identity: is an alias, which this file may not have; write a string"}},

		// Types of values.
		"a number for a string": {file: with("name: repos", "name: 12"), want: []string{
			`4: identities[0].name: is the plain value "12"; write a string, in quotes`}},
		"a list for a string": {file: with("name: repos", "name: [repos]"), want: []string{
			"4: identities[0].name: is a list; write a string"}},
		"a string for a list": {file: with("targets:\n", "", secretLine, "targets: x\n", lastLine, ""), want: []string{
			"6: targets: is a string; write a list"}},
		"a string for fields": {file: smallest + "refresh: always\n", want: []string{
			"9: refresh: is a string; write fields (name: value)"}},
		"an element that is empty": {file: with(secretLine, "  -\n"+secretLine), want: []string{
			"7: targets[0]: is empty; write fields (name: value)",
			"7: targets[0].identity: is missing; name who asks for the token",
			"7: targets[0].secret: is missing; name the Secret as namespace/name"}},
		"a string for a truth value": {file: with(lastLine, lastLine+"    create: yes\n"), want: []string{
			"9: targets[0].create: is a string; write true or false"}},
		"a string for a number": {file: smallest + "refresh: {jitter: \"0.1\"}\n", want: []string{
			"9: refresh.jitter: is a string; write a number like 0.75"}},
		"a duration without units": {file: smallest + "refresh:\n  cooldown: 30\n", want: []string{
			`10: refresh.cooldown: is the plain value "30", which is no duration; write it with units, like 90s or 1h30m`}},
		"a type of somebody's own": {file: with("name: repos", "name: !secret repos"), want: []string{
			`4: identities[0].name: is a value of the type "!secret"; write a string, in quotes`}},
		"an empty string": {file: with(lastLine, lastLine+"    scope: \"\"\n"), want: []string{
			"9: targets[0].scope: is empty; write a value or leave the field out"}},
		"a number in a map": {file: with(lastLine, lastLine+"    create: true\n    labels: {a: 1}\n"), want: []string{
			`10: targets[0].labels.a: is the plain value "1"; write a string, in quotes`}},

		// Identities.
		"no identities, no targets": {file: header + "identities: []\ntargets: []\n", want: []string{
			"3: identities: is an empty list; write at least one",
			"4: targets: is an empty list; write at least one"}},
		"an identity without anything": {file: with("name: repos\n"+typeLine, "tenantID: "+tenant+"\n", lastLine, ""), want: []string{
			"4: identities[0].name: is missing; give the identity a name that targets refer to",
			"4: identities[0].type: is missing; write one of: workloadIdentity, managedIdentity, clientSecret, clientCertificate, azureCLI",
			"6: targets[0].identity: is missing; name who asks for the token"}},
		"an identity's name": {file: with("name: repos", "name: Repos", lastLine, "    identity: Repos\n"), want: []string{
			`4: identities[0].name: "Repos" is not valid; ` + label}},
		"two identities of one name": {file: with(typeLine, typeLine+"  - name: repos\n"+typeLine), want: []string{
			`6: identities[1].name: "repos" stands in line 4 already; write each once`}},
		"unknown type": {file: with("type: workloadIdentity", "type: workloadidentities"), want: []string{
			`5: identities[0].type: "workloadidentities" is not known; known here: workloadIdentity, managedIdentity, clientSecret, clientCertificate, azureCLI`}},
		"mistyped type": {file: with("type: workloadIdentity", "type: workLoadIdentiy"), want: []string{
			`5: identities[0].type: "workLoadIdentiy" is not known; did you mean workloadIdentity?`}},
		"tenant and client": {file: with(typeLine, typeLine+"    tenantID: common\n    clientID: repos\n"), want: []string{
			`6: identities[0].tenantID: "common" is no tenant; write its id (a GUID) or a domain of it`,
			`7: identities[0].clientID: "repos" is no client id; write the GUID of the application or managed identity`}},
		"fields of another type": {file: with(typeLine, "    type: clientSecret\n    tokenFile: /run/token\n"), want: []string{
			"4: identities[0].credentialSecret: is missing; name the Secret with the key clientSecret as namespace/name",
			"6: identities[0].tokenFile: belongs to the type workloadIdentity; leave it out"}},
		"fields of yet another type": {file: with(typeLine, typeLine+"    credentialSecret: a/b\n"), want: []string{
			"6: identities[0].credentialSecret: belongs to the types clientSecret and clientCertificate; leave it out"}},
		"fields of no managed identity": {
			file: with(typeLine, "    type: managedIdentity\n    tenantID: "+tenant+"\n    cloud: AzureChina\n    caFile: /ca.crt\n    serviceAccount: a/b\n"), want: []string{
				"6: identities[0].tenantID: belongs to the types workloadIdentity, clientSecret, clientCertificate and azureCLI; leave it out",
				"7: identities[0].cloud: belongs to the types workloadIdentity, clientSecret and clientCertificate; leave it out",
				"8: identities[0].caFile: belongs to the types workloadIdentity, clientSecret and clientCertificate; leave it out",
				"9: identities[0].serviceAccount: belongs to the type workloadIdentity; leave it out"}},
		"fields of no az": {
			file: with(typeLine, "    type: azureCLI\n    clientID: "+client+"\n    resourceID: /x\n    authorityHost: https://a.example\n"), want: []string{
				"6: identities[0].clientID: belongs to the types workloadIdentity, managedIdentity, clientSecret and clientCertificate; leave it out",
				"7: identities[0].resourceID: belongs to the type managedIdentity; leave it out",
				"8: identities[0].authorityHost: belongs to the types workloadIdentity, clientSecret and clientCertificate; leave it out"}},
		"a managed identity by two names": {
			file: with(typeLine, "    type: managedIdentity\n    clientID: "+client+
				"\n    resourceID: /subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i\n"), want: []string{
				"7: identities[0].resourceID: stands beside clientID; keep one of the two"}},
		"a resource that is no managed identity": {file: with(typeLine, "    type: managedIdentity\n    resourceID: repos\n"), want: []string{
			`6: identities[0].resourceID: "repos" is no managed identity; write it like ` +
				"/subscriptions/…/resourceGroups/…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/…"}},
		"a ServiceAccount and a file": {file: with(typeLine, typeLine+"    serviceAccount: a/b\n    tokenFile: /f\n"), want: []string{
			"7: identities[0].tokenFile: stands beside serviceAccount; keep one of the two"}},
		"a ServiceAccount without a namespace": {file: with(typeLine, typeLine+"    serviceAccount: repos\n    tenantID: x\n"), want: []string{
			"6: identities[0].serviceAccount: is not namespace/name; write it like flux-system/flux-system",
			`7: identities[0].tenantID: "x" is no tenant; write its id (a GUID) or a domain of it`}},
		"a certificate without a Secret": {file: with(typeLine, "    type: clientCertificate\n"), want: []string{
			"4: identities[0].credentialSecret: is missing; name the Secret with the keys tls.crt and tls.key as namespace/name"}},
		"a client secret in the place of its name": {
			file: with(typeLine, "    type: clientSecret\n    credentialSecret: Xyz8Q~not-shown\n"), want: []string{
				"6: identities[0].credentialSecret: is not namespace/name; write it like flux-system/flux-system"}},
		"authorityHost and cloud": {file: with(typeLine, typeLine+"    authorityHost: https://a.example\n    cloud: AzureChina\n"),
			want: []string{
				"7: identities[0].cloud: stands beside authorityHost; keep one of the two"}},
		"unknown cloud": {file: with(typeLine, typeLine+"    cloud: AzureGermany\n"), want: []string{
			`6: identities[0].cloud: "AzureGermany" is not known; known here: AzurePublic, AzureChina, AzureGovernment`}},
		"mistyped cloud": {file: with(typeLine, typeLine+"    cloud: azurechina\n"), want: []string{
			`6: identities[0].cloud: "azurechina" is not known; did you mean AzureChina?`}},
		"authority over http": {file: with(typeLine, typeLine+"    authorityHost: http://a.example/\n"), want: []string{
			"6: identities[0].authorityHost: is not the https address of a host; write it like https://login.microsoftonline.com/"}},
		"authority with a password": {file: with(typeLine, typeLine+"    authorityHost: https://a:hunter2@a.example/\n"), want: []string{
			"6: identities[0].authorityHost: is not the https address of a host; write it like https://login.microsoftonline.com/"}},
		"authority with a path": {file: with(typeLine, typeLine+"    authorityHost: https://a.example/tenant\n"), want: []string{
			"6: identities[0].authorityHost: is not the https address of a host; write it like https://login.microsoftonline.com/"}},

		// The environment.
		"a pod without the webhook": {
			file: smallest, env: in("AZURE_TENANT_ID=", "AZURE_CLIENT_ID=", "AZURE_FEDERATED_TOKEN_FILE="), want: []string{
				"4: identities[0].clientID: is missing, and AZURE_CLIENT_ID is not set; write it, or label the pod " +
					`azure.workload.identity/use: "true" where the workload identity webhook runs, which sets it ` +
					"from the annotation azure.workload.identity/client-id of the pod's ServiceAccount",
				"4: identities[0].tenantID: is missing, and AZURE_TENANT_ID is not set; write it, or label the pod " +
					`azure.workload.identity/use: "true" where the workload identity webhook runs, which sets it`,
				"4: identities[0].tokenFile: is missing, and AZURE_FEDERATED_TOKEN_FILE is not set; write it, or label the pod " +
					`azure.workload.identity/use: "true" where the workload identity webhook runs, which sets it`}},
		"an account without an annotation": {file: smallest, env: in("AZURE_CLIENT_ID="), want: []string{
			"4: identities[0].clientID: is missing, and AZURE_CLIENT_ID is not set; write it, or set the annotation " +
				"azure.workload.identity/client-id of the pod's ServiceAccount: the workload identity webhook saw the pod, and found none"}},
		"a managed identity of the environment": {file: with("workloadIdentity", "managedIdentity"), env: in("AZURE_CLIENT_ID=x"), want: []string{
			`4: identities[0].clientID: AZURE_CLIENT_ID "x" is no client id; write the GUID of the application or managed identity`}},
		"a client secret without tenant and client": {
			file: with(typeLine, "    type: clientSecret\n    credentialSecret: a/b\n"), env: in("AZURE_TENANT_ID=", "AZURE_CLIENT_ID="),
			want: []string{
				"4: identities[0].clientID: is missing, and AZURE_CLIENT_ID is not set; write it",
				"4: identities[0].tenantID: is missing, and AZURE_TENANT_ID is not set; write it"}},
		"an environment that is wrong": {
			file: smallest, env: in("AZURE_TENANT_ID=x", "AZURE_CLIENT_ID=y", "AZURE_AUTHORITY_HOST=z"), want: []string{
				"4: identities[0].authorityHost: AZURE_AUTHORITY_HOST is not the https address of a host; " +
					"write it like https://login.microsoftonline.com/",
				`4: identities[0].clientID: AZURE_CLIENT_ID "y" is no client id; write the GUID of the application or managed identity`,
				`4: identities[0].tenantID: AZURE_TENANT_ID "x" is no tenant; write its id (a GUID) or a domain of it`}},
		"no namespace for the Lease": {file: smallest, env: in("POD_NAMESPACE="), want: []string{
			"1: election.lease: is missing, and POD_NAMESPACE is not set; " +
				"write namespace/name, or set it in the pod from metadata.namespace"}},

		// Targets.
		"a Secret without a namespace": {file: with(secretLine, "  - secret: flux-system\n"), want: []string{
			"7: targets[0].secret: is not namespace/name; write it like flux-system/flux-system"}},
		"a Secret's namespace": {file: with(secretLine, "  - secret: flux_system/flux-system\n"), want: []string{
			"7: targets[0].secret: is not namespace/name; " + label}},
		"two targets of one Secret": {file: smallest + "  - identity: repos\n    secret: flux-system/flux-system\n", want: []string{
			`10: targets[1].secret: "flux-system/flux-system" stands in line 7 already; write each once`}},
		"a target that is a credential": {
			file: with(typeLine, "    type: clientSecret\n    credentialSecret: flux-system/flux-system\n"), want: []string{
				"8: targets[0].secret: is the credentialSecret of the identity repos; name another Secret"}},
		"unknown identity": {file: with(lastLine, "    identity: somebody\n"), want: []string{
			`8: targets[0].identity: there is no identity "somebody"; known here: repos`}},
		"mistyped identity": {file: with(lastLine, "    identity: repo\n"), want: []string{
			`8: targets[0].identity: there is no identity "repo"; did you mean repos?`}},
		"scope": {file: with(lastLine, lastLine+"    scope: https://example.com\n"), want: []string{
			`9: targets[0].scope: "https://example.com" does not end in /.default after a resource; write it like ` + devops}},
		"unknown format": {file: with(lastLine, lastLine+"    format: basicauth2\n"), want: []string{
			`9: targets[0].format: "basicauth2" is not known; did you mean basicAuth?`}},
		"fields of another format": {
			file: with(lastLine, lastLine+"    username: git\n    template: {a: \"{{ .Token }}\"}\n"), want: []string{
				"9: targets[0].username: belongs to format: basicAuth; leave it out",
				"10: targets[0].template: belongs to format: template; leave it out"}},
		"user name": {file: with(lastLine, lastLine+"    format: basicAuth\n    username: a:b\n"), want: []string{
			`10: targets[0].username: "a:b" cannot be sent by basic authentication; write a name without a colon`}},
		"no template": {file: with(lastLine, lastLine+"    format: template\n"), want: []string{
			`7: targets[0].template: is missing; write Go templates over .Token and .ExpiresAt, like "{{ .Token }}"`}},
		"template without a token": {file: with(lastLine, lastLine+"    format: template\n    template: {a: b}\n"), want: []string{
			"10: targets[0].template: no key uses {{ .Token }}; " +
				`write Go templates over .Token and .ExpiresAt, like "{{ .Token }}"`}},
		"template for a key that is none": {
			file: with(lastLine, lastLine+"    format: template\n    template:\n      a/b: \"{{ .Token }}\"\n"), want: []string{
				`11: targets[0].template.a/b: "a/b" is not valid; a valid config key must consist of alphanumeric characters, ` +
					`'-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')`}},
		"labels of a Secret that is there": {file: with(lastLine, lastLine+"    labels: {a: b}\n"), want: []string{
			"9: targets[0].labels: only a Secret that is created here gets labels; write create: true or leave them out"}},
		"labels": {
			file: with(lastLine, lastLine+"    create: true\n    labels:\n      app.kubernetes.io/managed-by: me\n      a: \"-\"\n"),
			want: []string{
				"11: targets[0].labels.app.kubernetes.io/managed-by: is set by flux-token-refresher itself; leave it out",
				`12: targets[0].labels.a: "-" is not valid; a valid label must be an empty string or consist of alphanumeric characters, ` +
					`'-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', ` +
					`regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`}},

		// Ranges.
		"refresh": {file: smallest + "refresh:\n  lifetimeFraction: 1\n  jitter: 0.6\n  minValidity: -1s\n  cooldown: 0s\n", want: []string{
			"10: refresh.lifetimeFraction: is 1; write a number between 0 and 1, like 0.75",
			"11: refresh.jitter: is 0.6; write a number from 0 to 0.5",
			"12: refresh.minValidity: is -1s; write a duration of 0s or more",
			"13: refresh.cooldown: is 0s; write a duration of more than 0s and at most 15m"}},
		"no number": {file: smallest + "refresh:\n  lifetimeFraction: .nan\n  jitter: NaN\n", want: []string{
			`10: refresh.lifetimeFraction: is the plain value ".nan"; write a number like 0.75`,
			"11: refresh.jitter: is a string; write a number like 0.75"}},
		"lease too short": {file: smallest + "election: {leaseDuration: 10s}\n", want: []string{
			"9: election.leaseDuration: is 10s; it has to be longer than renewDeadline (10s)"}},
		"lease in parts of a second": {file: smallest + "election:\n  leaseDuration: 10500ms\n", want: []string{
			"10: election.leaseDuration: is 10.5s; write whole seconds, from 1s to 1h"}},
		"renewDeadline too short": {file: smallest + "election: {renewDeadline: 2400ms}\n", want: []string{
			"9: election.renewDeadline: is 2.4s; it has to be longer than 1.2 times retryPeriod (2s)"}},
		"retryPeriod": {file: smallest + "election: {retryPeriod: 0s}\n", want: []string{
			"9: election.retryPeriod: is 0s; write a duration of more than 0s"}},
		"lease": {file: smallest + "election: {lease: leader}\n", want: []string{
			"9: election.lease: is not namespace/name; write it like flux-system/flux-system"}},
		"health": {file: smallest + "health: {address: \"8081\"}\n", want: []string{
			`9: health.address: "8081" is not host:port; write it like :8081`}},
		"health port": {file: smallest + "health: {address: \":http\"}\n", want: []string{
			`9: health.address: ":http" is not host:port; write it like :8081`}},

		// Events.
		"events": {file: smallest + "events:\n  address: x\n  maxAge: 0s\n  tls:\n    certFile: a\n", want: []string{
			`10: events.address: "x" is not host:port; write it like :8081`,
			"11: events.maxAge: is 0s; write a duration of more than 0s",
			"12: events.tls: has one of certFile and keyFile; write both"}},
		"a key without a certificate": {file: smallest + "events: {tls: {keyFile: a}}\n", want: []string{
			"9: events.tls: has one of certFile and keyFile; write both"}},
		"senders": {file: smallest + "events:\n  senders:\n    - {name: a}\n    - {name: a, hmacKeyFile: f, bearerTokenFile: t, namespaces: [\"*\", A]}\n" +
			"    - {hmacKeyFile: f}\n    - {name: B, hmacKeyFile: f, namespaces: \"*\"}\n",
			want: []string{
				"11: events.senders[0]: has 0 ways to prove who it is; write one of hmacKeyFile, bearerTokenFile and clientName",
				"12: events.senders[1]: has 2 ways to prove who it is; write one of hmacKeyFile, bearerTokenFile and clientName",
				`12: events.senders[1].name: "a" stands in line 11 already; write each once`,
				`12: events.senders[1].namespaces[1]: "A" is not valid; ` + label,
				"13: events.senders[2].name: is missing; give the sender a name",
				`14: events.senders[3].name: "B" is not valid; ` + label,
				"14: events.senders[3].namespaces: is a string; write a list"}},
		"senders that there are anyway": {file: smallest + "events:\n  senders:\n    - {name: none, hmacKeyFile: f}\n    - {name: flux-token-refresher, hmacKeyFile: g}\n", want: []string{
			`11: events.senders[0].name: "none" means something else in metrics and on the Secret; choose another`,
			`12: events.senders[1].name: "flux-token-refresher" means something else in metrics and on the Secret; choose another`}},
		"a mistyped sender": {file: smallest + "events:\n  senders: [{name: a, hmacKey: f}]\n", want: []string{
			"10: events.senders[0]: has 0 ways to prove who it is; write one of hmacKeyFile, bearerTokenFile and clientName",
			"10: events.senders[0].hmacKey: is not a known field; known here: name, hmacKeyFile, bearerTokenFile, clientName, namespaces"}},

		"certificates of clients": {file: smallest + "events:\n  senders:\n    - {name: a, clientName: flux.example.com}\n", want: []string{
			"11: events.senders[0].clientName: needs certificates to be verified; write events.tls.clientCAFile"}},
		"certificates of clients without TLS": {file: smallest + "events: {tls: {clientCAFile: ca}}\n", want: []string{
			"9: events.tls.clientCAFile: needs a server that speaks TLS; write certFile and keyFile too"}},
		"names in certificates": {file: smallest + "events:\n  tls: {certFile: a, keyFile: b, clientCAFile: c}\n  senders:\n" +
			"    - {name: a, clientName: spiffe://cluster.local/ns/flux-system/sa/notification-controller}\n    - {name: b, clientName: flux.example.com}\n" +
			"    - {name: c, clientName: flux.example.com}\n    - {name: d, clientName: \"*.example.com\"}\n    - {name: e, clientName: CN=flux}\n",
			want: []string{
				`14: events.senders[2].clientName: "flux.example.com" stands in line 13 already; write each once`,
				`15: events.senders[3].clientName: "*.example.com" ` + neither,
				`16: events.senders[4].clientName: "CN=flux" ` + neither}},

		// Git servers.
		"verify": {file: with(lastLine, lastLine+"    verify: always\n"), want: []string{
			`9: targets[0].verify: "always" is not known; known here: auto, never`}},
		"verifyHosts": {file: smallest + "refresh:\n  verifyHosts:\n    - https://dev.azure.com\n    - \"*\"\n    - \"\"\n    - git.example.com:8443\n",
			want: []string{
				`11: refresh.verifyHosts[0]: "https://dev.azure.com" is no host name; ` +
					"write it like dev.azure.com or *.visualstudio.com, with a port where that is not 443",
				`12: refresh.verifyHosts[1]: "*" is no host name; ` +
					"write it like dev.azure.com or *.visualstudio.com, with a port where that is not 443",
				"13: refresh.verifyHosts[2]: is empty; write a value or leave the field out"}},

		// Several at once, each in its place.
		"all at once": {
			file: with("kind: Config", "kind: Confg", typeLine, "    type: x\n", lastLine, "    identity: y\n    creat: true\n") +
				"refresh: {jitter: 1}\n", want: []string{
				`2: kind: is "Confg"; this version reads Config`,
				`5: identities[0].type: "x" is not known; known here: workloadIdentity, managedIdentity, clientSecret, clientCertificate, azureCLI`,
				`8: targets[0].identity: there is no identity "y"; known here: repos`,
				"9: targets[0].creat: is not a known field; did you mean create?",
				"10: refresh.jitter: is 1; write a number from 0 to 0.5"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := test.env
			if env == nil {
				env = in()
			}
			expect(t, test.file, env, test.want)
		})
	}
}

func expect(t *testing.T, file string, env func(string) string, want []string) {
	t.Helper()
	_, err := config.Parse("config.yaml", []byte(file), env)
	if _, ok := errors.AsType[*config.Error](err); !ok {
		t.Fatalf("Parse gives %v, want an *Error", err)
	}
	for i := range want {
		want[i] = "config.yaml:" + want[i]
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestManyProblems: a file that is something else altogether is bounded work, and bounded words.
func TestManyProblems(t *testing.T) {
	t.Parallel()
	file := header + "targets: [" + strings.Repeat("a,", 10_000) + "]"
	_, err := config.Parse("config.yaml", []byte(file), in())
	var all *config.Error
	if !errors.As(err, &all) || len(all.Problems) != 100 {
		t.Fatalf("got %.100v, want an *Error with 100 problems", err)
	}
}
