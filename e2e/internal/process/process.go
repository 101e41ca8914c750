// Package process runs a child process that never outlives its parent.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// Process is a running child.
type Process struct {
	command *exec.Cmd
	done    chan struct{}
}

// Start starts the command, in a process group of its own so that a terminal's Ctrl-C reaches only the parent, which
// then stops its children in order. On Linux the kernel kills the child when the parent dies. The caller must Stop it, or Wait until it ended.
func Start(command *exec.Cmd) (*Process, error) {
	command.SysProcAttr = attributes()
	p := &Process{command: command, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the starting thread ends, not the process: keep this one.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			_ = command.Wait() // how it ended stands in ProcessState
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// StartReady starts a command whose output is lines of JSON, and waits until one of them says that it is ready. One that does not say so until ctx
// ends is killed, and the error has what it wrote.
func StartReady(ctx context.Context, command *exec.Cmd, ready func(Record) bool) (*Process, Record, error) {
	output := NewOutput()
	command.Stdout, command.Stderr = output, output
	p, err := Start(command)
	if err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	record, err := output.Wait(ctx, ready)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s\n%s did not become ready: %w", output, command.Path, err), p.Kill())
	}
	return p, record, nil
}

// PID is the process id.
func (p *Process) PID() int { return p.command.Process.Pid }

// Done is closed when the process has ended and its output was read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal; os.ErrProcessDone when the process has ended.
func (p *Process) Signal(signal os.Signal) error { return p.command.Process.Signal(signal) }

// Pause stops the process (SIGSTOP), and returns when it stands still.
func (p *Process) Pause() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return waitStopped(p.PID())
}

// Resume lets a paused process go on (SIGCONT).
func (p *Process) Resume() error { return p.Signal(syscall.SIGCONT) }

// Wait gives the exit code once the process has ended, -1 when a signal ended it. The error is the context's, with what
// was waited for.
func (p *Process) Wait(ctx context.Context) (code int, err error) {
	select {
	case <-p.done:
		return p.command.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("process %d (%s) is still running: %w", p.PID(), p.command.Path, context.Cause(ctx))
	}
}

// Stop asks the process to end (SIGTERM), kills it when ctx ends first, and returns when it has ended.
func (p *Process) Stop(ctx context.Context) error {
	// A paused process takes the SIGTERM only when it goes on.
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGCONT} {
		if err := p.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	if _, err := p.Wait(ctx); err != nil {
		return errors.Join(err, p.Kill())
	}
	return nil
}

// Kill kills the process (SIGKILL) and returns when it has ended.
func (p *Process) Kill() error {
	if err := p.Signal(os.Kill); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}
