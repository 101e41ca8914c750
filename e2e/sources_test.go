package e2e

// Flux, and namespaces with sources on an Azure DevOps.

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/refresh/azure/azuretest"
)

// sharedFlux runs in the shared control plane from the first test on that wants it.
var sharedFlux struct {
	dir  string
	once sync.Once
	*flux.Flux
	err error
}

// fluxOf gives the shared Flux.
func fluxOf(t *testing.T) *flux.Flux {
	t.Helper()
	sharedFlux.once.Do(func() {
		sharedFlux.Flux, sharedFlux.err = flux.Start(context.WithoutCancel(t.Context()), flux.Spec{
			Cluster: controlPlane, Dir: sharedFlux.dir, Progress: os.Stderr,
			// An event that came before notification-controller had seen the Alert comes again with source-controller's next try.
			RateLimit: 500 * time.Millisecond,
		})
	})
	if sharedFlux.err != nil {
		t.Fatal(sharedFlux.err)
	}
	return sharedFlux.Flux
}

func stopFlux(ctx context.Context) error {
	if sharedFlux.Flux == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return sharedFlux.Stop(ctx)
}

// newFlux starts a control plane and a Flux of the test's own, with Flux's defaults.
func newFlux(t *testing.T) (*cluster.Cluster, *flux.Flux) {
	t.Helper()
	binaries, err := clusterBinaries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(t.Context(), binaries, filepath.Join(t.TempDir(), "cluster"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	f, err := flux.Start(patient(t), flux.Spec{Cluster: c, Dir: filepath.Join(t.TempDir(), "flux"), Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := f.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return c, f
}

// newEntra starts an Entra that knows sourceClient, for tests that need no more of it than tokens.
func newEntra(t *testing.T) *azuretest.Entra {
	t.Helper()
	entra, err := azuretest.Start(azuretest.Config{Applications: []azuretest.Application{{TenantID: "tenant", ClientID: sourceClient}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(entra.Close)
	return entra
}

const sourceClient = "3f1c2d90-0000-4000-8000-000000000002"

// sources is a namespace with GitRepositories on an Azure DevOps, all of which read the Secret named credential.
type sources struct {
	*flux.Flux
	cluster   *cluster.Cluster
	client    kubernetes.Interface
	namespace string
	entra     *azuretest.Entra
	devops    *devops.Server
	// key signs what notification-controller sends.
	key string
}

const credential = "credential"

// newSources starts an Azure DevOps that takes entra's tokens. When the test failed, what Flux wrote about the namespace is shown.
func newSources(t *testing.T, c *cluster.Cluster, f *flux.Flux, namespace string, entra *azuretest.Entra) *sources {
	t.Helper()
	key := make([]byte, 32) // as "openssl rand -hex 32" makes it
	_, _ = rand.Read(key)
	s := &sources{Flux: f, cluster: c, namespace: namespace, entra: entra, key: hex.EncodeToString(key)}
	var err error
	if s.client, err = kubernetes.NewForConfig(c.Config()); err != nil {
		t.Fatal(err)
	}
	if s.devops, err = devops.Start(devops.Config{Entra: entra}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.devops.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		// Or source-controller goes on trying.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := s.GitRepositories(s.namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("source-controller wrote:\n%s\nnotification-controller wrote:\n%s", f.Source.Log(namespace), f.Notification.Log(namespace))
		}
	})
	return s
}

func (s *sources) repository(t *testing.T, name string) *devops.Repository {
	t.Helper()
	repository, err := s.devops.Create(t.Context(), "org", "project", name)
	if err != nil {
		t.Fatal(err)
	}
	return repository
}

// write puts a new token into the Secret, beside the CA, and gives it.
func (s *sources) write(t *testing.T) string {
	t.Helper()
	token, err := s.entra.Issue(sourceClient, azuretest.AzureDevOps)
	if err != nil {
		t.Fatal(err)
	}
	secret := applycorev1.Secret(credential, s.namespace).
		WithStringData(map[string]string{"bearerToken": token, "ca.crt": string(s.devops.CA())})
	if _, err := s.client.CoreV1().Secrets(s.namespace).Apply(t.Context(), secret, metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
		t.Fatal(err)
	}
	return token
}

// read creates a GitRepository.
func (s *sources) read(t *testing.T, name string, repository *devops.Repository) {
	t.Helper()
	source := flux.GitRepository(name, repository.URL, credential)
	if _, err := s.GitRepositories(s.namespace).Create(t.Context(), source, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// ask asks for a reconciliation at once, and gives what flux.Handled will tell after it.
func (s *sources) ask(t *testing.T, name string) string {
	t.Helper()
	with := rand.Text()
	if err := s.Request(t.Context(), s.namespace, name, with); err != nil {
		t.Fatal(err)
	}
	return with
}

// await waits until a GitRepository is as match wants it.
func (s *sources) await(t *testing.T, name string, match func(*unstructured.Unstructured) bool) *unstructured.Unstructured {
	t.Helper()
	object, err := s.AwaitGitRepository(patient(t), s.namespace, name, match)
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func isReady(object *unstructured.Unstructured) bool {
	return flux.Ready(object).Status == metav1.ConditionTrue
}

func isFailed(object *unstructured.Unstructured) bool {
	return flux.Ready(object).Status == metav1.ConditionFalse
}

// webhook stands in the place of the product: it gets what deploy/flux sends.
type webhook struct{ deliveries chan delivery }

// delivery is a request that the webhook got.
type delivery struct {
	header http.Header
	body   []byte
	signed bool
	at     time.Time
}

func (s *sources) webhook(t *testing.T) *webhook {
	t.Helper()
	w := &webhook{deliveries: make(chan delivery, 100)}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		signed := r.Header.Get("X-Signature") == signature(s.key, body)
		w.deliveries <- delivery{r.Header, body, signed, time.Now()}
		rw.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(server.Close)
	s.notify(t, server.URL)
	return w
}

// signature is the X-Signature of a body.
func signature(key string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(key))
	_, _ = mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// notify has the failures of all sources sent to a URL.
func (s *sources) notify(t *testing.T, url string) {
	t.Helper()
	s.provide(t, map[string]any{"address": url})
}

// provide installs what deploy/flux has, but for these fields of the Provider's spec.
func (s *sources) provide(t *testing.T, spec map[string]any) {
	t.Helper()
	key := applycorev1.Secret("flux-token-refresher-events", s.namespace).WithStringData(map[string]string{"token": s.key})
	if _, err := s.client.CoreV1().Secrets(s.namespace).Apply(t.Context(), key, metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
		t.Fatal(err)
	}
	objects, err := manifests.Render(deployFlux, s.namespace)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		if object.GetKind() != "Provider" {
			continue
		}
		for field, value := range spec {
			if err := unstructured.SetNestedField(object.Object, value, "spec", field); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := manifests.Apply(t.Context(), s.cluster.Config(), s.namespace, objects); err != nil {
		t.Fatal(err)
	}
}

// next gives the next delivery.
func (w *webhook) next(t *testing.T) delivery {
	t.Helper()
	select {
	case got := <-w.deliveries:
		return got
	case <-patient(t).Done():
		t.Fatal("no event came")
		return delivery{}
	}
}
