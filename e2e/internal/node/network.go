package node

// The one network that there is: a bridge, which no other interface leads out of.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

const (
	bridge = "pods"
	// subnet holds the node's addresses, and from firstPod on the Pods'.
	subnet   = "10.244.0.0/24"
	firstPod = "10.244.0.16"
)

// connect makes the bridge. The default route goes nowhere: programs choose their address by it. The bridge has a hardware address of its
// own, or it would have the lowest of its Pods', and lose what those that stay send to the one that has gone, for up to a minute. Frames
// between two Pods do not pass iptables, whether the machine has br_netfilter or not: with it, less could fail.
func connect(ctx context.Context) error {
	steps := []string{
		"link set lo up",
		"link add " + bridge + " address 02:00:00:00:00:01 type bridge",
		"link set " + bridge + " up",
	}
	for _, address := range []string{Address, Entra, AzureDevOps} {
		steps = append(steps, "address add "+address+"/24 dev "+bridge)
	}
	for _, step := range append(steps, "route add default dev "+bridge) {
		out, err := exec.CommandContext(ctx, "ip", strings.Fields(step)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", step, err, out)
		}
	}
	err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0o644) // of this network alone
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
