// Package image builds container images with buildah, offline: the product's from its Dockerfile, and those of the programs
// that a node runs beside it.
package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"flux-token-refresher/e2e/internal/toolchain"
)

// Builder builds images into a storage of its own.
type Builder struct {
	dir string // of the storage and of temporary files
}

// New gives a Builder that keeps its images in dir, which it creates. What RUN --mount=type=cache caches, Go's builds, stays in the user's
// cache folder.
func New(dir string) (*Builder, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(user, "flux-token-refresher", "buildah")
	b := &Builder{dir: dir}
	if err := errors.Join(os.MkdirAll(b.temporary(), 0o700), os.MkdirAll(cache, 0o700)); err != nil {
		return nil, err
	}
	// buildah keeps such a cache among the temporary files, since 1.29 under a name with the user's id.
	for _, name := range []string{"buildah-cache", fmt.Sprintf("buildah-cache-%d", os.Getuid())} {
		if err := os.Symlink(cache, filepath.Join(b.temporary(), name)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *Builder) temporary() string { return filepath.Join(b.dir, "tmp") }

// Product builds the Dockerfile under a name. In the place of its base image stands one with a shell, the CA certificates and the Go
// installation of this machine; modules come from Go's cache, where toolchain.DownloadModules puts them.
func (b *Builder) Product(ctx context.Context, name string, args map[string]string) error {
	root, err := toolchain.Root(ctx)
	if err != nil {
		return err
	}
	env, err := toolchain.GoEnv(ctx, "GOROOT", "GOMODCACHE")
	if err != nil {
		return err
	}
	if err := b.base(ctx, filepath.Join(root, "Dockerfile")); err != nil {
		return fmt.Errorf("stand-in for the base image: %w", err)
	}
	command := []string{
		"--build-arg=TARGETOS=linux", "--build-arg=TARGETARCH=" + runtime.GOARCH, // which buildah knows only where a platform is asked for
		"--volume=" + env["GOROOT"] + ":/usr/local/go:ro",
		"--volume=" + filepath.Join(env["GOMODCACHE"], "cache", "download") + ":/modules:ro", "--build-arg=GOPROXY=file:///modules",
		"--tag=" + name,
	}
	for arg, value := range args {
		command = append(command, "--build-arg="+arg+"="+value)
	}
	return b.build(ctx, append(command, root)...)
}

// base makes what stands in the place of the Dockerfile's base image.
func (b *Builder) base(ctx context.Context, dockerfile string) (err error) {
	content, err := os.ReadFile(dockerfile)
	if err != nil {
		return err
	}
	// FROM --platform=... NAME AS build
	_, from, _ := strings.Cut(string(content), "\nFROM --platform=$BUILDPLATFORM ")
	name, _, ok := strings.Cut(from, " AS build\n")
	if !ok {
		return fmt.Errorf("%s: no stage named build", dockerfile)
	}
	dir, err := os.MkdirTemp(b.dir, "base-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	const certificates = "/etc/ssl/certs/ca-certificates.crt"
	shell, err := exec.LookPath("sh")
	if err != nil {
		return err
	}
	files := map[string]string{"/bin/sh": shell, certificates: certificates}
	libraries, err := exec.CommandContext(ctx, "ldd", shell).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", shell, err)
	}
	for field := range strings.FieldsSeq(string(libraries)) {
		if strings.HasPrefix(field, "/") {
			files[field] = field
		}
	}
	for to, from := range files {
		if err := copyFile(filepath.Join(dir, to), from); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o777); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// Whose HOME is where Go's build cache is.
	if err := os.WriteFile(filepath.Join(dir, "etc", "passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644); err != nil {
		return err
	}
	return b.scratch(ctx, "docker.io/library/"+name, "COPY . /\nENV PATH=/usr/local/go/bin:/bin GOPATH=/go GOTOOLCHAIN=local\n", dir)
}

// Program builds an image of nothing but a static program, which it starts as a user that is not root, and CA certificates.
func (b *Builder) Program(ctx context.Context, name, binary string) (err error) {
	dir, err := os.MkdirTemp(b.dir, "program-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := copyFile(filepath.Join(dir, "program"), binary); err != nil {
		return err
	}
	return b.scratch(ctx, name, "COPY program /program\nUSER 65532:65532\nENTRYPOINT [\"/program\"]\n", dir)
}

// scratch builds an image of what is in dir, from nothing.
func (b *Builder) scratch(ctx context.Context, name, steps, dir string) error {
	dockerfile := filepath.Join(b.dir, "Dockerfile")
	if err := os.WriteFile(dockerfile, []byte("FROM scratch\n"+steps), 0o600); err != nil {
		return err
	}
	return b.build(ctx, "--file="+dockerfile, "--tag="+name, dir)
}

// Archive writes an image as an archive of the Open Container Initiative, gzipped or not.
func (b *Builder) Archive(ctx context.Context, name, path string, compress bool) error {
	_, err := b.buildah(ctx, "push", fmt.Sprintf("--disable-compression=%t", !compress), name, "oci-archive:"+path+":"+name)
	return err
}

// Run runs the program of an image in a container without a network, and gives what it wrote.
func (b *Builder) Run(ctx context.Context, name string, args ...string) (out string, err error) {
	container, err := b.buildah(ctx, "from", "--pull-never", name)
	if err != nil {
		return "", err
	}
	container = strings.TrimSpace(container)
	defer func() {
		_, removed := b.buildah(context.WithoutCancel(ctx), "rm", container)
		err = errors.Join(err, removed)
	}()
	return b.buildah(ctx, append([]string{"run", "--isolation=chroot", container, "--"}, args...)...)
}

func (b *Builder) build(ctx context.Context, args ...string) error {
	_, err := b.buildah(ctx, append([]string{"build", "--isolation=chroot", "--pull-never"}, args...)...)
	return err
}

func (b *Builder) buildah(ctx context.Context, args ...string) (string, error) {
	// vfs asks nothing of the machine's kernel and file system.
	global := []string{"--root=" + filepath.Join(b.dir, "images"), "--runroot=" + filepath.Join(b.dir, "run"), "--storage-driver=vfs"}
	command := exec.CommandContext(ctx, "buildah", append(global, args...)...)
	command.Env = append(os.Environ(), "TMPDIR="+b.temporary())
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("buildah %s: %w\n%s", args[0], err, stderr.String())
	}
	return string(out), nil
}

// copyFile copies a file that may be executed, and makes the folders above it.
func copyFile(to, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}
