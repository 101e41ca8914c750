package process_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"

	"flux-token-refresher/e2e/internal/process"
)

// role makes the test binary one of the processes of a test.
const role = "PROCESS_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "parent": // starts a child, whose output is its own, and waits to be killed with it
		child := exec.Command("cat")
		child.Stdin, child.Stdout = os.Stdin, os.Stdout
		p, err := process.Start(child)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		<-p.Done()
	default:
		goleak.VerifyTestMain(m)
	}
}

func TestStopEndsAPausedProcess(t *testing.T) {
	t.Parallel()
	p, err := process.Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Stop(ctx); err != nil {
		t.Error(err)
	}
	if code, err := p.Wait(ctx); code != -1 || err != nil {
		t.Errorf("exit code %d, %v, want -1", code, err)
	}
}

func TestStopKillsWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	deaf := exec.Command("sh", "-c", "trap '' TERM; echo deaf; read never")
	stdin, err := deaf.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	deaf.Stdout = stdout
	p, err := process.Start(deaf)
	if err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that it did not end in time", err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("it is still running")
	}
}

func TestStartOfNothing(t *testing.T) {
	t.Parallel()
	if _, err := process.Start(exec.Command("/no/such/program")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that there is no such program", err)
	}
}
