package e2e

// What the product does with its rights, by the API server's audit log: all that "config rbac" grants, and nothing else.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

const (
	kept = "kept" // exists, with somebody's credential
	made = "made" // is created

	eventsKey = "0123456789abcdef0123456789abcdef"
)

// newLife installs targets that lead to each right: one that is adopted, one that is created with a token of a client secret; and
// one object of each kind of Flux's that fails to read the first.
func newLife(t *testing.T) *installation.Installation {
	t.Helper()
	const clientSecret = "the client secret of the partner's application"
	i := install(t, func(s *installation.Spec) {
		key := filepath.Join(s.Dir, "hmac")
		if err := os.MkdirAll(s.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(key, []byte(eventsKey), 0o600); err != nil {
			t.Fatal(err)
		}
		s.Config = fmt.Sprintf("refresh: {cooldown: 1ms}\nevents: {address: \"127.0.0.1:0\", senders: [{name: flux, hmacKeyFile: %q, namespaces: [%q]}]}\n", key, s.Namespace)
		s.Edit = func(config string) string {
			return strings.NewReplacer(
				"targets:\n", fmt.Sprintf("  - {name: partner, type: clientSecret, credentialSecret: %s/credential}\ntargets:\n  - {secret: %[1]s/%s, identity: repos}\n", s.Namespace, kept),
				s.Namespace+"/flux-system\n    identity: repos", s.Namespace+"/"+made+"\n    identity: partner",
			).Replace(config)
		}
		for name, data := range map[string]map[string]string{
			"credential": {"clientSecret": clientSecret}, kept: {"bearerToken": "a personal access token"},
		} {
			object := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
			if _, err := newClient(t).CoreV1().Secrets(s.Namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	})
	i.Entra.Change(func(c *azuretest.Config) { c.Applications[0].Secrets = []azuretest.Secret{{Value: clientSecret}} })

	fluxOf(t) // with its own definitions
	installSources(patient(t), t)
	for _, k := range sourceKinds {
		object := k.object("source")
		if _, bySource, _ := unstructured.NestedMap(object.Object, "spec", "sourceRef"); !bySource {
			if err := unstructured.SetNestedField(object.Object, kept, "spec", "secretRef", "name"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := newDynamic(t).Resource(k.gvr()).Namespace(i.Namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		failed := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":"False","reason":"Failed","message":"authentication required","lastTransitionTime":%q}]}}`,
			time.Now().UTC().Format(time.RFC3339))
		if _, err := newDynamic(t).Resource(k.gvr()).Namespace(i.Namespace).
			Patch(t.Context(), "source", types.MergePatchType, failed, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// TestRightsAreUsed takes an installation through all that it can do. What the audit log tells of its account is what "config rbac"
// grants: no verb of a resource, or name of a Secret, more, none less, and none that was denied.
func TestRightsAreUsed(t *testing.T) {
	t.Parallel()
	i := newLife(t)
	first := startReplica(t, i, "refresher-0", "")
	awaitSecret(t, i, kept, sound(i))
	awaitSecret(t, i, made, sound(i))

	// An event about each kind, and a request for the Secret that no object reads.
	receiving, err := first.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == "receiving events" })
	if err != nil {
		t.Fatal(err)
	}
	l := &loop{Installation: i, events: fmt.Sprintf("http://%s/events", receiving["address"])}
	bodies := map[string]string{"a request": requestEvent("1", i.Namespace, made)}
	for _, k := range sourceKinds {
		bodies[k.kind] = fmt.Sprintf(`{"involvedObject":{"apiVersion":"%s/v1","kind":%q,"namespace":%q,"name":"source"},"severity":"error","reason":"Failed","message":"authentication required","timestamp":%q}`,
			k.group, k.kind, i.Namespace, time.Now().UTC().Format(time.RFC3339))
	}
	for what, body := range bodies {
		if status, outcome := l.post(t, []byte(body), map[string]string{"X-Signature": signature(eventsKey, []byte(body))}); status != http.StatusAccepted || outcome == "ignored" {
			t.Errorf("%s: %d %s", what, status, outcome)
		}
	}
	for _, k := range sourceKinds {
		until(patient(t), t, k.kind+" is woken", func(ctx context.Context) (bool, error) {
			object, err := newDynamic(t).Resource(k.gvr()).Namespace(i.Namespace).Get(ctx, "source", metav1.GetOptions{})
			return err == nil && object.GetAnnotations()["reconcile.fluxcd.io/requestedAt"] != "", err
		})
	}
	// Twice, so that the Event about it is told again.
	for _, value := range []string{"one", "two"} {
		requestRefresh(t, i, made, value)
		awaitSecret(t, i, made, func(s *corev1.Secret) bool { return s.Annotations[secret.HandledRequest] == refresh.Hash(value) })
	}
	terminate(t, first)

	// An API server before 1.34 does not begin a watch with what is there; the client then lists.
	from, err := controlPlane.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	spec := replicaSpec(t, i, "refresher-1", "")
	spec.Env["KUBE_FEATURE_WatchListClient"] = "false"
	second := launch(t, i, spec)
	if _, err := controlPlane.Audit.Wait(patient(t), from, 2+len(sourceKinds), func(r cluster.Request) bool { return isProduct(i, r) && r.Verb == "list" }); err != nil {
		t.Fatal(err)
	}
	terminate(t, second)

	c, err := config.Parse("config.yaml", spec.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := grantedRights(rbac.Objects(c, types.NamespacedName{Namespace: i.Namespace, Name: installation.Account}))
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), usedRights(t, i, want)); diff != "" {
		t.Errorf("rights (-granted, +used)\n%s", diff)
	}
}

// right is a verb on a resource; on one object where it is limited to that.
func right(verb, resource, group, name string) string {
	if group != "" {
		resource += "." + group
	}
	return strings.TrimSpace(verb + " " + resource + " " + name)
}

// grantedRights gives the rights of all Roles.
func grantedRights[T any](objects []T) map[string]bool {
	rights := map[string]bool{}
	for _, object := range objects {
		role, ok := any(object).(*rbacv1.Role)
		if !ok {
			continue
		}
		for _, rule := range role.Rules {
			names := rule.ResourceNames
			if len(names) == 0 {
				names = []string{""}
			}
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						for _, name := range names {
							rights[right(verb, resource, group, name)] = true
						}
					}
				}
			}
		}
	}
	return rights
}

// usedRights gives those that the installation's account has used: as they are granted, or, where they are not, with the object's name.
func usedRights(t *testing.T, i *installation.Installation, granted map[string]bool) []string {
	t.Helper()
	mark, err := controlPlane.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, r := range controlPlane.Audit.Between(0, mark, func(r cluster.Request) bool {
		return isProduct(i, r) && r.Resource != "" && r.Resource != "selfsubjectaccessreviews" // which everybody may make, and the test does
	}) {
		if r.Code == http.StatusForbidden || r.Namespace != i.Namespace {
			t.Errorf("denied, or elsewhere: %v", r)
		}
		verbs := []string{r.Verb}
		if r.Verb == "patch" && r.Code == http.StatusCreated { // server-side apply, which needs both
			verbs = append(verbs, "create")
		}
		resource := r.Resource
		if r.Subresource != "" {
			resource += "/" + r.Subresource
		}
		for _, verb := range verbs {
			use := right(verb, resource, r.Group, r.Name)
			if all := right(verb, resource, r.Group, ""); granted[all] {
				use = all
			}
			used[use] = true
		}
	}
	return slices.Sorted(maps.Keys(used))
}

// TestAttacks: somebody who has a pod's token can neither have a controller fill a Secret with the token of another account, nor send
// a source, and with it the Secret's token, elsewhere.
func TestAttacks(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	i := newLife(t)
	access, err := clientcmd.RESTConfigFromKubeConfig(replicaSpec(t, i, "refresher-0", "").Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	pod, err1 := kubernetes.NewForConfig(access)
	sources, err2 := dynamic.NewForConfig(access)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	attacks := map[string]func(context.Context, ...string) error{
		"creates Secrets of the type Opaque only": func(ctx context.Context, dryRun ...string) error {
			_, err := pod.CoreV1().Secrets(i.Namespace).Patch(ctx, made, types.ApplyPatchType,
				secretOf(made, string(corev1.SecretTypeServiceAccountToken), "1"), metav1.PatchOptions{FieldManager: "attack", DryRun: dryRun})
			return err
		},
		"changes nothing of a source but the annotation": func(ctx context.Context, dryRun ...string) error {
			_, err := sources.Resource(gitRepository.gvr()).Namespace(i.Namespace).Patch(ctx, "source", types.MergePatchType,
				[]byte(`{"spec":{"url":"https://evil.example/repo"}}`), metav1.PatchOptions{DryRun: dryRun})
			return err
		},
	}
	for message, attack := range attacks {
		// A policy is in force some time after it was made.
		until(ctx, t, "the policy is in force", func(ctx context.Context) (bool, error) { return attack(ctx, metav1.DryRunAll) != nil, nil })
		if err := attack(ctx); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), message) {
			t.Errorf("got %v, want Forbidden: %s", err, message)
		}
	}
	if _, err := i.Client.CoreV1().Secrets(i.Namespace).Get(ctx, made, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Secret is there: %v", err)
	}
	source, err := newDynamic(t).Resource(gitRepository.gvr()).Namespace(i.Namespace).Get(ctx, "source", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if url, _, _ := unstructured.NestedString(source.Object, "spec", "url"); url != gitRepository.spec["url"] {
		t.Errorf("the source leads to %s", url)
	}
	if _, err := sources.Resource(gitRepository.gvr()).Namespace(i.Namespace).Patch(ctx, "source", types.MergePatchType, wake, metav1.PatchOptions{}); err != nil {
		t.Errorf("waking it: %v", err)
	}
}
