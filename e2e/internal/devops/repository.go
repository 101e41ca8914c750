package devops

// The repositories, made and changed from outside of HTTP.

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Repository is one that the server serves. Its default branch is main.
type Repository struct {
	// URL is https://HOST/ORG/PROJECT/_git/REPO.
	URL string

	server    *Server
	dir       string
	forbidden *Answer // guarded by server.mu
}

// Create makes a repository with one commit.
func (s *Server) Create(ctx context.Context, organization, project, name string) (*Repository, error) {
	path := strings.Join([]string{"", organization, project, "_git", name}, "/")
	r := &Repository{URL: s.URL() + path, server: s, dir: filepath.Join(s.dir, filepath.FromSlash(path))}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := r.git(ctx, nil, "init", "--quiet", "--bare", "--initial-branch=main"); err != nil {
		return nil, err
	}
	if _, err := r.Commit(ctx, map[string]string{"README.md": "# " + name + "\n"}); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repositories[path] = r
	return r, nil
}

// Commit adds files (path to content) to main, and gives the commit.
func (r *Repository) Commit(ctx context.Context, files map[string]string) (hash string, err error) {
	var stream bytes.Buffer
	fmt.Fprintf(&stream, "commit refs/heads/main\ncommitter e2e <e2e@localhost> %d +0000\ndata 6\nchange\n", time.Now().Unix())
	if _, err := r.git(ctx, nil, "rev-parse", "--verify", "--quiet", "refs/heads/main"); err == nil {
		fmt.Fprint(&stream, "from refs/heads/main^0\n")
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&stream, "M 100644 inline %s\ndata %d\n%s\n", path, len(files[path]), files[path])
	}
	if _, err := r.git(ctx, &stream, "fast-import", "--quiet"); err != nil {
		return "", err
	}
	return r.Head(ctx)
}

// Head gives the commit at the tip of main.
func (r *Repository) Head(ctx context.Context) (hash string, err error) {
	return r.git(ctx, nil, "rev-parse", "--verify", "refs/heads/main")
}

// Forbid refuses everybody's good tokens with an answer: Forbidden or NotFound, which Azure DevOps gives an identity without a permission or a
// sufficient licence.
func (r *Repository) Forbid(answer Answer) {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	r.forbidden = &answer
}

// Allow ends a Forbid.
func (r *Repository) Allow() {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	r.forbidden = nil
}

func (r *Repository) git(ctx context.Context, stdin *bytes.Buffer, args ...string) (string, error) {
	command := exec.CommandContext(ctx, r.server.git, append([]string{"--git-dir=" + r.dir}, args...)...)
	command.Env = append([]string{"PATH=" + os.Getenv("PATH")}, gitEnv()...)
	if stdin != nil {
		command.Stdin = stdin
	}
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("git %s in %s: %w: %s", args[0], r.URL, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// gitEnv keeps the configuration of whoever runs the tests out of it.
func gitEnv() []string { return []string{"GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1"} }
