package process_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"flux-token-refresher/e2e/internal/process"
)

// Elsewhere than on Linux, a killed test run leaves its children behind.
func TestChildDiesWithItsParent(t *testing.T) {
	t.Parallel()
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), role+"=parent")
	stdin, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Our own pipe: Wait of exec.Cmd would close it before the child's end was seen.
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	parent.Stdout = stdout
	p, err := process.Start(parent)
	if err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	if _, err := io.WriteString(stdin, "alive\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "alive\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := out.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The pipe ends when the last process that holds it does.
	if rest, err := lines.ReadString('\n'); !errors.Is(err, io.EOF) {
		t.Errorf("the child outlived its parent: %q, %v", rest, err)
	}
}
