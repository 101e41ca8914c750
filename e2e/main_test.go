// Package e2e tests the product from the outside: real processes against a real Kubernetes control plane and an emulated
// Microsoft Entra ID.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/toolchain"
)

// controlPlane is shared by all tests; each has a namespace of its own in it. A test that stops or pauses the API server
// starts a Cluster of its own.
var controlPlane *cluster.Cluster

// buildProduct builds the product into the run's folder, with the race detector, when the first test wants it.
var buildProduct func() (string, error)

// children are what the test binary can be instead of the tests: a process of its own that runs the named
// function, when childEnv names it, and exits with what that gives.
var children = map[string]func() int{}

// childEnv is the environment variable that names a child.
const childEnv = "FTR_E2E_CHILD"

func TestMain(m *testing.M) {
	if name, ok := os.LookupEnv(childEnv); ok {
		child, ok := children[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "%s=%s: no such child\n", childEnv, name)
			os.Exit(2)
		}
		os.Exit(child())
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// run runs the tests between start and end of the control plane.
func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	binaries, err := clusterBinaries(ctx)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "flux-token-refresher-e2e-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	buildProduct = sync.OnceValues(func() (string, error) { return toolchain.Product(ctx, dir, true) })
	controlPlane, err = cluster.Start(ctx, binaries, filepath.Join(dir, "cluster"))
	if err != nil {
		return 0, err
	}
	sharedFlux.dir = filepath.Join(dir, "flux")
	code = m.Run()
	if err := errors.Join(stopFlux(ctx), controlPlane.Stop()); err != nil {
		return code, err
	}
	return code, goleak.Find()
}

func clusterBinaries(ctx context.Context) (cluster.Binaries, error) {
	etcd, err := toolchain.Etcd.Build(ctx, os.Stderr)
	if err != nil {
		return cluster.Binaries{}, err
	}
	api, err := toolchain.KubeAPIServer.Build(ctx, os.Stderr)
	if err != nil {
		return cluster.Binaries{}, err
	}
	return cluster.Binaries{Etcd: etcd, KubeAPIServer: api}, nil
}

// newNamespace creates a namespace in the shared control plane for one test, and gives its name.
func newNamespace(t *testing.T) string {
	t.Helper()
	client := newClient(t)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}
	created, err := client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created.Name
}

// newClient gives the administrator's client of the shared control plane.
func newClient(t *testing.T) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(controlPlane.Config())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// product gives the path of the product's binary, built with the race detector once per run.
func product(t *testing.T) string {
	t.Helper()
	path, err := buildProduct()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
