// Package toolchain builds the programs that the tests run, from source, with nothing but Go: the tools (Kubernetes, etcd,
// containerd, Flux's controllers, Prometheus, golangci-lint), which take minutes and are kept in the user's cache folder, and
// the product itself.
package toolchain

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	pathpkg "path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

// Tool is a program built from a Go module below e2e/tools, one of whose tool lines says which package it is.
type Tool struct {
	Name string
	// Module is the folder of the module; Name when empty, and the module then has one tool line. In another the tool's line
	// ends in Name.
	Module string
	// Takes is how long the first build took on two cores with an empty build cache (measured).
	Takes time.Duration
}

// The tools. Those of different projects have modules of their own, because their dependencies do not agree.
var (
	Etcd                   = Tool{Name: "etcd", Takes: 44 * time.Second}
	KubeAPIServer          = Tool{Name: "kube-apiserver", Module: "kubernetes", Takes: 4*time.Minute + 13*time.Second}
	Kubectl                = Tool{Name: "kubectl", Module: "kubernetes", Takes: 30 * time.Second} // beside kube-apiserver, whose packages it shares
	GolangCILint           = Tool{Name: "golangci-lint", Takes: 90 * time.Second}
	SourceController       = Tool{Name: "source-controller", Takes: 3*time.Minute + 20*time.Second}
	NotificationController = Tool{Name: "notification-controller", Takes: 5 * time.Minute}
	Jaeger                 = Tool{Name: "jaeger", Takes: 4 * time.Minute}
	Promtool               = Tool{Name: "promtool", Module: "prometheus", Takes: 4 * time.Minute}
	Prometheus             = Tool{Name: "prometheus", Module: "prometheus", Takes: 85 * time.Second} // beside promtool, whose packages it shares
)

// What makes a node of the control plane that Etcd and KubeAPIServer are; KubeAPIServer is built before them.
var (
	KubeControllerManager = Tool{Name: "kube-controller-manager", Module: "kubernetes", Takes: 41 * time.Second}
	KubeScheduler         = Tool{Name: "kube-scheduler", Module: "kubernetes", Takes: 46 * time.Second}
	Kubelet               = Tool{Name: "kubelet", Module: "kubernetes", Takes: 43 * time.Second}
	KubeProxy             = Tool{Name: "kube-proxy", Module: "kubernetes", Takes: 12 * time.Second}
	Containerd            = Tool{Name: "containerd", Module: "containerd", Takes: 62 * time.Second}
	ContainerdShim        = Tool{Name: "containerd-shim-runc-v2", Module: "containerd", Takes: 10 * time.Second}
	Ctr                   = Tool{Name: "ctr", Module: "containerd", Takes: 10 * time.Second}
	CoreDNS               = Tool{Name: "coredns", Takes: 2 * time.Minute}
)

// Node is all that makes a node.
var Node = []Tool{KubeControllerManager, KubeScheduler, Kubelet, KubeProxy, Containerd, ContainerdShim, Ctr, CoreDNS}

// Pause builds the program that holds a Pod's namespaces into dir, static, and gives its path.
func Pause(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "pause")
	return path, goBuild(ctx, "", []string{"CGO_ENABLED=0"}, "-buildvcs=false", "-o", path, "flux-token-refresher/e2e/internal/node/pause")
}

// Build gives the path of the tool in the user's cache folder (os.UserCacheDir()/flux-token-refresher), after building
// it where it is missing, which is said on progress. Another version of the tool, of Go, or of a dependency is
// another file. Processes that build the same tool at once wait for the first.
func (t Tool) Build(ctx context.Context, progress io.Writer) (string, error) {
	m, err := t.module(ctx)
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", t.Name, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", t.Name, err)
	}
	sum := sha256.Sum256(m.goMod)
	path := filepath.Join(cache, "flux-token-refresher", fmt.Sprintf("%s-%s-%s-%s-%s-%x",
		t.Name, m.tool.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH, sum[:6]))

	err = once(path, func(temporary string) error {
		_, _ = fmt.Fprintf(progress, "building %s %s, once: about %s on two cores\n", t.Name, m.tool.Version, t.Takes)
		start := time.Now()
		// CGO_ENABLED=0: the tools need no C compiler, and build faster without one.
		err := goBuild(ctx, m.dir, []string{"CGO_ENABLED=0"}, "-ldflags=-s -w", "-o", temporary, m.pkg)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(progress, "built %s in %s: %s\n", t.Name, time.Since(start).Round(time.Second), path)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", t.Name, err)
	}
	return path, nil
}

// Version gives the version of the tool, as v1.2.3.
func (t Tool) Version(ctx context.Context) (string, error) {
	m, err := t.module(ctx)
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", t.Name, err)
	}
	return m.tool.Version, nil
}

// SourceDir gives the folder of the tool's sources in Go's module cache, after downloading them where they are missing: what
// a tool's repository has beside its program, as CustomResourceDefinitions, is of the program's version there.
func (t Tool) SourceDir(ctx context.Context) (string, error) {
	m, err := t.module(ctx)
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", t.Name, err)
	}
	out, err := goCommand(ctx, m.dir, nil, "mod", "download", "-json", m.tool.Path)
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", t.Name, err)
	}
	var downloaded struct{ Dir string }
	if err := json.Unmarshal(out, &downloaded); err != nil {
		return "", fmt.Errorf("tool %s: go mod download: %w", t.Name, err)
	}
	return downloaded.Dir, nil
}

// Root gives the folder of the product's module.
func Root(ctx context.Context) (string, error) { return moduleDir(ctx, "flux-token-refresher") }

// DownloadModules downloads what the product is built of, where it is missing.
func DownloadModules(ctx context.Context) error {
	root, err := Root(ctx)
	if err != nil {
		return err
	}
	_, err = goCommand(ctx, root, nil, "mod", "download")
	return err
}

// GoEnv gives variables of the go command.
func GoEnv(ctx context.Context, names ...string) (map[string]string, error) {
	out, err := goCommand(ctx, "", nil, append([]string{"env", "-json"}, names...)...)
	if err != nil {
		return nil, err
	}
	var env map[string]string
	return env, json.Unmarshal(out, &env)
}

// Product builds flux-token-refresher into dir and gives its path; race adds the race detector, which needs a C
// compiler.
func Product(ctx context.Context, dir string, race bool) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "flux-token-refresher")
	// What a test runs needs no revision, and a checkout that belongs to another user has none to give.
	args := []string{"-buildvcs=false", "-o", path, "./cmd/flux-token-refresher"}
	if race {
		args = append([]string{"-race"}, args...)
	}
	if err := goBuild(ctx, root, nil, args...); err != nil {
		return "", fmt.Errorf("flux-token-refresher: %w", err)
	}
	return path, nil
}

// once makes path by calling build with the name of a temporary file beside it, unless path is there. An interrupted build
// leaves nothing that a later one takes for the result.
func once(path string, build func(temporary string) error) error {
	if exists(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	unlock, err := lockedfile.MutexAt(path + ".lock").Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if exists(path) {
		return nil
	}
	temporary := path + ".partial"
	if err := build(temporary); err != nil {
		return errors.Join(err, os.RemoveAll(temporary))
	}
	return os.Rename(temporary, path)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// toolModule is a tool's module below e2e/tools.
type toolModule struct {
	dir   string
	goMod []byte
	pkg   string         // that the tool's line names
	tool  module.Version // the module that holds it
}

func (t Tool) module(ctx context.Context) (toolModule, error) {
	e2e, err := moduleDir(ctx, "flux-token-refresher/e2e")
	if err != nil {
		return toolModule{}, err
	}
	m := toolModule{dir: filepath.Join(e2e, "tools", cmp.Or(t.Module, t.Name))}
	if m.goMod, err = os.ReadFile(filepath.Join(m.dir, "go.mod")); err != nil {
		return toolModule{}, err
	}
	file, err := modfile.Parse("go.mod", m.goMod, nil)
	if err != nil {
		return toolModule{}, err
	}
	tools := slices.DeleteFunc(file.Tool, func(line *modfile.Tool) bool {
		return t.Module != "" && pathpkg.Base(line.Path) != t.Name
	})
	if len(tools) != 1 {
		return toolModule{}, fmt.Errorf("go.mod: %d tool lines for it, want one", len(tools))
	}
	m.pkg = tools[0].Path
	for _, require := range file.Require {
		if path := require.Mod.Path; (m.pkg == path || strings.HasPrefix(m.pkg, path+"/")) && len(path) > len(m.tool.Path) {
			m.tool = require.Mod
		}
	}
	if m.tool.Path == "" {
		return toolModule{}, fmt.Errorf("go.mod: it requires no module of the tool %s", m.pkg)
	}
	return m, nil
}

// moduleDir finds a module's folder from the working folder, which is somewhere in the e2e module.
func moduleDir(ctx context.Context, module string) (string, error) {
	out, err := goCommand(ctx, "", nil, "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return "", fmt.Errorf("where is module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

func goBuild(ctx context.Context, dir string, env []string, args ...string) error {
	_, err := goCommand(ctx, dir, env, append([]string{"build"}, args...)...)
	return err
}

// goCommand gives what a go command wrote to stdout; its error holds the rest.
func goCommand(ctx context.Context, dir string, env []string, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = dir
	command.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", args[0], err, stderr.Bytes())
	}
	return out, nil
}
