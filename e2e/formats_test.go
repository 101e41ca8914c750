package e2e

// What becomes of a Secret whose target changes: its keys, and who else owns them, on the API server's own field management.

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

const (
	otherClient   = "44444444-0000-4000-8000-000000000004"
	otherResource = "https://management.azure.com"
)

// shape is a format: a target's fields, its keys, and the one that holds the token alone.
type shape struct {
	fields string
	keys   []string
	token  string
}

var (
	bearer   = shape{"format: bearerToken", []string{"bearerToken"}, "bearerToken"}
	basic    = shape{"format: basicAuth", []string{"password", "username"}, "password"}
	template = shape{`format: template, template: {token: "{{ .Token }}", url: "https://git.example"}`, []string{"token", "url"}, "token"}
	// mixed has a key of each of the first two.
	mixed  = shape{`format: template, template: {bearerToken: "{{ .Token }}", password: "{{ .Token }}"}`, []string{"bearerToken", "password"}, "password"}
	docker = shape{`format: template, template: {.dockerconfigjson: '{"auths":{"registry.example":{"password":"{{ .Token }}"}}}'}`, []string{".dockerconfigjson"}, ""}
)

// change is what happens to a target and its Secret.
type change struct {
	before, after shape
	// theirs is how somebody else created the Secret; nil where the product does.
	theirs *corev1.Secret
	// meanwhile is what somebody does to it before the target changes.
	meanwhile func(t *testing.T, secrets typedcorev1.SecretInterface, name string)

	// stays are keys, with their content, that are left beside those of the new format.
	stays map[string]string
	// client and resource of the new token; the installation's and Azure DevOps when empty.
	client, resource string
	// refused is a part of why the product leaves the Secret as it is.
	refused string
}

// applied has a field manager apply keys, forced or not.
func applied(manager string, force bool, data map[string]string) func(*testing.T, typedcorev1.SecretInterface, string) {
	return func(t *testing.T, secrets typedcorev1.SecretInterface, name string) {
		t.Helper()
		content := map[string][]byte{} // a manifest with stringData would own other fields
		for key, value := range data {
			content[key] = []byte(value)
		}
		s := applycorev1.Secret(name, "").WithData(content)
		if _, err := secrets.Apply(t.Context(), s, metav1.ApplyOptions{FieldManager: manager, Force: force}); err != nil {
			t.Fatal(err)
		}
	}
}

func freeze(t *testing.T, secrets typedcorev1.SecretInterface, name string) {
	t.Helper()
	if _, err := secrets.Patch(t.Context(), name, types.MergePatchType, []byte(`{"immutable":true}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// changes are all that a target's change can meet, by the name of the Secret.
func changes() map[string]change {
	owned := map[string]string{"ca.crt": "theirs"}
	renamed, elsewhere, other := basic, bearer, bearer
	renamed.fields += ", username: renovate"
	elsewhere.fields += ", scope: " + otherResource + "/.default"
	other.fields += ", identity: other"
	typed := func(kind corev1.SecretType, data map[string]string) *corev1.Secret {
		return &corev1.Secret{Type: kind, StringData: data}
	}
	pat := map[string]string{"username": "git", "password": "a-personal-access-token"}
	all := map[string]change{
		"username": {before: basic, after: renamed},
		"scope":    {before: bearer, after: elsewhere, resource: otherResource},
		"identity": {before: bearer, after: other, client: otherClient},

		// Whoever applied the same value owns the key too, and keeps it; whoever took it away from us owns it alone.
		"shared-key": {before: basic, after: bearer, meanwhile: applied("kustomize-controller", false, map[string]string{"username": "git"}),
			stays: map[string]string{"username": "git"}},
		"taken-key": {before: basic, after: bearer, meanwhile: applied("kustomize-controller", true, map[string]string{"password": "theirs"}),
			stays: map[string]string{"password": "theirs"}},
		// What they own of the new format is taken from them.
		"their-key": {before: bearer, after: basic, meanwhile: applied("kustomize-controller", true, map[string]string{"password": "theirs"})},

		// The user name is the one with which they created it, so they still own it.
		"type-fits": {before: basic, after: mixed, theirs: typed(corev1.SecretTypeBasicAuth, pat), stays: map[string]string{"username": "git"}},

		"type-basic-auth": {before: basic, after: bearer, theirs: typed(corev1.SecretTypeBasicAuth, pat), refused: "kubernetes.io/basic-auth needs the key username or password"},
		"type-registry": {before: docker, after: bearer, theirs: typed(corev1.SecretTypeDockerConfigJson, map[string]string{".dockerconfigjson": "{}"}),
			refused: "kubernetes.io/dockerconfigjson needs the key .dockerconfigjson"},
		"immutable": {before: bearer, after: basic, meanwhile: freeze, refused: "immutable"},
	}
	shapes := map[string]shape{"bearer": bearer, "basic": basic, "template": template, "mixed": mixed}
	for from, before := range shapes {
		for to, after := range shapes {
			if from != to {
				all[from+"-to-"+to] = change{before: before, after: after, meanwhile: applied("owner", false, owned), stays: owned}
			}
		}
	}
	return all
}

func changedConfig(namespace string, all map[string]change, of func(change) shape) string {
	config := "apiVersion: flux-token-refresher/v1alpha1\nkind: Config\nidentities:\n" +
		"  - {name: repos, type: workloadIdentity}\n  - {name: other, type: workloadIdentity, clientID: " + otherClient + "}\ntargets:\n"
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fields := of(all[name]).fields
		if !strings.Contains(fields, "identity: ") {
			fields += ", identity: repos"
		}
		config += fmt.Sprintf("  - {secret: %s/%s, create: true, %s}\n", namespace, name, fields)
	}
	return config + "health: {address: \"127.0.0.1:0\"}\n"
}

// TestChangedTargets: the next leader writes each Secret anew at once, and removes the keys of the old format that nobody else owns.
// A Secret that cannot have the new format stays as it is.
func TestChangedTargets(t *testing.T) {
	t.Parallel()
	all := changes()
	i := install(t, func(s *installation.Spec) {
		s.Edit = func(string) string { return changedConfig(s.Namespace, all, func(c change) shape { return c.before }) }
	})
	i.Entra.Change(func(c *azuretest.Config) {
		pod := &c.Applications[0]
		pod.Resources = []string{azuretest.AzureDevOps, otherResource}
		c.Applications = append(c.Applications, azuretest.Application{TenantID: pod.TenantID, ClientID: otherClient, Federated: pod.Federated})
	})
	secrets := i.Client.CoreV1().Secrets(i.Namespace)
	for name, c := range all {
		if c.theirs != nil {
			c.theirs.Name = name
			if _, err := secrets.Create(t.Context(), c.theirs, metav1.CreateOptions{FieldManager: "flux"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if code, output := once(t, i, "before"); code != 0 || i.Entra.Requests() != 1 {
		t.Fatalf("exit code %d after %d token requests, want 0 and 1:\n%s", code, i.Entra.Requests(), output)
	}
	before := map[string]*corev1.Secret{}
	for name, c := range all {
		if c.meanwhile != nil {
			c.meanwhile(t, secrets, name)
		}
		before[name] = awaitSecret(t, i, name, func(s *corev1.Secret) bool { return s != nil })
	}
	from, err := i.Cluster.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	spec := replicaSpec(t, i, "after", "")
	spec.Config = []byte(changedConfig(i.Namespace, all, func(c change) shape { return c.after }))
	began := time.Now()
	leader := launch(t, i, spec)
	written := 0
	for name, c := range all {
		if c.refused == "" {
			written++
			s := awaitSecret(t, i, name, func(s *corev1.Secret) bool {
				return s != nil && s.Annotations[secret.ConfigHash] != before[name].Annotations[secret.ConfigHash]
			})
			c.check(t, i, s)
			continue
		}
		waits, err := leader.Output.Wait(patient(t), func(r process.Record) bool {
			return r["msg"] == "waiting for the Secret to change" && r["target"] == i.Namespace+"/"+name
		})
		if err != nil {
			t.Fatal(err)
		}
		if why, _ := waits["why"].(string); waits["reason"] != string(refresh.Refused) || !strings.Contains(why, c.refused) {
			t.Errorf("%s waits for %v: %s, want that it says %q", name, waits["reason"], why, c.refused)
		}
		if s := awaitSecret(t, i, name, func(s *corev1.Secret) bool { return s != nil }); s.ResourceVersion != before[name].ResourceVersion {
			t.Errorf("%s was changed", name)
		}
	}
	// All that it had begun is answered, and in the log, when it has ended.
	if err := leader.Stop(patient(t)); err != nil {
		t.Fatal(err)
	}
	to, err := i.Cluster.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	writes := i.Cluster.Audit.Between(from, to, func(r cluster.Request) bool {
		return isProduct(i, r) && r.Resource == "secrets" && r.Verb == "patch"
	})
	if len(writes) != written {
		t.Fatalf("%d writes, want one for each of %d Secrets: %v", len(writes), written, writes)
	}
	for _, w := range writes {
		if w.Code != 200 {
			t.Errorf("not taken: %v", w)
		}
	}
	t.Logf("%d Secrets were written anew %s after the process was started, within %s", written, writes[len(writes)-1].Answered.Sub(began).Round(time.Millisecond),
		writes[len(writes)-1].Answered.Sub(writes[0].Received).Round(time.Millisecond))
	// One for each identity and scope.
	if n := i.Entra.Requests() - 1; n != 3 {
		t.Errorf("%d token requests for the new configuration, want 3", n)
	}
}

// TestNoTokenOfTheNewIdentity: until there is one the Secret stays as it is, in the old format and with a token that works. The Event says what is
// missing, and who asks for a refresh when it is there waits no longer.
func TestNoTokenOfTheNewIdentity(t *testing.T) {
	t.Parallel()
	const name = "moved"
	moved := change{before: bearer, after: basic, client: otherClient}
	moved.after.fields += ", identity: other"
	all := map[string]change{name: moved}
	i := install(t, func(s *installation.Spec) {
		s.Edit = func(string) string { return changedConfig(s.Namespace, all, func(c change) shape { return c.before }) }
	})
	if code, output := once(t, i, "before"); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, output)
	}
	before := awaitSecret(t, i, name, sound(i))

	spec := replicaSpec(t, i, "after", "")
	spec.Config = []byte(changedConfig(i.Namespace, all, func(c change) shape { return c.after }))
	leader := launch(t, i, spec)
	failed, err := leader.Output.Wait(patient(t), func(r process.Record) bool {
		return r["msg"] == "refresh failed; the Secret stays as it is" && r["target"] == i.Namespace+"/"+name
	})
	if err != nil {
		t.Fatal(err)
	}
	missing := "AADSTS700016: identity other: application " + otherClient + " is not in tenant "
	if why, _ := failed["error"].(string); failed["reason"] != string(refresh.ConfigChanged) || !strings.HasPrefix(why, missing) {
		t.Errorf("the log says %v: %s, want that it begins with %q", failed["reason"], why, missing)
	}
	if told := awaitEvent(t, i, name, "RefreshFailed"); !strings.HasPrefix(told.Message, missing) {
		t.Errorf("the Event says %q, want that it begins with %q", told.Message, missing)
	}
	if s := awaitSecret(t, i, name, sound(i)); s.ResourceVersion != before.ResourceVersion {
		t.Errorf("it was changed: %v", s.Annotations)
	}

	i.Entra.Change(func(c *azuretest.Config) {
		pod := c.Applications[0]
		c.Applications = append(c.Applications, azuretest.Application{TenantID: pod.TenantID, ClientID: otherClient, Federated: pod.Federated})
	})
	requestRefresh(t, i, name, "mended")
	moved.check(t, i, awaitSecret(t, i, name, func(s *corev1.Secret) bool {
		return s != nil && s.Annotations[secret.HandledRequest] == refresh.Hash("mended")
	}))
}

// check looks at what was written.
func (c change) check(t *testing.T, i *installation.Installation, s *corev1.Secret) {
	t.Helper()
	if reason := s.Annotations[secret.Reason]; reason != string(refresh.ConfigChanged) {
		t.Errorf("%s was written for %s", s.Name, reason)
	}
	want := slices.Sorted(slices.Values(slices.Concat(c.after.keys, slices.Collect(maps.Keys(c.stays)))))
	if got := slices.Sorted(maps.Keys(s.Data)); !slices.Equal(got, want) {
		t.Errorf("%s has the keys %q, want %q", s.Name, got, want)
	}
	for key, value := range c.stays {
		if string(s.Data[key]) != value {
			t.Errorf("%s: %s of somebody else's is %d bytes of something else", s.Name, key, len(s.Data[key]))
		}
	}
	resource, client := cmp.Or(c.resource, azuretest.AzureDevOps), cmp.Or(c.client, i.ClientID())
	token := string(s.Data[c.after.token])
	issued, err := i.Entra.Validate(token, resource)
	if err != nil || issued.ClientID != client || s.Annotations[secret.TokenHash] != refresh.Hash(token) {
		t.Errorf("%s holds in %s a token of client %q (%v), want one of %s for %s", s.Name, c.after.token, issued.ClientID, err, client, resource)
	}
	if want := "renovate"; strings.Contains(c.after.fields, want) && string(s.Data["username"]) != want {
		t.Errorf("%s: the username is %s", s.Name, s.Data["username"])
	}
}
