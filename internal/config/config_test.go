package config_test

// What a file says, and what it leaves out.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"flux-token-refresher/internal/config"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/gitremote"
)

const (
	tenant = "11111111-1111-1111-1111-111111111111"
	client = "22222222-2222-2222-2222-222222222222"
	devops = "499b84ac-1321-427f-aa17-267ca6975798/.default"

	resource = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"
)

// smallest is the smallest file.
const smallest = `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities:
  - name: repos
    type: workloadIdentity
targets:
  - secret: flux-system/flux-system
    identity: repos
`

// full sets every field that is built.
const full = `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities:
  - name: repos
    type: workloadIdentity
    tenantID: 33333333-3333-3333-3333-333333333333
    clientID: 44444444-4444-4444-4444-444444444444
    tokenFile: /run/token
    cloud: AzureChina
    caFile: /etc/ca.crt
  - name: other
    type: clientSecret
    tenantID: example.onmicrosoft.com
    clientID: 55555555-5555-5555-5555-555555555555
    credentialSecret: tokens/other-credential
    authorityHost: https://Login.Example.com:8443
  - name: certified
    type: clientCertificate
    tenantID: example.onmicrosoft.com
    clientID: 55555555-5555-5555-5555-555555555555
    credentialSecret: tokens/certificate
    cloud: AzureGovernment
  - name: account
    type: workloadIdentity
    serviceAccount: team-a/repos
    clientID: 66666666-6666-6666-6666-666666666666
  - name: machine
    type: managedIdentity
    resourceID: /subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i
  - name: assigned
    type: managedIdentity
    clientID: 77777777-7777-7777-7777-777777777777
  - name: developer
    type: azureCLI
    tenantID: 33333333-3333-3333-3333-333333333333
targets:
  - secret: flux-system/flux-system
    identity: repos
    scope: api://repos/.default
    format: bearerToken
    verify: auto
  - secret: team-a/basic.auth
    identity: other
    format: basicAuth
    username: someone
    verify: never
    create: true
    labels: {team: a, example.com/empty: ""}
  - secret: team-a/template
    identity: other
    format: template
    template:
      password: "{{ .Token }}"
      until: "{{ .ExpiresAt }}"
refresh:
  lifetimeFraction: 0.5
  jitter: 0
  minValidity: 5m
  cooldown: 1m30s
  verifyHosts: [Git.example.com:8443, "*.visualstudio.com"]
  verifyCAFile: /etc/git-ca.crt
events:
  address: 127.0.0.1:9090
  tls: {certFile: /tls/tls.crt, keyFile: /tls/tls.key}
  senders:
    - {name: flux, hmacKeyFile: /keys/flux/token, namespaces: [flux-system, team-a]}
    - {name: broker, bearerTokenFile: /keys/broker, namespaces: ["*"]}
    - {name: nobody, bearerTokenFile: /keys/nobody}
  maxAge: 5m
election: {lease: tokens/leader, leaseDuration: 30s, renewDeadline: 20s, retryPeriod: 4s}
health: {address: "[::1]:8082"}
`

var pod = map[string]string{
	"AZURE_TENANT_ID":            tenant,
	"AZURE_CLIENT_ID":            client,
	"AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/tokens/azure-identity-token",
	"AZURE_AUTHORITY_HOST":       "https://login.microsoftonline.com/",
	"POD_NAME":                   "replica-0",
	"POD_NAMESPACE":              "flux-system",
}

// in is the environment of a pod, changed by NAME=value pairs.
func in(changes ...string) func(string) string {
	return func(name string) string {
		for _, c := range changes {
			if value, ok := strings.CutPrefix(c, name+"="); ok {
				return value
			}
		}
		return pod[name]
	}
}

func TestSmallestFile(t *testing.T) {
	t.Parallel()
	got, err := config.Parse("config.yaml", []byte(smallest), in())
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Config{
		Identities: []azure.Identity{{
			Name: "repos", Type: azure.WorkloadIdentity, TenantID: tenant, ClientID: client,
			AuthorityHost: "https://login.microsoftonline.com/",
			TokenFile:     pod["AZURE_FEDERATED_TOKEN_FILE"],
		}},
		Targets: []refresh.Target{{
			Name:       refresh.Name{Namespace: "flux-system", Name: "flux-system"},
			Mint:       refresh.MintKey{Identity: "repos", Scope: devops},
			ConfigHash: "0",
			Verify:     true,
		}},
		Refresh: refresh.Policy{LifetimeFraction: 0.75, Jitter: 0.1, MinValidity: 10 * time.Minute, Cooldown: 30 * time.Second},
		Verify:  gitremote.Config{Hosts: []string{"dev.azure.com", "*.visualstudio.com"}},
		Events:  config.Events{Address: ":8080", MaxAge: 10 * time.Minute},
		Election: config.Election{
			Lease:         refresh.Name{Namespace: "flux-system", Name: "flux-token-refresher"},
			LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		},
		HealthAddress: ":8081",
		PodName:       "replica-0",
	}
	compare(t, got, want, [][]string{{"bearerToken"}})
}

func TestFullForm(t *testing.T) {
	t.Parallel()
	got, err := config.Parse("config.yaml", []byte(full), in())
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Config{
		Identities: []azure.Identity{{
			Name: "repos", Type: azure.WorkloadIdentity,
			TenantID: "33333333-3333-3333-3333-333333333333", ClientID: "44444444-4444-4444-4444-444444444444",
			AuthorityHost: "https://login.chinacloudapi.cn/",
			CAFile:        "/etc/ca.crt", TokenFile: "/run/token",
		}, {
			Name: "other", Type: azure.ClientSecret,
			TenantID: "example.onmicrosoft.com", ClientID: "55555555-5555-5555-5555-555555555555",
			AuthorityHost:    "https://login.example.com:8443/",
			CredentialSecret: refresh.Name{Namespace: "tokens", Name: "other-credential"},
		}, {
			Name: "certified", Type: azure.ClientCertificate,
			TenantID: "example.onmicrosoft.com", ClientID: "55555555-5555-5555-5555-555555555555",
			AuthorityHost:    "https://login.microsoftonline.us/",
			CredentialSecret: refresh.Name{Namespace: "tokens", Name: "certificate"},
		}, {
			Name: "account", Type: azure.WorkloadIdentity, ClientID: "66666666-6666-6666-6666-666666666666",
			AuthorityHost:  "https://login.microsoftonline.com/",
			ServiceAccount: refresh.Name{Namespace: "team-a", Name: "repos"},
		}, {
			Name: "machine", Type: azure.ManagedIdentity,
			ResourceID: "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i",
		}, {
			Name: "assigned", Type: azure.ManagedIdentity, ClientID: "77777777-7777-7777-7777-777777777777",
		}, {
			Name: "developer", Type: azure.AzureCLI, TenantID: "33333333-3333-3333-3333-333333333333",
		}},
		Targets: []refresh.Target{{
			Name: refresh.Name{Namespace: "flux-system", Name: "flux-system"},
			Mint: refresh.MintKey{Identity: "repos", Scope: "api://repos/.default"},
		}, {
			Name:   refresh.Name{Namespace: "team-a", Name: "basic.auth"},
			Mint:   refresh.MintKey{Identity: "other", Scope: devops},
			Create: true,
			Labels: map[string]string{"team": "a", "example.com/empty": ""},
		}, {
			Name:   refresh.Name{Namespace: "team-a", Name: "template"},
			Mint:   refresh.MintKey{Identity: "other", Scope: devops},
			Verify: true,
		}},
		Refresh: refresh.Policy{LifetimeFraction: 0.5, MinValidity: 5 * time.Minute, Cooldown: 90 * time.Second},
		Verify:  gitremote.Config{Hosts: []string{"Git.example.com:8443", "*.visualstudio.com"}, CAFile: "/etc/git-ca.crt"},
		Events: config.Events{
			Address: "127.0.0.1:9090", TLSCertFile: "/tls/tls.crt", TLSKeyFile: "/tls/tls.key",
			Senders: []config.Sender{
				{Name: "flux", HMACKeyFile: "/keys/flux/token", Namespaces: []string{"flux-system", "team-a"}},
				{Name: "broker", BearerTokenFile: "/keys/broker", Namespaces: []string{"*"}},
				{Name: "nobody", BearerTokenFile: "/keys/nobody"},
			},
			MaxAge: 5 * time.Minute,
		},
		Election: config.Election{
			Lease:         refresh.Name{Namespace: "tokens", Name: "leader"},
			LeaseDuration: 30 * time.Second, RenewDeadline: 20 * time.Second, RetryPeriod: 4 * time.Second,
		},
		HealthAddress: "[::1]:8082",
		PodName:       "replica-0",
	}
	compare(t, got, want, [][]string{{"bearerToken"}, {"password", "username"}, {"password", "until"}})

	rendered, err := got.Targets[1].Format.Render(refresh.NewToken("t", time.Time{}, time.Time{}, time.Time{}))
	if err != nil || string(rendered["username"]) != "someone" {
		t.Errorf("basicAuth renders %q, %v; want the user name someone", rendered, err)
	}
}

// compare looks at hashes and formats apart: the ones have a test of their own, the others hold functions.
func compare(t *testing.T, got, want *config.Config, keys [][]string) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(refresh.Target{}, "Format", "ConfigHash")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if len(keys) != len(got.Targets) {
		t.Fatalf("%d targets, want %d", len(got.Targets), len(keys))
	}
	for i, target := range got.Targets {
		if diff := cmp.Diff(keys[i], target.Format.Keys()); diff != "" {
			t.Errorf("keys of %s (-want +got)\n%s", target.Name, diff)
		}
	}
}

// TestWhatSaysNothing: a field without a value and a list without elements are as good as left out.
func TestWhatSaysNothing(t *testing.T) {
	t.Parallel()
	file := with(typeLine, typeLine+"    serviceAccount:\n    tenantID: ~\n") +
		"refresh:\nevents: {senders: []}\nelection: {lease: }\nhealth: null\n"
	got, err := config.Parse("config.yaml", []byte(file), in())
	if err != nil {
		t.Fatal(err)
	}
	want, err := config.Parse("config.yaml", []byte(smallest), in())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(refresh.Target{}, "Format")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestVerify: tokens of Azure DevOps alone are shown to Git servers.
func TestVerify(t *testing.T) {
	t.Parallel()
	for lines, want := range map[string]bool{
		"":                            true,
		"    verify: auto\n":          true,
		"    verify: never\n":         false,
		"    scope: " + devops + "\n": true,
		"    scope: " + strings.ToUpper(devops[:36]) + devops[36:] + "\n": true,
		"    scope: https://vault.azure.net/.default\n":                   false,
		"    scope: api://x/.default\n    verify: auto\n":                 false,
	} {
		c, err := config.Parse("config.yaml", []byte(with(lastLine, lastLine+lines)), in())
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Targets[0].Verify; got != want {
			t.Errorf("%q: Verify is %t, want %t", lines, got, want)
		}
	}
	c, err := config.Parse("config.yaml", []byte(smallest+"refresh: {verifyHosts: []}\n"), in())
	if err != nil || len(c.Verify.Hosts) != 0 {
		t.Errorf("no hosts at all: %+v, %v", c, err)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if c, err := config.Load(write("good.yaml", smallest), in()); err != nil || len(c.Targets) != 1 {
		t.Errorf("a good file gives %v, %v", c, err)
	}
	path := write("large.yaml", smallest+"#"+strings.Repeat("x", 2<<20))
	if _, err := config.Load(path, in()); err == nil ||
		err.Error() != path+":1: is larger than 1048576 bytes; that is no configuration file" {
		t.Errorf("a large file gives %v", err)
	}
	if _, err := config.Load(filepath.Join(dir, "none.yaml"), in()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file gives %v", err)
	}
	if _, err := config.Load(dir, in()); err == nil {
		t.Error("a folder gives no error")
	}
}

func ExampleParse() {
	file := `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities:
  - name: repos
    type: workloadIdentity
targets:
  - secret: flux-system/flux-system
    identity: repo
    usernme: git
`
	_, err := config.Parse("config.yaml", []byte(file), nil)
	fmt.Println(err)
	// Output:
	// config.yaml:8: targets[0].identity: there is no identity "repo"; did you mean repos?
	// config.yaml:9: targets[0].usernme: is not a known field; did you mean username?
}
