package linux

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

var (
	_ osi.EnvironSource     = (*system)(nil)
	_ osi.ConfinementSource = (*system)(nil)
)

// confineLayout is the part of layout for ids, namespaces and control groups. All
// of it may be absent.
type confineLayout struct {
	pidNSShape, xaShape, pidShape, proxyShape, inumShape        shape
	cssShape, linkShape, cgroupShape, rootShape, kernfs, subsys shape

	userNS                   member // of cred
	xaHead                   member // of pid_namespace
	xaShift, xaSlots         member
	pidTasks, pidLevel       member
	pidNumbers               uint64 // of struct pid: a flexible array since 6.5
	namespaces               [6]member
	inums                    [8]member
	cssDefault, cssLinks     member
	linkCgroup, linkCgrpLink member
	cgroupNode, cgroupRoot   member
	rootName, rootMask       member
	rootID                   member
	nodeName, nodeParent     member
	subsysName               member
	cssSubsys, stateSubsys   member // where there is no symbol of their array
}

// proxied are the namespaces that hang in nsproxy: kind, its member there and
// the structure that it points to.
var proxied = [6]struct{ kind, member, structName string }{
	{"cgroup", "cgroup_ns", "cgroup_namespace"}, {"ipc", "ipc_ns", "ipc_namespace"}, {"mnt", "mnt_ns", "mnt_namespace"},
	{"net", "net_ns", "net"}, {"time", "time_ns", "time_namespace"}, {"uts", "uts_ns", "uts_namespace"},
}

// Places of the others in inums.
const (
	inumPID = len(proxied) + iota
	inumUser
)

func (c *confineLayout) groups() []group {
	gs := []group{
		{"?pid_namespace", &c.pidNSShape, []row{{&c.xaHead, "?idr.idr_rt.xa_head"}, {&c.inums[inumPID], "?ns.inum"}}},
		{"?user_namespace", &c.inumShape, []row{{&c.inums[inumUser], "?ns.inum"}}},
		{"?xa_node", &c.xaShape, []row{{&c.xaShift, "?shift"}, {&c.xaSlots, "?slots"}}},
		{"?pid", &c.pidShape, []row{{&c.pidTasks, "?tasks"}, {&c.pidLevel, "?level"}}},
		{"?css_set", &c.cssShape, []row{{&c.cssDefault, "?dfl_cgrp"}, {&c.cssLinks, "?cgrp_links"}}},
		{"?cgrp_cset_link", &c.linkShape, []row{{&c.linkCgroup, "?cgrp"}, {&c.linkCgrpLink, "?cgrp_link"}}},
		{"?cgroup", &c.cgroupShape, []row{{&c.cgroupNode, "?kn"}, {&c.cgroupRoot, "?root"}}},
		{"?cgroup_root", &c.rootShape, []row{{&c.rootName, "?name"}, {&c.rootMask, "?subsys_mask"}, {&c.rootID, "?hierarchy_id"}}},
		{"?kernfs_node", &c.kernfs, []row{{&c.nodeName, "?name"}, {&c.nodeParent, "?__parent|parent"}}}, // renamed in 6.15
		{"?cgroup_subsys", &c.subsys, []row{{&c.subsysName, "?legacy_name|name"}}},
	}
	proxy := group{"?nsproxy", &c.proxyShape, nil}
	for i, p := range proxied {
		proxy.rows = append(proxy.rows, row{&c.namespaces[i], "?" + p.member})
		gs = append(gs, group{"?" + p.structName, &shape{}, []row{{&c.inums[i], "?ns.inum"}}})
	}
	return append(gs, proxy)
}

// resolve finds a flexible array, whose size is zero in the type information, and
// what is not part of a read.
func (c *confineLayout) resolve(k facts) {
	c.cssSubsys, _ = firstField(k, "css_set", "subsys")
	c.stateSubsys, _ = firstField(k, "cgroup_subsys_state", "ss")
	if m, err := k.Field("pid", "numbers"); err == nil && m.off <= maxShape {
		c.pidNumbers = m.off
	}
}

// Environ implements osi.EnvironSource. It corresponds to /proc/PID/environ: the
// strings between env_start and env_end.
func (s *system) Environ(ctx context.Context, h osi.Handle) ([]string, error) {
	mm, err := s.mmOf(ctx, h)
	if err != nil {
		return nil, err
	}
	env := mm.layout.Env
	if env.Start == 0 || env.End <= env.Start {
		return nil, nil
	}
	root, err := s.kernel.Translate(mm.pgd)
	if err != nil {
		return nil, fmt.Errorf("read environment: %w", err)
	}
	b, err := s.readUser(root, env.Start, min(env.Size(), maxEnv))
	if err != nil {
		err = fmt.Errorf("read environment: %w", err)
	}
	return split(b), err
}

// maxEnv bounds an environment: a quarter of the default stack limit, as the
// kernel does with it and the arguments together.
const maxEnv = 2 << 20

// Confinement implements osi.ConfinementSource. It corresponds to /proc/PID/root,
// ns and cgroup as a reader outside of any container sees them.
func (s *system) Confinement(ctx context.Context, h osi.Handle) (osi.Confinement, error) {
	t, err := s.leaderOf(ctx, h)
	if err != nil {
		return osi.Confinement{}, err
	}
	var c osi.Confinement
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("read %s of process %d: %w", what, t.tgid, err))
		}
	}
	as := s.fresh()
	c.Root, err = s.rootOf(as, &t)
	note("root directory", err)
	c.Namespaces, err = s.namespaces(&t)
	note("namespaces", err)
	c.Cgroups, err = s.cgroupsOf(ctx, &t)
	note("control groups", err)
	for _, g := range c.Cgroups {
		if found, ok := osi.ContainerOf(g.Path); ok {
			c.Container = &found
			break
		}
	}
	return c, errors.Join(errs...)
}

func (s *system) rootOf(as *vitrine.AddressSpace, t *task) (string, error) {
	if t.fs == 0 {
		return "", nil // it has ended
	}
	r, err := load(as, &s.l.fs.shape, t.fs, nil)
	if err != nil {
		return "", err
	}
	return s.newResolver(as).path(pathKey{r.ptr(s.l.fs.rootMnt), r.ptr(s.l.fs.rootDentry)})
}

// namespaces lists those of a task; a task that has ended has few left.
func (s *system) namespaces(t *task) ([]osi.Namespace, error) {
	first, err := s.readTask(s.initTask)
	if err != nil {
		return nil, err
	}
	var out []osi.Namespace
	l := &s.l.confine
	add := func(kind string, at, initial arch.GVA, inum member) error {
		if at == 0 || !inum.ok() {
			return nil
		}
		if err := kernelPointer(at); err != nil {
			return err
		}
		ino, err := s.kernel.ReadUint32(at + arch.GVA(inum.off))
		out = append(out, osi.Namespace{Kind: kind, Inode: uint64(ino), Initial: at == initial})
		return err
	}
	var errs []error
	if t.nsproxy != 0 {
		mine, err1 := load(s.kernel, &l.proxyShape, t.nsproxy, nil)
		init, err2 := load(s.kernel, &l.proxyShape, first.nsproxy, nil)
		errs = append(errs, err1, err2)
		for i := range proxied {
			errs = append(errs, add(proxied[i].kind, mine.ptr(l.namespaces[i]), init.ptr(l.namespaces[i]), l.inums[i]))
		}
	}
	ns, err := s.pidNamespace(t)
	errs = append(errs, err, add("pid", ns, s.pidNS, l.inums[inumPID]))
	user, err1 := s.userNamespace(t)
	init, err2 := s.userNamespace(&first)
	errs = append(errs, err1, err2, add("user", user, init, l.inums[inumUser]))
	slices.SortFunc(out, func(a, b osi.Namespace) int { return strings.Compare(a.Kind, b.Kind) })
	return out, errors.Join(errs...)
}

// pidNamespace returns the namespace that gave the task its innermost id, 0 for a
// task that has ended.
func (s *system) pidNamespace(t *task) (arch.GVA, error) {
	l := &s.l.confine
	if t.thread == 0 || l.pidNumbers == 0 || !l.pidLevel.ok() {
		return 0, nil
	}
	r, err := load(s.kernel, &l.pidShape, t.thread, nil)
	if err != nil {
		return 0, err
	}
	level := r.uint(l.pidLevel) & 0xffffffff
	if level > 32 { // MAX_PID_NS_LEVEL
		return 0, fmt.Errorf("pid namespace at level %d: %w", level, osi.ErrCorrupt)
	}
	// struct upid: the number, padded to a pointer, then the namespace.
	return s.kernel.ReadPointer(t.thread + arch.GVA(l.pidNumbers) + s.words(2*int(level)+1))
}

func (s *system) userNamespace(t *task) (arch.GVA, error) {
	if !s.l.confine.userNS.ok() {
		return 0, nil
	}
	if err := kernelPointer(t.cred); err != nil {
		return 0, err
	}
	return s.kernel.ReadPointer(t.cred + arch.GVA(s.l.confine.userNS.off))
}

// maxHierarchies bounds the hierarchies of control groups: one for each
// controller, and some that have only a name.
const maxHierarchies = 256

// cgroupsOf lists a task's control groups, by css_set->cgrp_links.
func (s *system) cgroupsOf(ctx context.Context, t *task) ([]osi.Cgroup, error) {
	l := &s.l.confine
	if t.cgroups == 0 || !l.cssLinks.ok() || !l.linkCgrpLink.ok() || !l.cgroupNode.ok() || !l.rootID.ok() || !l.nodeParent.ok() {
		return nil, nil
	}
	if err := kernelPointer(t.cgroups); err != nil {
		return nil, err
	}
	links, err := s.collect(ctx, s.kernel, t.cgroups+arch.GVA(l.cssLinks.off), l.linkCgrpLink.off, maxHierarchies)
	errs := []error{err}
	var out []osi.Cgroup
	for _, at := range links {
		g, err := s.cgroup(at)
		errs = append(errs, err)
		if err == nil {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b osi.Cgroup) int { return a.Hierarchy - b.Hierarchy })
	return out, errors.Join(errs...)
}

func (s *system) cgroup(link arch.GVA) (osi.Cgroup, error) {
	l := &s.l.confine
	r, err := load(s.kernel, &l.linkShape, link, nil)
	if err != nil {
		return osi.Cgroup{}, err
	}
	if r, err = load(s.kernel, &l.cgroupShape, r.ptr(l.linkCgroup), nil); err != nil {
		return osi.Cgroup{}, err
	}
	node := r.ptr(l.cgroupNode)
	if r, err = load(s.kernel, &l.rootShape, r.ptr(l.cgroupRoot), nil); err != nil {
		return osi.Cgroup{}, err
	}
	g := osi.Cgroup{Hierarchy: r.int(l.rootID)}
	if g.Hierarchy != 0 {
		g.Controllers = s.controllers(r.uint(l.rootMask) & 0xffffffff)
		if name := r.str(l.rootName); name != "" {
			g.Controllers = append(g.Controllers, "name="+name)
		}
	}
	g.Path, err = s.kernfsPath(node)
	return g, err
}

// subsystem returns the address of controller n: by the array cgroup_subsys, or
// in kernels without symbols of variables by the first task's group.
func (s *system) subsystem(n int) (arch.GVA, error) {
	if s.subsystems != 0 {
		return s.kernel.ReadPointer(s.subsystems + s.words(n))
	}
	l := &s.l.confine
	if !l.cssSubsys.ok() || uint64(s.words(n)) >= l.cssSubsys.size || !l.stateSubsys.ok() {
		return 0, nil
	}
	first, err := s.readTask(s.initTask)
	if err != nil || kernelPointer(first.cgroups) != nil {
		return 0, err
	}
	state, err := s.kernel.ReadPointer(first.cgroups + arch.GVA(l.cssSubsys.off) + s.words(n))
	if err != nil || kernelPointer(state) != nil {
		return 0, err
	}
	return s.kernel.ReadPointer(state + arch.GVA(l.stateSubsys.off))
}

// controllers names the bits of a mask.
func (s *system) controllers(mask uint64) []string {
	var out []string
	for ; mask != 0; mask &= mask - 1 {
		at, err := s.subsystem(bits.TrailingZeros64(mask))
		if err == nil && kernelPointer(at) == nil {
			at, err = s.kernel.ReadPointer(at + arch.GVA(s.l.confine.subsysName.off))
		}
		if err != nil || kernelPointer(at) != nil {
			continue
		}
		if name, err := s.kernel.ReadString(at, 32); err == nil {
			out = append(out, name)
		}
	}
	return out
}

// kernfsPath returns the path of a node in its tree, whose root has no parent.
func (s *system) kernfsPath(node arch.GVA) (string, error) {
	l := &s.l.confine
	var parts []string
	for length := 0; ; {
		r, err := load(s.kernel, &l.kernfs, node, nil)
		if err != nil {
			return "", err
		}
		parent := r.ptr(l.nodeParent)
		if parent == 0 {
			return join(parts), nil
		}
		name, err := s.kernel.ReadString(r.ptr(l.nodeName), maxName)
		if err != nil {
			return "", err
		}
		if length += len(name) + 1; length > maxPath || len(parts) > maxComponents {
			return "", fmt.Errorf("path longer than %d bytes: %w", maxPath, osi.ErrCorrupt)
		}
		parts, node = append(parts, name), parent
	}
}
