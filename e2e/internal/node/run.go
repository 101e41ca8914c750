package node

// How a program gets into namespaces of its own, and what it leaves.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// The program runs three times: as it was started; as the first process in the namespaces, whose end is that of every other one there;
// and below that, as what the caller wants to be there.
const (
	roleEnv   = "FLUX_TOKEN_REFRESHER_NODE_ROLE"
	dirEnv    = "FLUX_TOKEN_REFRESHER_NODE_DIR"
	cgroupEnv = "FLUX_TOKEN_REFRESHER_NODE_CGROUP"
	pidEnv    = "FLUX_TOKEN_REFRESHER_NODE_PID"

	roleInit   = "init"
	roleInside = "inside"
)

// Run runs a function in a network, a process tree and mounts of its own, with a folder to work in, and gives the program's exit
// code. There the program has its own arguments, environment and output, and whatever is on this machine, but a /run, /var/lib and /var/log and
// a folder for temporary files that are its own; what it changes in /etc, /opt and /var/cache nobody else sees. Before that, prepare runs
// outside, where the network is. Afterwards nothing is left; where something is, that is said, and the code is 1. SIGINT, SIGTERM and SIGHUP reach
// the function as SIGTERM.
func Run(prepare func(context.Context) error, inside func(dir string) int) int {
	var code int
	var err error
	switch os.Getenv(roleEnv) {
	case roleInside:
		return inside(os.Getenv(dirEnv))
	case roleInit:
		code, err = runInit()
	default:
		code, err = outside(prepare)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// PID is that of the first process in the namespaces, as the machine counts: whoever wants to enter them names it.
func PID() string { return os.Getenv(pidEnv) }

// outside makes what Run needs on this machine, and takes it away.
func outside(prepare func(context.Context) error) (code int, err error) {
	// Also when its terminal is closed something has to be given back.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := Check(); err != nil {
		return 1, err
	}
	if err := prepare(ctx); err != nil {
		return 1, err
	}
	before, err := look()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "flux-token-refresher-node-")
	if err != nil {
		return 1, err
	}
	name := filepath.Base(dir)
	var namespaces []string
	defer func() {
		err = errors.Join(err, removeCgroups(name), disable(before.controllers), os.RemoveAll(dir), before.left(name, namespaces))
	}()
	if err := makeCgroups(name); err != nil {
		return 1, err
	}
	code, namespaces, err = contain(ctx, dir, name)
	return code, err
}
