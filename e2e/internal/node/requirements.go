package node

// What a machine must have.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// packages are Debian's, beside a program of theirs. Everything else is built.
var packages = [][2]string{
	{"buildah", "buildah"}, {filepath.Join(plugins, "bridge"), "containernetworking-plugins"}, {"git", "git"}, {"ip", "iproute2"},
	{"iptables", "iptables"}, {"runc", "runc"},
}

// Check gives an error that says everything that is missing for a node on this machine.
func Check() error {
	var missing []error
	if runtime.GOOS != "linux" {
		return errors.New("a node needs Linux")
	}
	if os.Geteuid() != 0 {
		missing = append(missing, errors.New("root, who may make namespaces, mounts and containers"))
	}
	for _, p := range packages {
		if _, err := exec.LookPath(p[0]); err != nil {
			missing = append(missing, fmt.Errorf("%s, of the Debian package %s", p[0], p[1]))
		}
	}
	if err := tryNamespaces(); err != nil {
		missing = append(missing, fmt.Errorf("namespaces for the network, processes and mounts: %w", err))
	}
	if len(missing) == 0 {
		return nil
	}
	var text strings.Builder
	for _, m := range missing {
		fmt.Fprintf(&text, "\n  %s", m)
	}
	return errors.New("this machine cannot run a node; it lacks" + text.String())
}
