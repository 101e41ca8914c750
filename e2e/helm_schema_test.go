package e2e

// The Helm chart: which values it has, and which it refuses.

import (
	"encoding/json"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"flux-token-refresher/e2e/internal/chart"
	"flux-token-refresher/internal/config"
)

// TestHelmRefuses: what is wrong with values is said by the name of the value.
func TestHelmRefuses(t *testing.T) {
	t.Parallel()
	for values, want := range map[string]string{
		"replica: 2":                                "additional properties 'replica' not allowed",
		"replicas: three":                           "at '/replicas': got string, want integer",
		"replicas: 0":                               "at '/replicas': minimum: got 0, want 1",
		"image: {name: x}":                          "at '/image': additional properties 'name' not allowed",
		"image: {digest: latest}":                   "at '/image/digest': 'latest' does not match pattern",
		"events: {enable: true}":                    "at '/events': additional properties 'enable' not allowed",
		"events: {key: abc}":                        "at '/events': additional properties 'key' not allowed",
		"podMonitor: {enabled: 'true'}":             "at '/podMonitor/enabled': got string, want boolean",
		"extraEnv: [{nam: X}]":                      "at '/extraEnv/0'",
		"networkPolicy: {extraEgress: [{port: 1}]}": "at '/networkPolicy/extraEgress/0'",
		"config: {target: []}":                      "at '/config': additional properties 'target' not allowed",
		"config: {targets: []}":                     "at '/config/targets': minItems: got 0, want 1",
		"config: {targets: [{secret: a/b, identity: repos, formt: basicAuth}]}":                                                   "at '/config/targets/0': additional properties 'formt' not allowed",
		"config: {targets: [{secret: ab, identity: repos}]}":                                                                      "at '/config/targets/0/secret': 'ab' does not match pattern",
		"config: {targets: [{secret: a/b}]}":                                                                                      "at '/config/targets/0': missing property 'identity'",
		"config: {targets: [{secret: a/b, identity: repos, format: template}]}":                                                   "missing property 'template'",
		"config: {refresh: {cooldown: 30}}":                                                                                       "at '/config/refresh/cooldown': got number, want string",
		"config: {election: {leaseDuration: 15 s}}":                                                                               "at '/config/election/leaseDuration': '15 s' does not match pattern",
		"config: {identities: [{name: repos, type: clientSecret}]}":                                                               "missing property 'credentialSecret'",
		"config: {identities: [{name: repos, type: pat}]}":                                                                        "at '/config/identities/0/type': value must be one of",
		"config: {targets: [{secret: a/b, identity: repo}]}":                                                                      "config.targets[0].identity: there is no identity repo; there are: repos",
		"config: {targets: [{secret: a/b, identity: repos}, {secret: a/b, identity: repos}]}":                                     "config.targets[1].secret: a/b is a target already",
		"config: {identities: [{name: repos, type: workloadIdentity}, {name: repos, type: clientSecret, credentialSecret: a/b}]}": "config.identities[1].name: there is an identity repos already",
		"flux: {notifications: true}":                                                                                             "flux.notifications: nobody would listen; set events.enabled too",
		"goMemLimit: 65MiB":                                                                                                       "goMemLimit: 65MiB is more than resources.limits.memory",
		"goMemLimit: 2GiB\nresources: {limits: {memory: 2G}}":                                                                     "goMemLimit: 2GiB is more than resources.limits.memory",
		"events: {namespaces: []}":                                                                                                "at '/events/namespaces': minItems: got 0, want 1",
		"events: {enabled: null}":                                                                                                 "at '/events': missing property 'enabled'",
		"image: {repository: null}":                                                                                               "at '/image': missing property 'repository'",
		"workloadIdentity: null":                                                                                                  "missing property 'workloadIdentity'",
		"config: null":                                                                                                            "missing property 'config'",
		"replicas: null":                                                                                                          "missing property 'replicas'",
		"workloadIdentity: {clientID: ''}":                                                                                        "workloadIdentity.clientID: set it to the client id of the managed identity, or give config.identities[0] (repos) a clientID",
		"workloadIdentity: {clientID: me}":                                                                                        "at '/workloadIdentity/clientID'",
	} {
		t.Run(values, func(t *testing.T) {
			t.Parallel()
			_, _, err := chart.Release{Dir: chartDir, Name: "flux-token-refresher", Namespace: "flux-system", Values: merged(t, placeholder, values)}.Render()
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}

// TestHelmRefusesAsTheProgram: a configuration that the program would refuse at its start is refused before it is installed, by the same field.
func TestHelmRefusesAsTheProgram(t *testing.T) {
	t.Parallel()
	identity := func(fields string) string {
		return "identities: [{name: repos, " + fields + "}]\ntargets: [{secret: a/b, identity: repos}]"
	}
	target := func(fields string) string {
		return "identities: [{name: repos, type: workloadIdentity}]\ntargets: [{secret: a/b, identity: repos, " + fields + "}]"
	}
	beside := func(fields string) string {
		return "identities: [{name: repos, type: workloadIdentity}]\ntargets: [{secret: a/b, identity: repos}]\n" + fields
	}
	const known = "tenantID: tenant.example, clientID: 00000000-0000-0000-0000-000000000001"
	for name, test := range map[string]struct{ config, field string }{
		"two authorities":                     {identity("type: workloadIdentity, cloud: AzurePublic, authorityHost: 'https://login.example'"), "identities[0].cloud"},
		"a machine's tenant":                  {identity("type: managedIdentity, tenantID: tenant.example"), "identities[0].tenantID"},
		"a machine's cloud":                   {identity("type: managedIdentity, cloud: AzurePublic"), "identities[0].cloud"},
		"a machine's two names":               {identity("type: managedIdentity, " + known[len("tenantID: tenant.example, "):] + ", resourceID: /subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"), "identities[0].resourceID"},
		"a resource of no machine":            {identity("type: workloadIdentity, resourceID: /x"), "identities[0].resourceID"},
		"two proofs":                          {identity("type: workloadIdentity, serviceAccount: a/b, tokenFile: /x"), "identities[0].tokenFile"},
		"a credential too many":               {identity("type: workloadIdentity, credentialSecret: a/c"), "identities[0].credentialSecret"},
		"a file for a secret":                 {identity("type: clientSecret, credentialSecret: a/c, tokenFile: /x, " + known), "identities[0].tokenFile"},
		"a secret without a client":           {identity("type: clientSecret, credentialSecret: a/c, tenantID: tenant.example"), "identities[0].clientID"},
		"a secret without a tenant":           {identity("type: clientSecret, credentialSecret: a/c, clientID: 00000000-0000-0000-0000-000000000001"), "identities[0].tenantID"},
		"a key without a client":              {identity("type: clientCertificate, credentialSecret: a/c, tenantID: tenant.example"), "identities[0].clientID"},
		"a target that is its own credential": {identity("type: clientSecret, credentialSecret: a/b, " + known), "targets[0].secret"},
		"a name with two dots":                {"identities: [{name: repos, type: workloadIdentity}]\ntargets: [{secret: a/b..c, identity: repos}]", "targets[0].secret"},
		"a name that ends in a dot":           {identity("type: workloadIdentity, serviceAccount: a/b."), "identities[0].serviceAccount"},
		"a template without token":            {target("format: template, template: {password: '{{ .ExpiresAt }}'}"), "targets[0].template"},
		"a template without keys":             {target("format: template, template: {}"), "targets[0].template"},
		"a key that is a path":                {target("format: template, template: {a/b: '{{ .Token }}'}"), "targets[0].template"},
		"a template of no format":             {target("template: {password: '{{ .Token }}'}"), "targets[0].template"},
		"a user name of no format":            {target("username: git"), "targets[0].username"},
		"a user name's format":                {target("format: bearerToken, username: git"), "targets[0].username"},
		"a user name with a colon":            {target("format: basicAuth, username: 'a:b'"), "targets[0].username"},
		"labels of another's":                 {target("labels: {team: a}"), "targets[0].labels"},
		"a URL for a host":                    {beside("refresh: {verifyHosts: ['https://dev.azure.com']}"), "refresh.verifyHosts[0]"},
		"any host":                            {beside("refresh: {verifyHosts: ['*']}"), "refresh.verifyHosts[0]"},
		"a host of one label":                 {beside("refresh: {verifyHosts: ['*.com']}"), "refresh.verifyHosts[0]"},
		"a duration of no unit":               {beside("refresh: {minValidity: '30'}"), "refresh.minValidity"},
		"a negative duration":                 {beside("refresh: {minValidity: -1s}"), "refresh.minValidity"},
		"no pause":                            {beside("refresh: {cooldown: 0s}"), "refresh.cooldown"},
		"a long pause":                        {beside("refresh: {cooldown: 15m1s}"), "refresh.cooldown"},
		"half a second":                       {beside("election: {leaseDuration: 15500ms}"), "election.leaseDuration"},
		"a Lease for a day":                   {beside("election: {leaseDuration: 24h}"), "election.leaseDuration"},
		"a Lease that is too short":           {beside("election: {leaseDuration: 10s}"), "election.leaseDuration"},
		"a deadline that is too short":        {beside("election: {renewDeadline: 2400ms}"), "election.renewDeadline"},
		"no time between tries":               {beside("election: {retryPeriod: 0s}"), "election.retryPeriod"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			environment := map[string]string{"POD_NAMESPACE": "flux-system"}
			if strings.Contains(test.config, "workloadIdentity") {
				environment["AZURE_TENANT_ID"], environment["AZURE_CLIENT_ID"] = "tenant.example", "00000000-0000-0000-0000-000000000000"
				environment["AZURE_FEDERATED_TOKEN_FILE"] = "/token"
			}
			_, err := config.Parse("config.yaml", []byte("apiVersion: flux-token-refresher/v1alpha1\nkind: Config\n"+test.config),
				func(name string) string { return environment[name] })
			invalid, ok := errors.AsType[*config.Error](err)
			if !ok || slices.ContainsFunc(invalid.Problems, func(p config.Problem) bool { return !strings.HasPrefix(p.Field, test.field) }) {
				t.Errorf("the program says %v, want something about %s alone", err, test.field)
			}

			values := merged(t, placeholder, "config:\n  "+strings.ReplaceAll(test.config, "\n", "\n  "))
			_, _, err = chart.Release{Dir: chartDir, Name: "flux-token-refresher", Namespace: "flux-system", Values: values}.Render()
			// The schema writes /config/targets/0/secret.
			pointer := "'/config/" + strings.NewReplacer("[", "/", "]", "", ".", "/").Replace(test.field)
			if sentence := "config." + test.field + ": "; err == nil || !strings.Contains(err.Error(), sentence) && !strings.Contains(err.Error(), pointer) {
				t.Errorf("the chart says %v, want something about %s", err, test.field)
			}
		})
	}
}

// TestHelmSchemaOfConfig: the schema has the fields that the configuration file has, no more and no less, but for those that are the
// chart's own.
func TestHelmSchemaOfConfig(t *testing.T) {
	t.Parallel()
	type schema struct {
		Properties map[string]schema `json:"properties"`
		Items      *schema           `json:"items"`
	}
	var values schema
	if err := json.Unmarshal(read(t, filepath.Join(chartDir, "values.schema.json")), &values); err != nil {
		t.Fatal(err)
	}
	top := values.Properties["config"]
	// Each file has one field that is not there, far from every other's name: the answer names those that are.
	for at, test := range map[string]struct {
		file   string
		fields map[string]schema
		chart  []string
	}{
		"":           {"", top.Properties, []string{"apiVersion", "kind", "events", "health"}},
		"identities": {"identities: [{UNKNOWN: 1}]", top.Properties["identities"].Items.Properties, nil},
		"targets":    {"targets: [{UNKNOWN: 1}]", top.Properties["targets"].Items.Properties, nil},
		"refresh":    {"refresh: {UNKNOWN: 1}", top.Properties["refresh"].Properties, nil},
		"election":   {"election: {UNKNOWN: 1}", top.Properties["election"].Properties, nil},
	} {
		if test.file == "" {
			test.file = "UNKNOWN: 1"
		}
		_, err := config.Parse("config.yaml", []byte(strings.ReplaceAll(test.file, "UNKNOWN", "qqqqqqqqqqqqqqqqqqqq")), nil)
		invalid, ok := errors.AsType[*config.Error](err)
		if !ok {
			t.Fatal(err)
		}
		i := slices.IndexFunc(invalid.Problems, func(p config.Problem) bool { return strings.Contains(p.Text, "not a known field") })
		_, known, found := strings.Cut(invalid.Problems[i].Text, "known here: ")
		if !found {
			t.Fatal(err)
		}
		want := strings.Split(known, ", ")
		got := append(slices.Collect(maps.Keys(test.fields)), test.chart...)
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -configuration +schema\n%s", at, diff)
		}
	}
}

// TestHelmDocumentsValues: values.yaml has every value, and a comment above each.
func TestHelmDocumentsValues(t *testing.T) {
	t.Parallel()
	var schema struct {
		Properties map[string]struct {
			Properties map[string]any `json:"properties"`
		} `json:"properties"`
	}
	var values map[string]any
	if err := errors.Join(
		json.Unmarshal(read(t, filepath.Join(chartDir, "values.schema.json")), &schema),
		yaml.Unmarshal(read(t, filepath.Join(chartDir, "values.yaml")), &values),
	); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global") // Helm's
	if diff := cmp.Diff(slices.Sorted(maps.Keys(schema.Properties)), slices.Sorted(maps.Keys(values))); diff != "" {
		t.Errorf("-schema +values\n%s", diff)
	}
	for name, property := range schema.Properties {
		if name == "affinity" || len(property.Properties) == 0 {
			continue // Kubernetes has documented it
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(property.Properties)), slices.Sorted(maps.Keys(values[name].(map[string]any)))); diff != "" {
			t.Errorf("%s: -schema +values\n%s", name, diff)
		}
	}
}
