// Package cluster runs a Kubernetes control plane for tests: etcd and kube-apiserver, real ones, on loopback, ready in about
// three seconds. RBAC, admission policies, ServiceAccount tokens and their OIDC discovery are those of any cluster.
// There is no kubelet and no controller: nothing runs a Pod, and nothing finishes deleting a namespace. (Package node adds them.)
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"flux-token-refresher/e2e/internal/loopback"
	"flux-token-refresher/e2e/internal/process"
)

// Binaries are the paths of the programs that make a control plane.
type Binaries struct{ Etcd, KubeAPIServer string }

// Cluster is a running control plane.
type Cluster struct {
	// Audit is who asked the API server for what, from the first request on.
	Audit *Audit

	dir       string
	binaries  Binaries
	address   string   // of kube-apiserver, host:port
	flags     []string // of kube-apiserver, beside those that every Cluster has
	etcdURL   string
	admin     *rest.Config
	etcd, api *process.Process
}

// startTimeout is generous: three seconds are usual, but both cores may be busy with a build.
const startTimeout = 2 * time.Minute

// Start starts a control plane that keeps its files in dir, which it creates. The caller must Stop it.
func Start(ctx context.Context, binaries Binaries, dir string) (*Cluster, error) {
	address, err := loopback.Address()
	if err != nil {
		return nil, err
	}
	// An endpoint of the Service kubernetes on loopback is invalid.
	return start(ctx, binaries, dir, address, "--endpoint-reconciler-type=none")
}

// StartForNodes is Start at an address IP:PORT that kubelets and their Pods reach, and that reaches them.
func StartForNodes(ctx context.Context, binaries Binaries, dir, address string) (*Cluster, error) {
	// Nobody resolves a node's name.
	return start(ctx, binaries, dir, address, "--kubelet-preferred-address-types=InternalIP")
}

func start(ctx context.Context, binaries Binaries, dir, address string, flags ...string) (*Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	adminToken, err := writeFiles(dir)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		dir: dir, binaries: binaries, address: address, flags: flags,
		admin: &rest.Config{Host: "https://" + address, BearerToken: adminToken, QPS: -1},
	}
	c.Audit = newAudit(c.admin)
	if err := c.startEtcd(); err != nil {
		return nil, err
	}
	if err := c.StartAPI(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	if c.admin.CAData, err = os.ReadFile(c.CAFile()); err != nil { // a restart keeps it
		return nil, errors.Join(err, c.Stop())
	}
	if err := c.publishIssuer(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// Stop kills both programs, whose data nobody needs any more, and returns when they have ended.
func (c *Cluster) Stop() error {
	var errs []error
	for _, p := range []*process.Process{c.api, c.etcd} {
		if p != nil {
			errs = append(errs, p.Kill())
		}
	}
	return errors.Join(errs...)
}

// Config gives the administrator's access (group system:masters), without a limit on requests per second.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.admin) }

// TokenConfig gives access with a bearer token, without a limit on requests per second.
func (c *Cluster) TokenConfig(token string) *rest.Config {
	config := c.Config()
	config.BearerToken = token
	return config
}

// Address is the host:port of the API server, on loopback unless it was started for nodes. Its certificate holds for each port of
// that host, so a proxy may stand in front of it.
func (c *Cluster) Address() string { return c.address }

// CAFile is the path of the certificate that vouches for the API server.
func (c *Cluster) CAFile() string { return filepath.Join(c.dir, caFile) }

// SigningKeyFile is the path of the key that signs ServiceAccount tokens.
func (c *Cluster) SigningKeyFile() string { return filepath.Join(c.dir, signingKeyFile) }

// Issuer is the issuer of ServiceAccount tokens. Its OIDC discovery and keys can be read without credentials, over TLS
// with the CA of Config, as a cloud's public issuer allows it.
func (c *Cluster) Issuer() string { return "https://" + c.address }

// HTTPClient gives an HTTP client that trusts the API server and carries no credentials.
func (c *Cluster) HTTPClient() (*http.Client, error) {
	return rest.HTTPClientFor(rest.AnonymousClientConfig(c.admin))
}

// Token asks for a token of a ServiceAccount, valid for an hour; without audiences it is for the API server.
func (c *Cluster) Token(ctx context.Context, namespace, serviceAccount string, audiences ...string) (string, error) {
	client, err := kubernetes.NewForConfig(c.admin)
	if err != nil {
		return "", err
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of ServiceAccount %s/%s: %w", namespace, serviceAccount, err)
	}
	return answer.Status.Token, nil
}

// Kubeconfig writes the access as a kubeconfig file's content.
func Kubeconfig(config *rest.Config) ([]byte, error) {
	const name = "e2e"
	return clientcmd.Write(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server: config.Host, CertificateAuthorityData: config.CAData,
		}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: config.BearerToken}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	})
}

// PauseAPI stands the API server's process still: connections stay, nothing answers. A test that does
// this, or stops it, needs a Cluster of its own.
func (c *Cluster) PauseAPI() error { return c.api.Pause() }

// ResumeAPI ends a PauseAPI.
func (c *Cluster) ResumeAPI() error { return c.api.Resume() }

// StopAPI kills the API server: connections are refused until StartAPI.
func (c *Cluster) StopAPI() error { return c.api.Kill() }

// StartAPI starts the API server, at the same address and with the same keys each time, and returns when it is ready.
func (c *Cluster) StartAPI(ctx context.Context) error {
	host, port, err := net.SplitHostPort(c.address)
	if err != nil {
		return err
	}
	file := func(name string) string { return filepath.Join(c.dir, name) }
	command := exec.Command(c.binaries.KubeAPIServer, append(c.flags,
		"--etcd-servers="+c.etcdURL,
		"--bind-address="+host, "--advertise-address="+host, "--secure-port="+port,
		"--cert-dir="+c.dir, // it makes its own certificate there
		"--service-cluster-ip-range=10.0.0.0/24",
		"--authorization-mode=RBAC",
		"--token-auth-file="+file(tokensFile),
		"--service-account-issuer="+c.Issuer(),
		"--service-account-key-file="+file(signingKeyFile),
		"--service-account-signing-key-file="+file(signingKeyFile),
		"--audit-policy-file="+file(auditPolicyFile),
		"--audit-log-path=-", // stdout
		// Entries are written before an answer ends, so none is missing once a client has read its answer.
		"--audit-log-mode=blocking",
		"--profiling=false",
	)...)
	api, err := c.start(command, "kube-apiserver", &auditWriter{audit: c.Audit})
	if err != nil {
		return err
	}
	c.api = api
	ready := func(ctx context.Context) error {
		config := c.Config()
		config.CAFile = c.CAFile() // read by each attempt: the API server may not have written all of it yet
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}
	return c.waitReady(ctx, api, "kube-apiserver", ready)
}

func (c *Cluster) startEtcd() error {
	client, err := loopback.Address()
	if err != nil {
		return err
	}
	peer, err := loopback.Address()
	if err != nil {
		return err
	}
	c.etcdURL = "http://" + client
	command := exec.Command(c.binaries.Etcd,
		"--name=e2e", "--data-dir="+filepath.Join(c.dir, "etcd"),
		"--listen-client-urls="+c.etcdURL, "--advertise-client-urls="+c.etcdURL,
		"--listen-peer-urls=http://"+peer, "--initial-advertise-peer-urls=http://"+peer,
		"--initial-cluster=e2e=http://"+peer,
		"--unsafe-no-fsync", // the data need not survive the machine
	)
	c.etcd, err = c.start(command, "etcd", nil)
	return err
}

// start runs the command with its stderr in NAME.log, and its stdout in out unless that is nil.
func (c *Cluster) start(command *exec.Cmd, name string, out io.Writer) (*process.Process, error) {
	logs, err := os.OpenFile(c.logFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer logs.Close() // the child has its own
	command.Stderr = logs
	command.Stdout = out
	p, err := process.Start(command)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

func (c *Cluster) logFile(name string) string { return filepath.Join(c.dir, name+".log") }

// waitReady asks again and again until ready gives no error, the process ends, or ctx does.
func (c *Cluster) waitReady(ctx context.Context, p *process.Process, name string, ready func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := ready(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
			continue
		case <-p.Done():
			err = errors.New("it ended")
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return fmt.Errorf("%s\n%s did not become ready: %w", tail(c.logFile(name)), name, err) // what is long does not hide the cause
	}
}

// publishIssuer lets everybody read the keys of the ServiceAccount issuer, as the issuer of a cluster with
// workload identity must.
func (c *Cluster) publishIssuer(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.admin)
	if err != nil {
		return err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-public-issuer"},
		RoleRef: rbacv1.RoleRef{
			APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:service-account-issuer-discovery",
		},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:unauthenticated"}},
	}
	if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("publish the issuer's keys: %w", err)
	}
	return nil
}
