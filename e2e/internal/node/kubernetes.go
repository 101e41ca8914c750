package node

// What Kubernetes is made of beside its API: all of it is the administrator, whose rights are not what is looked at here.

import (
	"fmt"
	"os"
	"strings"

	"flux-token-refresher/e2e/internal/toolchain"
)

const domain = "cluster.local"

// startControllers starts kube-controller-manager and kube-scheduler.
func (n *Node) startControllers() error {
	err := n.run(toolchain.KubeControllerManager,
		"--kubeconfig="+n.Kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1",
		"--root-ca-file="+n.CAFile(), "--service-account-private-key-file="+n.SigningKeyFile(),
		"--cert-dir="+n.file("kube-controller-manager"), "--flex-volume-plugin-dir="+n.file("volume-plugins"),
	)
	if err != nil {
		return err
	}
	return n.run(toolchain.KubeScheduler, "--kubeconfig="+n.Kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1",
		"--cert-dir="+n.file("kube-scheduler"))
}

// startDNS starts CoreDNS on the node's address: a Deployment of it would show no more, and need an image.
func (n *Node) startDNS() error {
	var hosts strings.Builder
	for name, address := range n.spec.Hosts {
		fmt.Fprintf(&hosts, "    %s %s\n", address, name)
	}
	corefile, err := n.write("Corefile", fmt.Sprintf(`.:53 {
  bind %s
  errors
  hosts {
%s    fallthrough
  }
  kubernetes %s {
    kubeconfig %s
  }
}
`, Address, hosts.String(), domain, n.Kubeconfig))
	if err != nil {
		return err
	}
	return n.run(toolchain.CoreDNS, "-conf="+corefile)
}

// startProxy starts kube-proxy, which leaves alone what belongs to the machine: the table of connections. What a Pod sends to a Service gets
// the node's address, so that the answer comes back over the node also from a Pod on the same bridge: see connect.
func (n *Node) startProxy() error {
	return n.run(toolchain.KubeProxy,
		"--kubeconfig="+n.Kubeconfig, "--hostname-override="+Name, "--proxy-mode=iptables", "--cluster-cidr="+subnet, "--masquerade-all",
		"--bind-address="+Address, "--healthz-bind-address=127.0.0.1", "--metrics-bind-address=127.0.0.1", "--oom-score-adj=0",
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
	)
}

// startKubelet starts the kubelet. Its files that are not below its root directory are covered by Run.
func (n *Node) startKubelet() error {
	config, err := n.write("kubelet.yaml", fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}} # of those in this network
authorization: {mode: AlwaysAllow}
clusterDNS: [%[1]s]
clusterDomain: %[2]s
resolvConf: ""
containerRuntimeEndpoint: unix://%[3]s
volumePluginDir: %[4]s
cgroupDriver: cgroupfs
cgroupRoot: /%[5]s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
# How full the machine is is its own business.
evictionHard: {memory.available: 0%%, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%, pid.available: 0%%}
imageGCHighThresholdPercent: 100
# Run shows it the values that it wants, so that it does not set those of the machine.
protectKernelDefaults: true
oomScoreAdj: 0
`, Address, domain, n.socket(), n.file("volume-plugins"), os.Getenv(cgroupEnv)))
	if err != nil {
		return err
	}
	return n.run(toolchain.Kubelet, "--config="+config, "--kubeconfig="+n.Kubeconfig, "--hostname-override="+Name, "--node-ip="+Address,
		"--root-dir="+n.file("kubelet"), "--cert-dir="+n.file("kubelet-certificates"))
}
