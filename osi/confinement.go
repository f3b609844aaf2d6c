package osi

import (
	"context"
	"errors"
	"fmt"
	"regexp"
)

// EnvironSource is implemented by systems that can read environments; programs
// use Environ.
type EnvironSource interface {
	Environ(ctx context.Context, h Handle) ([]string, error)
}

// ConfinementSource is implemented by systems that confine processes; programs
// use ConfinementOf.
type ConfinementSource interface {
	Confinement(ctx context.Context, h Handle) (Confinement, error)
}

// Environ returns the environment of a process, "NAME=value" each, as it was
// given at its last exec and as far as it has not overwritten that. It returns
// ErrNoUserMemory for a kernel thread. Strings beside an error are those that
// could be read. A provider that does not offer it gives errors.ErrUnsupported.
func Environ(ctx context.Context, sys System, h Handle) ([]string, error) {
	if s, ok := sys.(EnvironSource); ok {
		return s.Environ(ctx, h)
	}
	return nil, fmt.Errorf("read environment: the provider %q does not offer it: %w", sys.OS(), errors.ErrUnsupported)
}

// Confinement is what a process is confined to.
type Confinement struct {
	Root       string      // its root directory, from the root of its mount namespace
	Namespaces []Namespace // by kind
	Cgroups    []Cgroup    // by hierarchy, the unified one first
	Container  *Container  // the container that its control groups tell of, nil outside of any
}

// Namespace is one namespace that a process is in.
type Namespace struct {
	Kind    string // "cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"
	Inode   uint64 // by which /proc/PID/ns names it
	Initial bool   // it is the one that the system began with
}

// Cgroup is a process's place in one hierarchy of control groups, as a line of
// /proc/PID/cgroup.
type Cgroup struct {
	Hierarchy   int      // its number, 0 for the unified one (version 2)
	Controllers []string // or "name=..." of one without any; empty for the unified one
	Path        string   // from the hierarchy's root
}

// ConfinementOf returns the root directory, namespaces and control groups of a
// process. What could not be read is missing beside the error. A provider that
// does not offer it gives errors.ErrUnsupported.
func ConfinementOf(ctx context.Context, sys System, h Handle) (Confinement, error) {
	if s, ok := sys.(ConfinementSource); ok {
		return s.Confinement(ctx, h)
	}
	return Confinement{}, fmt.Errorf("read confinement: the provider %q does not offer it: %w", sys.OS(), errors.ErrUnsupported)
}

// Container is a container by the names that its runtime gives control groups.
type Container struct {
	Runtime string // "docker", "podman", "kubernetes", "lxc"
	ID      string // id, of lxc the name
	Pod     string // uid of the Kubernetes pod, empty elsewhere
}

const (
	hexID  = `([0-9a-f]{64})`
	podUID = `pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})`
)

// containerPaths are the shapes of control groups, those within others first.
var containerPaths = []struct {
	runtime string
	shape   *regexp.Regexp
	id, pod int // numbers of the submatches, 0 for none
}{
	// systemd driver: kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope;
	// cgroupfs driver: kubepods/burstable/pod<uid>/<id>.
	{"kubernetes", regexp.MustCompile(`kubepods.*` + podUID + `(?:\.slice)?/(?:(?:cri-containerd|crio|docker)-)?` + hexID + `(?:\.scope)?(?:/|$)`), 2, 1},
	{"kubernetes", regexp.MustCompile(`kubepods.*` + podUID + `(?:\.slice)?(?:/|$)`), 0, 1},
	{"docker", regexp.MustCompile(`/docker[-/]` + hexID + `(?:\.scope)?(?:/|$)`), 1, 0},
	{"podman", regexp.MustCompile(`/libpod-` + hexID + `(?:\.scope)?(?:/|$)`), 1, 0},
	{"lxc", regexp.MustCompile(`/lxc\.payload[./]([^/]+)(?:/|$)`), 1, 0},
	{"lxc", regexp.MustCompile(`/lxc/([^/]+)(?:/|$)`), 1, 0},
}

// ContainerOf recognises the path of a container's control group. It goes by
// names only: whoever may make control groups in the guest can make such ones.
func ContainerOf(cgroupPath string) (Container, bool) {
	for _, c := range containerPaths {
		m := c.shape.FindStringSubmatch(cgroupPath)
		if m == nil {
			continue
		}
		out := Container{Runtime: c.runtime}
		if c.id > 0 {
			out.ID = m[c.id]
		}
		if c.pod > 0 {
			out.Pod = m[c.pod]
		}
		return out, true
	}
	return Container{}, false
}
