package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/toolchain"
)

func TestCluster(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := start(ctx, t)
	defer stop(t, c)
	admin := client(t, c.Config())
	account, err := admin.CoreV1().ServiceAccounts("default").Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "replica"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Token(ctx, account.Namespace, account.Name)
	if err != nil {
		t.Fatal(err)
	}
	const user = "system:serviceaccount:default:replica"
	byUser := func(r cluster.Request) bool { return r.User == user }

	t.Run("a ServiceAccount has no rights that RBAC does not give it, and the audit log names it", func(t *testing.T) {
		from, err := c.Audit.Mark(ctx)
		if err != nil {
			t.Fatal(err)
		}
		kubeconfig, err := cluster.Kubeconfig(c.TokenConfig(token))
		if err != nil {
			t.Fatal(err)
		}
		config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client(t, config).CoreV1().Secrets("default").Get(ctx, "some", metav1.GetOptions{})
		if !apierrors.IsForbidden(err) {
			t.Fatalf("got %v, want Forbidden", err)
		}
		to, err := c.Audit.Mark(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got := c.Audit.Between(from, to, byUser)
		if len(got) != 1 || got[0].Verb != "get" || got[0].Resource != "secrets" || got[0].Name != "some" || got[0].Code != http.StatusForbidden {
			t.Errorf("got %v, want one get of the Secret, 403", got)
		}
	})

	t.Run("the audit log has a watch when it begins", func(t *testing.T) {
		from, err := c.Audit.Mark(ctx)
		if err != nil {
			t.Fatal(err)
		}
		watch, err := admin.CoreV1().Secrets("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=some"})
		if err != nil {
			t.Fatal(err)
		}
		defer watch.Stop()
		_, err = c.Audit.Wait(ctx, from, 1, func(r cluster.Request) bool { return r.Verb == "watch" && r.Name == "some" })
		if err != nil {
			t.Error(err)
		}
	})

	t.Run("anybody may read the issuer's keys", func(t *testing.T) {
		anonymous, err := c.HTTPClient()
		if err != nil {
			t.Fatal(err)
		}
		defer anonymous.CloseIdleConnections()
		var discovery struct {
			Issuer  string `json:"issuer"`
			JWKSURI string `json:"jwks_uri"`
		}
		getJSON(ctx, t, anonymous, c.Issuer()+"/.well-known/openid-configuration", &discovery)
		if discovery.Issuer != c.Issuer() {
			t.Errorf("issuer %q, want %q", discovery.Issuer, c.Issuer())
		}
		var keys struct {
			Keys []any `json:"keys"`
		}
		getJSON(ctx, t, anonymous, discovery.JWKSURI, &keys)
		if len(keys.Keys) != 1 {
			t.Errorf("%d keys, want 1", len(keys.Keys))
		}
	})

	t.Run("a stopped API server refuses, and keeps everything over a restart", func(t *testing.T) {
		if err := c.StopAPI(); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.CoreV1().ServiceAccounts("default").Get(ctx, account.Name, metav1.GetOptions{}); err == nil {
			t.Fatal("a stopped API server answered")
		}
		if err := c.StartAPI(ctx); err != nil {
			t.Fatal(err)
		}
		_, err := client(t, c.TokenConfig(token)).CoreV1().Secrets("default").Get(ctx, "some", metav1.GetOptions{})
		if !apierrors.IsForbidden(err) {
			t.Errorf("got %v, want Forbidden: the token of before the restart still names its user", err)
		}
	})

	t.Run("a paused API server does not answer until it is resumed", func(t *testing.T) {
		if err := c.PauseAPI(); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		if _, err := admin.CoreV1().ServiceAccounts("default").Get(short, account.Name, metav1.GetOptions{}); err == nil {
			t.Error("a paused API server answered")
		}
		if err := c.ResumeAPI(); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.CoreV1().ServiceAccounts("default").Get(ctx, account.Name, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// The API server makes its certificate's file and then writes it: who reads in between sees nothing.
func TestStartWhileTheCertificateIsWritten(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	programs := binaries(ctx, t)
	dir := t.TempDir()
	// Half a second is ten attempts, and nothing but an attempt tells that there was one.
	slow := filepath.Join(t.TempDir(), "kube-apiserver")
	script := fmt.Sprintf("#!/bin/sh\nfile='%s/apiserver.crt'\n: >$file; sleep 0.5; rm $file\nexec '%s' \"$@\"\n", dir, programs.KubeAPIServer)
	if err := os.WriteFile(slow, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(ctx, cluster.Binaries{Etcd: programs.Etcd, KubeAPIServer: slow}, dir)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, c)
}

func TestStartSaysWhy(t *testing.T) {
	defer goleak.VerifyNone(t)
	_, err := cluster.Start(t.Context(), cluster.Binaries{Etcd: "false", KubeAPIServer: "/bin/sh"}, t.TempDir())
	// A shell takes none of kube-apiserver's flags; what it says of them stands in its log.
	if err == nil || !strings.Contains(err.Error(), "kube-apiserver did not become ready: it ended") || !strings.Contains(err.Error(), "/bin/sh:") {
		t.Errorf("got %v, want that kube-apiserver ended, and its log", err)
	}
}

func binaries(ctx context.Context, t *testing.T) cluster.Binaries {
	t.Helper()
	etcd, err := toolchain.Etcd.Build(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	api, err := toolchain.KubeAPIServer.Build(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Binaries{Etcd: etcd, KubeAPIServer: api}
}

func start(ctx context.Context, t *testing.T) *cluster.Cluster {
	t.Helper()
	programs := binaries(ctx, t)
	began := time.Now()
	c, err := cluster.Start(ctx, programs, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))
	return c
}

func stop(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
}

func client(t *testing.T, config *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func getJSON(ctx context.Context, t *testing.T, client *http.Client, url string, into any) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", url, response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
}
