// Package installation installs the product in a test cluster as deploy/kustomize has it, beside an emulated Entra that
// trusts its ServiceAccount, and runs replicas of it as processes with that account's tokens. Tests and the demo share it.
package installation

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"flux-token-refresher/e2e/internal/await"
	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// Account is the ServiceAccount, Deployment and Lease of deploy/kustomize/base.
const Account = "flux-token-refresher"

const (
	tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	client = "5e7d3ec8-7c4c-4f4e-9a3e-0f1d2c3b4a59"
)

// Spec says what to install.
type Spec struct {
	Cluster *cluster.Cluster
	// Binary is the path of the product; Manifests of deploy/kustomize; Dir takes the replicas' files.
	Binary, Manifests, Dir string
	// Overlay is the folder in Manifests that is installed; base when empty.
	Overlay string
	// Volumes are what a pod mounts, by the path that the overlay's configuration file names: folders here.
	Volumes map[string]string
	// Namespace takes the place of flux-system; it is created where it does not exist.
	Namespace string
	// Targets replace the targets of the base: names of Secrets in Namespace, created where they are missing. The rights are then what
	// "config rbac" makes of them; those of the base otherwise.
	Targets []string
	// Config is added to the configuration file: sections that the base leaves out.
	Config string
	// Peers starts what takes this Entra's tokens, and gives what it adds to the configuration file.
	Peers func(*azuretest.Entra) (config string)
	// Edit changes the configuration file after all that; the rights are then what "config rbac" makes of it.
	Edit func(config string) string
	// Entra is how the emulator behaves, beside the application that it gets.
	Entra azuretest.Config
	// Env is added to each replica's environment.
	Env map[string]string
}

// Installation is the product in a namespace.
type Installation struct {
	Spec
	// Entra knows the installation's identity.
	Entra *azuretest.Entra
	// Client is the administrator's.
	Client kubernetes.Interface

	config string
	caFile string
}

// Start installs what spec says and starts its Entra; no replica runs yet. The caller must Close it.
func Start(ctx context.Context, spec Spec) (*Installation, error) {
	i := &Installation{Spec: spec, caFile: filepath.Join(spec.Dir, "entra-ca.pem")}
	var err error
	if i.Client, err = kubernetes.NewForConfig(spec.Cluster.Config()); err != nil {
		return nil, err
	}
	namespace := applycorev1.Namespace(spec.Namespace)
	if _, err := i.Client.CoreV1().Namespaces().Apply(ctx, namespace, metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
		return nil, fmt.Errorf("namespace %s: %w", spec.Namespace, err)
	}
	if err := i.federate(ctx); err != nil {
		return nil, fmt.Errorf("start Entra: %w", err)
	}
	if err := i.install(ctx); err != nil {
		i.Close()
		return nil, fmt.Errorf("install into %s: %w", spec.Namespace, err)
	}
	return i, nil
}

// Close ends Entra.
func (i *Installation) Close() { i.Entra.Close() }

// install applies the overlay, and keeps its configuration file.
func (i *Installation) install(ctx context.Context) error {
	objects, err := manifests.Render(filepath.Join(i.Manifests, cmp.Or(i.Overlay, "base")), i.Namespace)
	if err != nil {
		return err
	}
	for _, object := range objects {
		if object.GetKind() == "ConfigMap" {
			i.config, _, err = unstructured.NestedString(object.Object, "data", "config.yaml")
			if err != nil {
				return err
			}
		}
	}
	i.config = strings.ReplaceAll(i.config, "flux-system/flux-system", i.Namespace+"/flux-system")
	// Processes share the addresses and the files of the machine, as pods do not.
	i.config = strings.Replace(i.config, "\nevents:\n", "\nevents:\n  address: \"127.0.0.1:0\"\n", 1)
	for path, folder := range i.Volumes {
		i.config = strings.ReplaceAll(i.config, path, folder)
	}
	if i.Targets != nil {
		var targets strings.Builder
		for _, name := range i.Targets {
			fmt.Fprintf(&targets, "  - {secret: %s/%s, identity: repos, create: true}\n", i.Namespace, name)
		}
		before, _, _ := strings.Cut(i.config, "targets:\n")
		i.config = before + "targets:\n" + targets.String()
	}
	i.config += i.Config + "\nhealth: {address: \"127.0.0.1:0\"}\n"
	if i.Peers != nil {
		i.config += i.Peers(i.Entra)
	}
	if i.Edit != nil {
		i.config = i.Edit(i.config)
	}
	if i.Targets != nil || i.Edit != nil {
		if objects, err = i.rights(objects); err != nil {
			return err
		}
	}
	if err := manifests.Apply(ctx, i.Cluster.Config(), i.Namespace, objects); err != nil {
		return err
	}
	return i.awaitRights(ctx)
}

// awaitRights returns when those of the account are in force.
func (i *Installation) awaitRights(ctx context.Context) error {
	token, err := i.Cluster.Token(ctx, i.Namespace, Account)
	if err != nil {
		return err
	}
	return await.Allowed(ctx, i.Cluster.TokenConfig(token), authorizationv1.ResourceAttributes{
		Namespace: i.Namespace, Group: "coordination.k8s.io", Resource: "leases", Verb: "create",
	})
}

// rights takes the place of those in objects.
func (i *Installation) rights(objects []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	c, err := config.Parse("config.yaml", []byte(i.config), nil)
	if err != nil {
		return nil, err
	}
	needed := rbac.Objects(c, types.NamespacedName{Namespace: i.Namespace, Name: Account})
	kinds := map[string]bool{}
	var all []*unstructured.Unstructured
	for _, object := range needed {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		if err != nil {
			return nil, err
		}
		u := &unstructured.Unstructured{Object: content}
		kinds[u.GetKind()] = true
		all = append(all, u)
	}
	for _, object := range objects {
		if !kinds[object.GetKind()] {
			all = append(all, object)
		}
	}
	return all, nil
}

// federate starts an Entra that trusts the ServiceAccount, by the keys that the cluster publishes.
func (i *Installation) federate(ctx context.Context) error {
	federated, err := Federate(ctx, i.Cluster, i.Namespace)
	if err != nil {
		return err
	}
	entra := i.Spec.Entra
	entra.Applications = []azuretest.Application{{TenantID: tenant, ClientID: client, Federated: []azuretest.FederatedCredential{federated}}}
	if i.Entra, err = azuretest.Start(entra); err != nil {
		return err
	}
	if err := os.MkdirAll(i.Dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(i.caFile, i.Entra.CA(), 0o600)
}

// Federate gives the federated credential that trusts the ServiceAccount of an installation in a namespace, by the keys that the
// cluster publishes.
func Federate(ctx context.Context, in *cluster.Cluster, namespace string) (azuretest.FederatedCredential, error) {
	keys, err := issuerKeys(ctx, in)
	if err != nil {
		return azuretest.FederatedCredential{}, err
	}
	federated := azuretest.FederatedCredential{
		Issuer: in.Issuer(), Subject: "system:serviceaccount:" + namespace + ":" + Account, Audience: azuretest.TokenExchange,
	}
	for _, key := range keys.Keys {
		federated.Keys = append(federated.Keys, key.Key)
	}
	return federated, nil
}

// issuerKeys reads the issuer's jwks_uri, as Entra does.
func issuerKeys(ctx context.Context, in *cluster.Cluster) (*jose.JSONWebKeySet, error) {
	client, err := in.HTTPClient()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	var discovery struct {
		URI string `json:"jwks_uri"`
	}
	if err := get(ctx, client, in.Issuer()+"/.well-known/openid-configuration", &discovery); err != nil {
		return nil, err
	}
	var keys jose.JSONWebKeySet
	return &keys, get(ctx, client, discovery.URI, &keys)
}

func get(ctx context.Context, client *http.Client, url string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return json.NewDecoder(response.Body).Decode(into)
}

// Replica starts one of the Deployment's pods as a process. api is the host:port through which it reaches the API server; "" is the API
// server's own.
func (i *Installation) Replica(ctx context.Context, name, api string) (*replica.Replica, error) {
	spec, err := i.ReplicaSpec(ctx, name, api)
	if err != nil {
		return nil, err
	}
	return replica.Start(spec, filepath.Join(i.Dir, name))
}

// ReplicaSpec is what Replica starts, for a test that wants something else of it.
func (i *Installation) ReplicaSpec(ctx context.Context, name, api string) (replica.Spec, error) {
	token, err := i.Cluster.Token(ctx, i.Namespace, Account)
	if err != nil {
		return replica.Spec{}, err
	}
	assertion, err := i.Cluster.Token(ctx, i.Namespace, Account, azuretest.TokenExchange)
	if err != nil {
		return replica.Spec{}, err
	}
	access := i.Cluster.TokenConfig(token)
	if api != "" {
		access.Host = "https://" + api
	}
	kubeconfig, err := cluster.Kubeconfig(access)
	if err != nil {
		return replica.Spec{}, err
	}
	// As the workload identity webhook gives them to a pod, and the CA as an image's trust store would.
	env := map[string]string{
		"AZURE_TENANT_ID": tenant, "AZURE_CLIENT_ID": client, "AZURE_AUTHORITY_HOST": i.Entra.URL(),
		"SSL_CERT_FILE": i.caFile,
	}
	maps.Copy(env, i.Env)
	return replica.Spec{
		Binary: i.Binary, Name: name, Namespace: i.Namespace, Config: []byte(i.config),
		Kubeconfig: kubeconfig, Assertion: assertion, Env: env,
	}, nil
}

// ClientID is the installation's identity in Entra.
func (i *Installation) ClientID() string { return client }

// Secret waits until a Secret is as match wants it; nil stands for a Secret that does not exist.
func (i *Installation) Secret(ctx context.Context, name string, match func(*corev1.Secret) bool) (*corev1.Secret, error) {
	return await.Object(ctx, &corev1.Secret{}, "Secret "+name, match,
		cache.NewListWatchFromClient(i.Client.CoreV1().RESTClient(), "secrets", i.Namespace, await.Named(name)))
}

// Leader waits until the Lease's holder is as match wants it: the name of a replica, "" for nobody.
func (i *Installation) Leader(ctx context.Context, match func(holder string) bool) (string, error) {
	lease, err := await.Object(ctx, &coordinationv1.Lease{}, "Lease", func(lease *coordinationv1.Lease) bool { return match(holder(lease)) },
		cache.NewListWatchFromClient(i.Client.CoordinationV1().RESTClient(), "leases", i.Namespace, await.Named(Account)))
	return holder(lease), err
}

// holder is the replica's name in holderIdentity, which has something random behind it.
func holder(lease *coordinationv1.Lease) string {
	if lease == nil || lease.Spec.HolderIdentity == nil {
		return ""
	}
	name, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	return name
}

// Written tells whether a Secret was written by the product later than another state of it, with another token or not.
func Written(after time.Time, reasons ...string) func(*corev1.Secret) bool {
	return func(s *corev1.Secret) bool {
		if s == nil {
			return false
		}
		at, err := time.Parse(time.RFC3339, s.Annotations[secret.RefreshedAt])
		if err != nil || at.Before(after.Truncate(time.Second)) {
			return false
		}
		return len(reasons) == 0 || slices.Contains(reasons, s.Annotations[secret.Reason])
	}
}
