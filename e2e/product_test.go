package e2e

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"

	"flux-token-refresher/e2e/internal/await"
	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// patience bounds each wait of a test that expects something to happen; it is long because machines are slow, and costs nothing.
const patience = 60 * time.Second

// install installs the product into a namespace of the test's own. None of its requests may be denied until the test ends: it has the rights
// of the base, or of "config rbac", and no others.
func install(t *testing.T, change func(*installation.Spec)) *installation.Installation {
	t.Helper()
	spec := installation.Spec{
		Cluster: controlPlane, Binary: product(t), Manifests: "../deploy/kustomize", Dir: t.TempDir(), Namespace: newNamespace(t),
	}
	if change != nil {
		change(&spec)
	}
	i, err := installation.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	t.Cleanup(func() { expectNothingDenied(t, i) })
	return i
}

// deniedOnPurpose has the namespaces of installations whose requests a test has denied.
var deniedOnPurpose sync.Map

func expectNothingDenied(t *testing.T, i *installation.Installation) {
	t.Helper()
	if _, ok := deniedOnPurpose.Load(i.Namespace); ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	mark, err := i.Cluster.Audit.Mark(ctx)
	if err != nil {
		t.Error(err)
		return
	}
	for _, r := range i.Cluster.Audit.Between(0, mark, func(r cluster.Request) bool {
		return isProduct(i, r) && strings.HasPrefix(r.UserAgent, "flux-token-refresher/") && r.Code == http.StatusForbidden
	}) {
		t.Errorf("denied, so the rights do not suffice: %v", r)
	}
}

// startReplica starts a replica, waits until it is ready, and stops it when the test ends. What it wrote is shown when the test failed.
func startReplica(t *testing.T, i *installation.Installation, name, api string) *replica.Replica {
	t.Helper()
	r := launch(t, i, replicaSpec(t, i, name, api))
	if err := r.WaitReady(patient(t)); err != nil {
		t.Fatal(err)
	}
	return r
}

func replicaSpec(t *testing.T, i *installation.Installation, name, api string) replica.Spec {
	t.Helper()
	spec, err := i.ReplicaSpec(t.Context(), name, api)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// launch starts what spec says, and stops it when the test ends.
func launch(t *testing.T, i *installation.Installation, spec replica.Spec) *replica.Replica {
	t.Helper()
	r, err := replica.Start(spec, filepath.Join(i.Dir, spec.Name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := r.Stop(ctx); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("replica %s wrote:\n%s", spec.Name, r.Output)
		}
	})
	return r
}

// patient is the test's context, for as long as patience lasts.
func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// awaitSecret waits until a Secret is as match wants it.
func awaitSecret(t *testing.T, i *installation.Installation, name string, match func(*corev1.Secret) bool) *corev1.Secret {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := i.Secret(ctx, name, match)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// awaitEvent gives the Event of a reason about a Secret, as soon as there is one.
func awaitEvent(t *testing.T, i *installation.Installation, name, reason string) corev1.Event {
	t.Helper()
	told, err := await.Object(patient(t), &corev1.Event{}, "Event "+reason, func(e *corev1.Event) bool { return e != nil },
		cache.NewListWatchFromClient(i.Client.CoreV1().RESTClient(), "events", i.Namespace, fields.Set{
			"involvedObject.kind": "Secret", "involvedObject.name": name, "reason": reason,
		}.AsSelector()))
	if err != nil {
		t.Fatal(err)
	}
	return *told
}

func awaitLeader(t *testing.T, i *installation.Installation, match func(string) bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	leader, err := i.Leader(ctx, match)
	if err != nil {
		t.Fatal(err)
	}
	return leader
}

// sound tells whether a Secret holds a token of this Entra's that is good, with all that we write beside it.
func sound(i *installation.Installation) func(*corev1.Secret) bool {
	return func(s *corev1.Secret) bool {
		if s == nil {
			return false
		}
		token := string(s.Data["bearerToken"])
		_, err := i.Entra.Validate(token, azuretest.AzureDevOps)
		return err == nil && s.Annotations[secret.TokenHash] == refresh.Hash(token)
	}
}

// isProduct tells whether a request is of the installation's ServiceAccount.
func isProduct(i *installation.Installation, r cluster.Request) bool {
	return r.User == "system:serviceaccount:"+i.Namespace+":"+installation.Account
}

// TestMainJob: three replicas with the rights of deploy/kustomize/base and no more keep a token fresh, whatever is done to its Secret and
// to their leader.
func TestMainJob(t *testing.T) {
	t.Parallel()
	i := install(t, func(s *installation.Spec) {
		s.Entra = azuretest.Config{MinLifetime: 12 * time.Second, MaxLifetime: 14 * time.Second}
	})
	replicas := map[string]*replica.Replica{}
	for _, name := range []string{"refresher-0", "refresher-1", "refresher-2"} {
		replicas[name] = startReplica(t, i, name, "")
	}
	const name = "flux-system"
	secrets := i.Client.CoreV1().Secrets(i.Namespace)
	good := sound(i)
	first := awaitSecret(t, i, name, good)
	if first.Labels[secret.ManagedByLabel] != secret.Actor || first.Type != corev1.SecretTypeOpaque {
		t.Errorf("a Secret that we created has labels %v and type %s", first.Labels, first.Type)
	}

	other := func(than *corev1.Secret) func(*corev1.Secret) bool {
		return func(s *corev1.Secret) bool {
			return good(s) && string(s.Data["bearerToken"]) != string(than.Data["bearerToken"])
		}
	}
	second := awaitSecret(t, i, name, other(first))
	if reason := second.Annotations[secret.Reason]; reason != string(refresh.RefreshDue) {
		t.Errorf("the second token came for %s, want the timer's", reason)
	}

	// What is done to the Secret is put right with the token that is held.
	minted := i.Entra.Requests()
	if err := secrets.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	third := awaitSecret(t, i, name, func(s *corev1.Secret) bool { return good(s) && s.UID != second.UID })
	if reason := third.Annotations[secret.Reason]; reason != string(refresh.SecretMissing) && i.Entra.Requests() == minted {
		t.Errorf("created again for %s", reason)
	}
	if _, err := secrets.Patch(t.Context(), name, "application/merge-patch+json", []byte(`{"stringData":{"bearerToken":"theirs"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitSecret(t, i, name, func(s *corev1.Secret) bool { return good(s) && s.ResourceVersion != third.ResourceVersion })

	// A request, as a person makes it.
	before := awaitSecret(t, i, name, good)
	if _, err := secrets.Patch(t.Context(), name, "application/merge-patch+json", []byte(`{"metadata":{"annotations":{"`+secret.Request+`":"now"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	answered := awaitSecret(t, i, name, func(s *corev1.Secret) bool {
		return good(s) && s.Annotations[secret.HandledRequest] == refresh.Hash("now")
	})
	if answered.Annotations[secret.HandledOutcome] != string(refresh.Refreshed) || string(answered.Data["bearerToken"]) == string(before.Data["bearerToken"]) {
		t.Errorf("the request ended with %v", answered.Annotations)
	}

	// Leaders come and go.
	led := func(holder string) bool { return holder != "" }
	leader := awaitLeader(t, i, led)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := replicas[leader].Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if code, err := replicas[leader].Wait(ctx); err != nil || code != 0 {
		t.Errorf("after SIGTERM the leader ended with %d, %v", code, err)
	}
	next := awaitLeader(t, i, func(holder string) bool { return led(holder) && holder != leader })
	held := awaitSecret(t, i, name, good)
	awaitSecret(t, i, name, other(held)) // the timer goes on
	if err := replicas[next].Kill(); err != nil {
		t.Fatal(err)
	}
	last := awaitLeader(t, i, func(holder string) bool { return led(holder) && holder != next })
	held = awaitSecret(t, i, name, func(s *corev1.Secret) bool { return s != nil })
	awaitSecret(t, i, name, other(held))
	if last == leader || last == next {
		t.Errorf("%s leads, which has ended", last)
	}
}
