package node

// containerd: it runs the containers, from images that are imported.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"flux-token-refresher/e2e/internal/toolchain"
)

// PauseImage is the image of the container that holds a Pod's namespaces; Import it before the first Pod.
const PauseImage = "localhost/pause:node"

// plugins is where Debian has the CNI plugins.
const plugins = "/usr/lib/cni"

func (n *Node) startContainerd(ctx context.Context) error {
	for _, dir := range []string{"bin", "cni"} {
		if err := os.Mkdir(n.file(dir), 0o755); err != nil {
			return err
		}
	}
	// containerd looks for its shim by that name.
	if err := os.Symlink(n.paths[toolchain.ContainerdShim.Name], filepath.Join(n.file("bin"), toolchain.ContainerdShim.Name)); err != nil {
		return err
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	if _, err := n.write("cni/pods.conflist", fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge", "bridge": %q, "isGateway": true, "hairpinMode": true,
    "ipam": {
      "type": "host-local", "dataDir": %q,
      "ranges": [[{"subnet": %q, "rangeStart": %q, "gateway": %q}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}`, bridge, n.file("addresses"), subnet, firstPod, Address)); err != nil {
		return err
	}
	// Neither erofs nor NRI is needed, and they want what a machine may not have. The score of a process that may be killed first
	// cannot be lowered without a capability. A profile of AppArmor would be loaded into the machine's kernel, and stay there.
	config, err := n.write("containerd.toml", fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
disabled_plugins = [
  "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs", "io.containerd.mount-handler.v1.erofs", "io.containerd.nri.v1.nri",
]

[grpc]
  address = %[3]q

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %[4]q

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%[5]q]
    conf_dir = %[6]q
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = %[7]q
`, n.file("containerd"), n.file("containerd-state"), n.socket(), PauseImage, plugins, n.file("cni"), runc))
	if err != nil {
		return err
	}
	if err := n.run(toolchain.Containerd, "--config="+config); err != nil {
		return err
	}
	for {
		err := n.ctr(ctx, "version")
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-n.components[len(n.components)-1].Done():
			return errors.New("containerd did not become ready")
		case <-ctx.Done():
			return fmt.Errorf("containerd did not become ready: %w: %w", context.Cause(ctx), err)
		}
	}
}

// socket is short, whatever the folder is: a path of a socket has at most 107 bytes.
func (*Node) socket() string { return "/run/containerd.sock" }

// Import gives the node the images of an archive of the Open Container Initiative.
func (n *Node) Import(ctx context.Context, archive string) error {
	if err := n.ctr(ctx, "--namespace=k8s.io", "images", "import", archive); err != nil {
		return fmt.Errorf("import %s: %w", filepath.Base(archive), err)
	}
	return nil
}

func (n *Node) ctr(ctx context.Context, args ...string) error {
	command := exec.CommandContext(ctx, n.paths[toolchain.Ctr.Name], append([]string{"--address=" + n.socket()}, args...)...)
	out, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctr: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// command gives a tool's, which finds the shim.
func (n *Node) command(tool toolchain.Tool, args ...string) *exec.Cmd {
	command := exec.Command(n.paths[tool.Name], args...)
	command.Env = append(os.Environ(), "PATH="+n.file("bin")+":"+os.Getenv("PATH"))
	return command
}
