package node

// What a run has of the machine beside its folder, and whether it gave that back.

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Where the machine's control groups are. The two files are those of version 2: the controllers that there are, and those of the groups
// below the root.
const (
	cgroups     = "/sys/fs/cgroup"
	controllers = cgroups + "/cgroup.controllers"
	enabled     = cgroups + "/cgroup.subtree_control"
)

// hierarchies are the roots of the machine's control groups: one for each controller under version 1, or the one of version 2.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(controllers); err == nil {
		return []string{cgroups}, nil
	}
	found, err := filepath.Glob(filepath.Join(cgroups, "*", "cgroup.procs"))
	if err == nil && len(found) == 0 {
		err = errors.New("there are no control groups in " + cgroups)
	}
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found, err
}

// words are those of a file of version 2; none under version 1.
func words(file string) ([]string, error) {
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(content)), err
}

// makeCgroups makes the group of that name in which the kubelet puts its Pods. Under version 2 it asks for all of these controllers there that
// the machine has (kubelet 1.37, pkg/kubelet/cm/cgroup_v2_manager_linux.go, Validate).
func makeCgroups(name string) error {
	there, err := words(controllers)
	if err != nil {
		return err
	}
	for _, one := range []string{"cpu", "cpuset", "hugetlb", "memory", "pids"} {
		if slices.Contains(there, one) {
			if err := os.WriteFile(enabled, []byte("+"+one), 0o644); err != nil {
				return err
			}
		}
	}
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes the group of that name and those in it, in which no process is left.
func removeCgroups(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		var groups []string
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				groups = append(groups, path)
			}
			return err
		})
		errs = append(errs, err)
		for _, group := range slices.Backward(groups) {
			errs = append(errs, os.Remove(group))
		}
	}
	return errors.Join(errs...)
}

// disable takes back the controllers that were not enabled before: what is made above, the kubelet and runc enable them. One that somebody
// else has taken up meanwhile stays.
func disable(before []string) error {
	now, err := words(enabled)
	errs := []error{err}
	for _, one := range now {
		if slices.Contains(before, one) {
			continue
		}
		if err := os.WriteFile(enabled, []byte("-"+one), 0o644); !errors.Is(err, syscall.EBUSY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// tunables are those of the machine that the kubelet wants, and sets where they differ (kubelet 1.37,
// pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables): it gets to see these values instead.
var tunables = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// machine is what of it a node could change.
type machine struct {
	interfaces  map[string]bool
	paths       map[string]bool
	settings    map[string]string
	controllers []string // that are enabled, under version 2 of control groups
}

// look tells how the machine is.
func look() (machine, error) {
	m := machine{interfaces: map[string]bool{}, paths: map[string]bool{}, settings: map[string]string{}}
	var err error
	if m.controllers, err = words(enabled); err != nil {
		return m, err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return m, err
	}
	for _, i := range interfaces {
		m.interfaces[i.Name] = true
	}
	// Where the programs would write if nothing covered it.
	for _, pattern := range []string{
		"/etc/cni", "/etc/containerd", "/etc/containers", "/etc/kubernetes", "/opt/cni", "/opt/containerd", "/usr/libexec/kubernetes",
		"/run/containers", "/run/netns/*", "/run/containerd*", "/run/xtables.lock", "/var/cache/containers", "/var/lib/cni",
		"/var/lib/containers", "/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods", "/var/log/containers",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return m, err
		}
		for _, path := range found {
			m.paths[path] = true
		}
	}
	for name := range tunables {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			return m, err
		}
		m.settings[name] = strings.TrimSpace(string(value))
	}
	return m, nil
}

// left says what a run left: what was not there before, mounts that bear its name, and processes in its namespaces.
func (m machine) left(name string, namespaces []string) error {
	now, err := look()
	if err != nil {
		return err
	}
	var left []string
	for _, added := range []struct {
		what        string
		before, now map[string]bool
	}{{"interface", m.interfaces, now.interfaces}, {"path", m.paths, now.paths}} {
		for _, one := range slices.Sorted(maps.Keys(added.now)) {
			if !added.before[one] {
				left = append(left, added.what+" "+one)
			}
		}
	}
	for setting, value := range now.settings {
		if value != m.settings[setting] {
			left = append(left, fmt.Sprintf("%s, which was %s, is %s", setting, m.settings[setting], value))
		}
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range bytes.Lines(mountinfo) {
		if bytes.Contains(line, []byte(name)) {
			left = append(left, "mount "+string(bytes.TrimSpace(line)))
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/*")
	if err != nil {
		return err
	}
	for _, process := range processes {
		// One that has ended meanwhile is in none.
		if namespace, err := os.Readlink(process); err == nil && slices.Contains(namespaces, namespace) {
			left = append(left, process)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("the node left something behind: %s", strings.Join(left, "; "))
	}
	return nil
}
