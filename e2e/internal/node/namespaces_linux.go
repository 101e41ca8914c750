package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const own = unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC

// tryNamespaces tells whether they can be had.
func tryNamespaces() error {
	command := exec.Command("/bin/true")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: own}
	return command.Run()
}

// contain starts the first process of the namespaces, and waits until it, and so everything there, has ended. It gives the namespaces
// as the links in /proc/PID/ns name them.
func contain(ctx context.Context, dir, cgroup string) (code int, namespaces []string, err error) {
	command := again(roleInit)
	command.Env = append(command.Env, dirEnv+"="+dir, cgroupEnv+"="+cgroup)
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: own,
		Setpgid:    true, // a terminal's Ctrl-C is ours to hand on
		Pdeathsig:  syscall.SIGKILL,
	}
	// The kernel sends the death signal when the starting thread ends, not the process: keep this one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := command.Start(); err != nil {
		return 1, nil, err
	}
	for _, kind := range []string{"net", "pid", "mnt", "ipc"} {
		namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", command.Process.Pid, kind))
		if err != nil {
			return 1, nil, errors.Join(err, command.Process.Kill(), command.Wait())
		}
		namespaces = append(namespaces, namespace)
	}
	defer context.AfterFunc(ctx, func() { _ = command.Process.Signal(syscall.SIGTERM) })()
	err = command.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1), namespaces, nil
	}
	return 0, namespaces, err
}

// again is this program, with what it was started with.
func again(role string) *exec.Cmd {
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), roleEnv+"="+role)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command
}

// runInit is the first process: it sets up the mounts, starts what Run is for, hands signals on to it, and takes leave of the orphans, as
// containerd's shims are.
func runInit() (code int, err error) {
	pid, err := os.Readlink("/proc/self") // still the machine's
	if err != nil {
		return 1, err
	}
	if err := mounts(os.Getenv(dirEnv)); err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	command := again(roleInside)
	temporary := filepath.Join(os.Getenv(dirEnv), "tmp")
	if err := os.Mkdir(temporary, 0o700); err != nil {
		return 1, err
	}
	command.Env = append(command.Env, pidEnv+"="+pid, "TMPDIR="+temporary)
	if err := command.Start(); err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			_ = command.Process.Signal(s)
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, err
		case pid == command.Process.Pid && status.Exited():
			return status.ExitStatus(), nil
		case pid == command.Process.Pid:
			return 1, fmt.Errorf("it ended by %s", status.Signal())
		}
	}
}

// mounts cuts this process's mounts off from the machine's, and covers what programs write to wherever their own folders are.
func mounts(dir string) error {
	mount := func(source, target, kind string, flags uintptr, options ...string) error {
		if err := unix.Mount(source, target, kind, flags, strings.Join(options, ",")); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		return nil
	}
	// First they cease to be the machine's, then they are shared with what is mounted below: the kubelet wants that.
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := mount("", "/", "", unix.MS_REC|propagation); err != nil {
			return err
		}
	}
	if err := mount("proc", "/proc", "proc", 0); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", 0); err != nil {
		return err
	}
	for _, target := range []string{"/var/lib", "/var/log"} { // nothing of the machine's
		folder := filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(target, "/"), "/", "-"))
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
		if err := mount(folder, target, "", unix.MS_BIND); err != nil {
			return err
		}
	}
	// buildah and containerd make folders there, whatever they are told.
	for _, target := range []string{"/etc", "/opt", "/var/cache"} {
		layers := filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(target, "/"), "/", "-"))
		upper, work := filepath.Join(layers, "upper"), filepath.Join(layers, "work")
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
			return err
		}
		if err := mount("overlay", target, "overlay", 0, "lowerdir="+target, "upperdir="+upper, "workdir="+work); err != nil {
			return err
		}
	}
	shown := filepath.Join(dir, "tunables")
	for name, value := range tunables {
		file := filepath.Join(shown, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o444); err != nil {
			return err
		}
		if err := mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND); err != nil {
			return err
		}
	}
	return nil
}
