// Package node runs a Kubernetes node: containerd, kubelet, kube-proxy, the controllers, the scheduler and CoreDNS beside a control
// plane of package cluster, real ones, in namespaces of their own (Run) out of which nothing leads: no process, no
// mount, no packet. It takes about 20 seconds to become ready, and 1 GB of memory.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"flux-token-refresher/e2e/internal/await"
	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/toolchain"
)

// Name is the node's.
const Name = "node"

// Address is the node's, and that of its API server. Entra and AzureDevOps are for servers that Pods find by the names in Spec.
const (
	Address     = "10.244.0.1"
	Entra       = "10.244.0.2"
	AzureDevOps = "10.244.0.3"
)

// Spec says what node to start.
type Spec struct {
	// Dir takes all files; it is the one that Run gives.
	Dir string
	// Hosts are names that the cluster's DNS knows beside its Services, and their addresses.
	Hosts map[string]string
	// Progress is told what has to be built first.
	Progress io.Writer
}

// Node is a running node.
type Node struct {
	*cluster.Cluster
	// Kubeconfig is the path of the administrator's.
	Kubeconfig string

	spec       Spec
	paths      map[string]string // of the programs
	components []component
}

// component is a process with its log file.
type component struct {
	name string
	*process.Process
}

// startTimeout is generous: twenty seconds are usual, but both cores may be busy.
const startTimeout = 3 * time.Minute

// Start starts a node inside of Run, and returns when it takes Pods. The caller must Stop it.
func Start(ctx context.Context, spec Spec) (*Node, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	n := &Node{spec: spec, Kubeconfig: filepath.Join(spec.Dir, "admin.kubeconfig"), paths: map[string]string{}}
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%sstart a node: %w", n.ended(), err), n.Stop())
	}
	return n, nil
}

// Stop kills everything but the containers, which end with Run, and returns when it has ended.
func (n *Node) Stop() error {
	var errs []error
	for _, c := range slices.Backward(n.components) {
		errs = append(errs, c.Kill())
	}
	if n.Cluster != nil {
		errs = append(errs, n.Cluster.Stop())
	}
	return errors.Join(errs...)
}

// start goes from the network to a node that is ready.
func (n *Node) start(ctx context.Context) error {
	if err := connect(ctx); err != nil {
		return err
	}
	for _, tool := range slices.Concat([]toolchain.Tool{toolchain.Etcd, toolchain.KubeAPIServer}, toolchain.Node) {
		path, err := tool.Build(ctx, n.spec.Progress)
		if err != nil {
			return err
		}
		n.paths[tool.Name] = path
	}
	binaries := cluster.Binaries{Etcd: n.paths[toolchain.Etcd.Name], KubeAPIServer: n.paths[toolchain.KubeAPIServer.Name]}
	var err error
	if n.Cluster, err = cluster.StartForNodes(ctx, binaries, n.file("cluster"), Address+":6443"); err != nil {
		return err
	}
	kubeconfig, err := cluster.Kubeconfig(n.Config())
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.Kubeconfig, kubeconfig, 0o600); err != nil {
		return err
	}
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	for _, start := range []func() error{n.startControllers, n.startDNS, n.startProxy, n.startKubelet} {
		if err := start(); err != nil {
			return err
		}
	}
	return n.awaitReady(ctx)
}

func (n *Node) awaitReady(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(n.Config())
	if err != nil {
		return err
	}
	_, err = await.Object(ctx, &corev1.Node{}, "Node", ready,
		cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "nodes", "", await.Named(Name)))
	if err == nil && n.ended() != "" {
		err = errors.New("it is ready, and yet not whole")
	}
	return err
}

func ready(node *corev1.Node) bool {
	return node != nil && len(node.Spec.Taints) == 0 && slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// file is a path in the node's folder.
func (n *Node) file(name string) string { return filepath.Join(n.spec.Dir, name) }

// write writes a file into the node's folder, and gives its path.
func (n *Node) write(name, content string) (string, error) {
	path := n.file(name)
	return path, os.WriteFile(path, []byte(content), 0o600)
}

// run starts a tool with its output in NAME.log.
func (n *Node) run(tool toolchain.Tool, args ...string) error {
	logs, err := os.Create(n.logFile(tool.Name))
	if err != nil {
		return err
	}
	defer logs.Close() // the child has its own
	command := n.command(tool, args...)
	command.Stdout, command.Stderr = logs, logs
	p, err := process.Start(command)
	if err != nil {
		return fmt.Errorf("start %s: %w", tool.Name, err)
	}
	n.components = append(n.components, component{tool.Name, p})
	return nil
}

func (n *Node) logFile(name string) string { return n.file(name + ".log") }

// ended tells, for an error's message, what has ended and should not have, with the end of its log.
func (n *Node) ended() string {
	var text strings.Builder
	for _, c := range n.components {
		select {
		case <-c.Done():
			const most = 4096
			log, _ := os.ReadFile(n.logFile(c.name)) // it says more than that it cannot be read
			fmt.Fprintf(&text, "%s has ended: %s\n", c.name, log[max(0, len(log)-most):])
		default:
		}
	}
	return text.String()
}
