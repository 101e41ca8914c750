package toolchain_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"flux-token-refresher/e2e/internal/toolchain"
)

// TestToolIsBuiltOnce starts from an empty cache folder (Go's own caches stay): an interrupted build, then three at once.
func TestToolIsBuiltOnce(t *testing.T) {
	keep := []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOENV"}
	values, err := exec.CommandContext(t.Context(), "go", append([]string{"env"}, keep...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	for i, value := range strings.Split(strings.TrimRight(string(values), "\n"), "\n") {
		t.Setenv(keep[i], value)
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))

	interrupted, cancel := context.WithCancel(t.Context())
	stopped := writerFunc(func([]byte) { cancel() }) // as soon as it says that it builds
	if _, err := toolchain.Etcd.Build(interrupted, stopped); err == nil {
		t.Fatal("an interrupted build gave no error")
	}

	var said lines
	var builds sync.WaitGroup
	paths := make([]string, 3)
	for i := range paths {
		builds.Go(func() {
			path, err := toolchain.Etcd.Build(t.Context(), &said)
			if err != nil {
				t.Error(err)
			}
			paths[i] = path
		})
	}
	builds.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if got := strings.Count(said.String(), "building etcd"); got != 1 {
		t.Errorf("it was built %d times, want once:\n%s", got, said.String())
	}
	if paths[0] != paths[1] || paths[1] != paths[2] || !strings.HasPrefix(paths[0], home) {
		t.Errorf("paths %q, want one below %s", paths, home)
	}
	out, err := exec.CommandContext(t.Context(), paths[0], "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "etcd Version") {
		t.Errorf("%s --version: %v\n%s", paths[0], err, out)
	}
}

func TestSourceDir(t *testing.T) {
	t.Parallel()
	dir, err := toolchain.SourceController.SourceDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "config", "crd", "bases")); err != nil {
		t.Error(err)
	}
}

func TestUnknownTool(t *testing.T) {
	t.Parallel()
	_, err := toolchain.Tool{Name: "other"}.Build(t.Context(), os.Stderr)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "tool other") {
		t.Errorf("got %v, want that there is no tool of that name", err)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// lines is a buffer for concurrent writers.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
