package flux

// One controller, from its start to its end.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/toolchain"
)

// Controller is a process that can be stopped and started again, at the same addresses.
type Controller struct {
	tool   toolchain.Tool
	binary string
	dir    string
	args   []string
	worker string // the kind whose worker starts when the controller is ready

	process *process.Process  // nil before the first start
	outputs []*process.Output // of each process
}

// Start returns when the controller has read what it watches.
func (c *Controller) Start(ctx context.Context) error {
	temporary := filepath.Join(c.dir, "tmp")
	if err := os.MkdirAll(temporary, 0o700); err != nil {
		return err
	}
	command := exec.Command(c.binary, c.args...)
	command.Env = []string{
		"KUBECONFIG=" + c.kubeconfig(), "RUNTIME_NAMESPACE=" + Namespace, "TMPDIR=" + temporary,
		"TUF_ROOT=" + filepath.Join(temporary, "sigstore"), // else in the user's home
	}
	output := process.NewOutput()
	command.Stdout, command.Stderr = output, output
	p, err := process.Start(command)
	if err != nil {
		return fmt.Errorf("start %s: %w", c.tool.Name, err)
	}
	c.process, c.outputs = p, append(c.outputs, output)

	ctx, cancel := context.WithCancelCause(ctx)
	var ended sync.WaitGroup
	ended.Go(func() {
		select {
		case <-p.Done():
			cancel(errors.New("it ended"))
		case <-ctx.Done():
		}
	})
	// The readiness probe answers before the caches are filled: notification-controller would drop the events of these moments.
	_, err = output.Wait(ctx, func(r process.Record) bool { return r["msg"] == "Starting workers" && r["controllerKind"] == c.worker })
	cancel(nil)
	ended.Wait()
	if err != nil {
		return errors.Join(fmt.Errorf("%s\n%s did not become ready: %w", output, c.tool.Name, err), p.Kill())
	}
	return nil
}

// Stop asks the controller to end, as a rollout does, kills it when ctx ends first, and returns when it has ended.
func (c *Controller) Stop(ctx context.Context) error {
	if c.process == nil {
		return nil
	}
	return c.process.Stop(ctx)
}

// Pause stands the controller still: connections stay, nothing answers.
func (c *Controller) Pause() error { return c.process.Pause() }

// Resume ends a Pause.
func (c *Controller) Resume() error { return c.process.Resume() }

// Log gives the lines that the controller wrote about something, a namespace for example; of long ones the beginning, because
// source-controller writes down what a Git server answered.
func (c *Controller) Log(about string) string {
	var lines strings.Builder
	for _, output := range c.outputs {
		for line := range strings.Lines(output.String()) {
			if strings.Contains(line, about) {
				line, _, _ = strings.Cut(line, "\n")
				lines.WriteString(line[:min(len(line), 1000)] + "\n")
			}
		}
	}
	return lines.String()
}

func (c *Controller) kubeconfig() string { return filepath.Join(c.dir, c.tool.Name+".kubeconfig") }
