package node

// The one network that there is: a bridge, which no other interface leads out of.

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

const (
	bridge = "pods"
	// subnet holds the node's addresses, and from firstPod on the Pods'.
	subnet   = "10.244.0.0/24"
	firstPod = "10.244.0.16"
)

// connect makes the bridge. The default route goes nowhere: programs choose their address by it.
func connect(ctx context.Context) error {
	steps := []string{
		"link set lo up",
		"link add " + bridge + " type bridge",
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
	return nil
}
