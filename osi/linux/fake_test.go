package linux

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// madeUp is the description of a kernel that nobody has built: the members that
// the provider asks for lie one behind the other.
type madeUp struct {
	fields  map[string]member
	symbols map[string]arch.GVA
	perCPU  map[string][]arch.GVA
}

func (f *madeUp) Field(structName, path string) (member, error) {
	if m, ok := f.fields[structName+"."+path]; ok {
		return m, nil
	}
	return member{}, fmt.Errorf("no field %s.%s", structName, path)
}

func (f *madeUp) Symbol(name string) (arch.GVA, error) {
	if a, ok := f.symbols[name]; ok {
		return a, nil
	}
	return 0, fmt.Errorf("no symbol %s", name)
}

func (f *madeUp) Timekeeper() (sequence, timekeeper arch.GVA, err error) {
	at, err := f.Symbol("tk_core")
	return at, at + 8, err
}

func (f *madeUp) PerCPU(name string, cpu int) (arch.GVA, error) {
	if all := f.perCPU[name]; cpu < len(all) {
		return all[cpu], nil
	}
	return 0, fmt.Errorf("no per-cpu %s of %d", name, cpu)
}

// sizes are the sizes of members that are not pointers or long.
var sizes = map[string]uint64{
	"task_struct.flags": 4, "task_struct.exit_state": 4, "task_struct.cpu": 4, "task_struct.pid": 4, "task_struct.tgid": 4,
	"task_struct.__state": 4, "task_struct.comm": 16, "task_struct.tasks": 16, "task_struct.thread_node": 16,
	"signal_struct.nr_threads": 4, "signal_struct.live": 4, "signal_struct.thread_head": 16, "cred.uid": 4, "cred.gid": 4,
	"file.f_flags": 4, "file.f_mode": 4, "fdtable.max_fds": 4, "dentry.d_name.len": 4, "dentry.d_shortname": 40, "dentry.d_iname": 32,
	"module.state": 4, "module.list": 16, "module.name": 56, "module.core_layout.size": 4, "module.init_layout.size": 4,
	"xa_node.shift": 4, "pid.level": 4, "cgroup_root.hierarchy_id": 4, "cgroup_root.subsys_mask": 4, "css_set.cgrp_links": 16, "cgrp_cset_link.cgrp_link": 16, "task_struct.pid_links": 64,
	"worker.desc": 32, "vm_area_struct.vm_rb": 24, "timekeeper": 64, "mount.mnt": 32,
}

// fixed are the members whose place matters: inside of others, or by the
// format of the maple tree.
var fixed = map[string]member{
	"list_head.next": {0, 8}, "rb_node.rb_right": {8, 8}, "rb_node.rb_left": {16, 8}, "list_head.prev": {8, 8}, "mount.mnt.mnt_root": {64, 8}, "mount.mnt": {64, 32},
	"maple_range_64.pivot": {8, 120}, "maple_range_64.slot": {128, 128},
	"maple_arange_64.pivot": {8, 72}, "maple_arange_64.slot": {80, 80},
	"module.mem": {200, 72}, "module.mem[0].base": {200, 8}, "module.mem[0].size": {212, 4}, "module.mem[1].base": {224, 8},
	"xa_node.slots": {40, 512}, "pid.numbers": {128, 0}, "cgroup_root.name": {500, 64},
	"anon_vma_name.name": {4, 0},
}

// oldOnly and newOnly are members that kernels from 6.4 on no longer, and
// kernels before 6.1 not yet, have.
var (
	oldOnly = []string{"mm_struct.mmap", "mm_struct.mm_rb", "vm_area_struct.vm_next", "vm_area_struct.vm_prev", "vm_area_struct.vm_rb", "module.core_layout", "module.init_layout", "task_struct.state", "dentry.d_iname"}
	newOnly = []string{"mm_struct.mm_mt", "maple_", "module.mem", "task_struct.__state", "task_struct.worker_private", "kthread.full_name", "dentry.d_shortname", "backing_file", "vm_area_struct.anon_name", "vm_area_struct.shared", "pcpu_hot"}
)

// makeUp describes a kernel: of today, or from before 6.1.
func makeUp(old bool) *madeUp {
	absent := oldOnly
	if old {
		absent = newOnly
	}
	f := &madeUp{fields: map[string]member{}, symbols: map[string]arch.GVA{}, perCPU: map[string][]arch.GVA{}}
	for _, g := range new(layout).groups() {
		name, next := strings.TrimPrefix(g.structName, "?"), uint64(16)
		for _, r := range g.rows {
			for path := range strings.SplitSeq(strings.TrimPrefix(r.names, "?"), "|") {
				full := name + "." + path
				if hasPrefix(full, absent) {
					continue
				}
				size := max(sizes[full], 8) // members are 8-aligned, as pointers are
				if m, ok := fixed[full]; ok {
					f.fields[full] = m
				} else if sizes[full] == 4 {
					f.fields[full] = member{next, 4}
				} else {
					f.fields[full] = member{next, size}
				}
				next += size
				break
			}
		}
	}
	if !old {
		f.fields["anon_vma_name.name"] = fixed["anon_vma_name.name"]
	}
	f.fields["pid.numbers"] = fixed["pid.numbers"]
	return f
}

func hasPrefix(s string, all []string) bool {
	for _, p := range all {
		if strings.HasPrefix(s, p) && (strings.HasSuffix(p, "_") || len(s) == len(p) || strings.ContainsAny(s[len(p):len(p)+1], ".[")) {
			return true
		}
	}
	return false
}

// slab is where the made-up kernel's structures lie.
const slab = arch.GVA(0xffff888000000000)

// structSize is what every structure gets.
const structSize = 1024

// world is a guest with a kernel that a test fills.
type world struct {
	t      testing.TB
	b      *vitrinetest.Backend
	s      *vitrinetest.Space
	f      *madeUp
	next   arch.GVA
	mapped arch.GVA
	init   arch.GVA // init_task
	rootFS place
	spaces map[arch.GVA]*vitrinetest.Space // by mm_struct
}

// place is a mounted file system: the mount, its vfsmount and its root.
type place struct{ mount, mnt, root arch.GVA }

// newWorld makes a guest with init_task alone, running on one processor.
func newWorld(t testing.TB, old bool) *world {
	t.Helper()
	return newWorldOf(t, old, arch.Paging4Level)
}

// newARMWorld makes a guest of arm64, whose processor's task is told by its run
// queue. The guest does not say what its processor is, as some images do not.
func newARMWorld(t testing.TB) *world {
	t.Helper()
	w := newWorldOf(t, false, arch.PagingARM48)
	delete(w.f.perCPU, "current_task")
	cfs, rq := w.alloc(), w.alloc()
	w.set("task_struct", w.init, "se.cfs_rq", cfs)
	w.set("cfs_rq", cfs, "rq", rq)
	w.set("rq", rq, "curr", w.init)
	return w
}

func newWorldOf(t testing.TB, old bool, mode arch.PagingMode) *world {
	t.Helper()
	w := &world{t: t, b: vitrinetest.New(), f: makeUp(old), next: slab, mapped: slab, spaces: map[arch.GVA]*vitrinetest.Space{}}
	w.b.SetLog(false)
	w.s = w.b.NewSpace(mode)
	w.init = w.alloc()
	w.f.symbols["init_task"] = w.init
	w.empty(w.field("task_struct", w.init, "tasks"))
	w.fillTask(w.init, 0, 0, "swapper/0")
	head := w.alloc()
	w.f.symbols["modules"] = head
	w.empty(head)
	slot := w.alloc()
	w.f.perCPU["current_task"] = []arch.GVA{slot}
	w.s.PutUint64(slot, uint64(w.init))
	w.rootFS = w.mountFS("rootfs", place{}, 0)
	return w
}

// open opens the system on the world.
func (w *world) open() *system {
	w.t.Helper()
	g := w.b.Guest()
	s, err := open(w.t.Context(), g, w.f, g.AddressSpace(w.s.Mode(), w.s.Root()))
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// alloc returns fresh zeroed kernel memory for one structure.
func (w *world) alloc() arch.GVA {
	at := w.next
	w.next += structSize
	for w.mapped < w.next {
		w.s.Map(w.mapped, vitrinetest.Page4K, vitrinetest.Writable)
		w.mapped += vitrinetest.Page4K
	}
	return at
}

// str returns the address of a new string in kernel memory.
func (w *world) str(s string) arch.GVA {
	at := w.alloc()
	w.s.PutString(at, s)
	return at
}

// field returns the address of a member.
func (w *world) field(structName string, at arch.GVA, path string) arch.GVA {
	m, ok := w.f.fields[structName+"."+path]
	if !ok {
		w.t.Fatalf("the made-up kernel has no %s.%s", structName, path)
	}
	return at + arch.GVA(m.off)
}

// set stores a number, or an address, in a member.
func (w *world) set(structName string, at arch.GVA, path string, v any) {
	var n uint64
	switch v := v.(type) {
	case arch.GVA:
		n = uint64(v)
	case int:
		n = uint64(v)
	case uint64:
		n = v
	default:
		w.t.Fatalf("set %s.%s to a %T", structName, path, v)
	}
	w.s.PutUint(w.field(structName, at, path), n, int(min(w.f.fields[structName+"."+path].size, 8)))
}

// empty makes an empty list.
func (w *world) empty(head arch.GVA) {
	w.s.PutUint64(head, uint64(head))
	w.s.PutUint64(head+8, uint64(head))
}

// push puts a link at the end of a list.
func (w *world) push(head, link arch.GVA) {
	last := w.s.Uint64(head + 8)
	w.s.PutUint64(link, uint64(head))
	w.s.PutUint64(link+8, last)
	w.s.PutUint64(arch.GVA(last), uint64(link))
	w.s.PutUint64(head+8, uint64(link))
}

// poison is what the kernel leaves in the links of what it takes off a list.
const poison = 0xdead000000000122

// pull takes a link off its list.
func (w *world) pull(link arch.GVA) {
	next, prev := w.s.Uint64(link), w.s.Uint64(link+8)
	w.s.PutUint64(arch.GVA(prev), next)
	w.s.PutUint64(arch.GVA(next)+8, prev)
	w.s.PutUint64(link+8, poison)
}

func (w *world) fillTask(at arch.GVA, pid, tgid int, comm string) {
	w.set("task_struct", at, "pid", pid)
	w.set("task_struct", at, "tgid", tgid)
	w.s.PutString(w.field("task_struct", at, "comm"), comm)
	w.set("task_struct", at, "group_leader", at)
	w.set("task_struct", at, "real_parent", w.init)
	cred := w.alloc()
	w.set("task_struct", at, "real_cred", cred)
	signal := w.alloc()
	w.set("task_struct", at, "signal", signal)
	w.set("signal_struct", signal, "nr_threads", 1)
	w.set("signal_struct", signal, "live", 1)
	w.empty(w.field("signal_struct", signal, "thread_head"))
	w.push(w.field("signal_struct", signal, "thread_head"), w.field("task_struct", at, "thread_node"))
}

// process adds a process without memory or files.
func (w *world) process(pid int, comm string) arch.GVA {
	at := w.alloc()
	w.fillTask(at, pid, pid, comm)
	w.push(w.field("task_struct", w.init, "tasks"), w.field("task_struct", at, "tasks"))
	return at
}

// ptr reads a pointer member back.
func (w *world) ptr(structName string, at arch.GVA, path string) arch.GVA {
	return arch.GVA(w.s.Uint64(w.field(structName, at, path)))
}

// thread adds a thread to a process.
func (w *world) thread(leader arch.GVA, tid int, comm string) arch.GVA {
	at := w.alloc()
	w.fillTask(at, tid, int(uint32(w.ptr("task_struct", leader, "tgid"))), comm)
	w.set("task_struct", at, "group_leader", leader)
	signal := w.ptr("task_struct", leader, "signal")
	w.set("task_struct", at, "signal", signal)
	w.push(w.field("signal_struct", signal, "thread_head"), w.field("task_struct", at, "thread_node"))
	w.set("signal_struct", signal, "nr_threads", int(uint32(w.ptr("signal_struct", signal, "nr_threads")))+1)
	return at
}

// memory gives a process an address space, and returns its mm_struct and tables.
func (w *world) memory(task arch.GVA) (arch.GVA, *vitrinetest.Space) {
	user := w.b.NewSpace(w.s.Mode().User())
	if user.Mode() == w.s.Mode() {
		user.Share(w.s)
	}
	pgd := w.next &^ 0xfff
	pgd += vitrinetest.Page4K
	w.next = pgd + vitrinetest.Page4K
	w.mapped = w.next
	w.s.MapTo(pgd, user.Root(), vitrinetest.Page4K, vitrinetest.Writable)
	mm := w.alloc()
	w.set("mm_struct", mm, "pgd", pgd)
	w.spaces[mm] = user
	w.set("task_struct", task, "mm", mm)
	return mm, user
}

// mountFS mounts a new file system of a type on a dentry of another, or as the
// root of all.
func (w *world) mountFS(fsType string, on place, at arch.GVA) place {
	sb, typ := w.alloc(), w.alloc()
	w.set("super_block", sb, "s_type", typ)
	w.set("file_system_type", typ, "name", w.str(fsType))
	p := place{mount: w.alloc()}
	p.mnt = w.field("mount", p.mount, "mnt")
	p.root = w.alloc()
	w.set("dentry", p.root, "d_parent", p.root)
	w.set("dentry", p.root, "d_sb", sb)
	w.nameDentry(p.root, "/")
	w.set("mount", p.mount, "mnt.mnt_root", p.root)
	w.set("mount", p.mount, "mnt_parent", p.mount)
	if on.mount != 0 {
		w.set("mount", p.mount, "mnt_parent", on.mount)
		w.set("mount", p.mount, "mnt_mountpoint", at)
	}
	return p
}

// nameDentry stores a name: in the dentry where it fits, else outside.
func (w *world) nameDentry(d arch.GVA, name string) {
	inline := "d_shortname"
	if _, ok := w.f.fields["dentry.d_shortname"]; !ok {
		inline = "d_iname"
	}
	at := w.field("dentry", d, inline)
	if uint64(len(name)) >= w.f.fields["dentry."+inline].size {
		at = w.alloc()
	}
	w.s.PutString(at, name)
	w.set("dentry", d, "d_name.name", at)
	w.set("dentry", d, "d_name.len", len(name))
}

// dentry makes a directory entry under another, with an inode.
func (w *world) dentry(parent arch.GVA, name string, ino int) arch.GVA {
	d := w.alloc()
	w.set("dentry", d, "d_parent", parent)
	w.set("dentry", d, "d_sb", w.ptr("dentry", parent, "d_sb"))
	w.set("dentry", d, "d_hash.pprev", w.next) // anything: it is hashed
	w.nameDentry(d, name)
	inode := w.alloc()
	w.set("inode", inode, "i_ino", ino)
	w.set("dentry", d, "d_inode", inode)
	return d
}

// path makes the entries of an absolute path in the root file system.
func (w *world) path(path string, ino int) arch.GVA {
	at := w.rootFS.root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		at = w.dentry(at, part, ino)
	}
	return at
}

// file makes an open file.
func (w *world) file(p place, dentry arch.GVA, pos int, flags int) arch.GVA {
	f := w.alloc()
	w.set("file", f, "f_path.mnt", p.mnt)
	w.set("file", f, "f_path.dentry", dentry)
	w.set("file", f, "f_inode", w.ptr("dentry", dentry, "d_inode"))
	w.set("file", f, "f_pos", pos)
	w.set("file", f, "f_flags", flags)
	return f
}

// clock sets the time of boot.
func (w *world) clock(boot time.Time) arch.GVA {
	at := w.alloc()
	w.f.symbols["tk_core"] = at
	tk := at + 8
	const asleep = 5 * time.Second
	real := boot.UnixNano() + int64(asleep)
	w.set("timekeeper", tk, "offs_real", uint64(real))
	w.set("timekeeper", tk, "offs_boot", uint64(asleep))
	w.set("timekeeper", tk, "ktime_sec", 100)
	w.set("timekeeper", tk, "xtime_sec", uint64(100+real/1e9))
	return at
}

// collectErr splits a list into its entries and its errors.
func collectErr[T any](seq func(func(T, error) bool)) (out []T, errs []error) {
	for v, err := range seq {
		if err != nil {
			errs = append(errs, err)
		} else {
			out = append(out, v)
		}
	}
	return out, errs
}

func handleOf(task arch.GVA) osi.Handle { return osi.Handle{Task: task} }

// spaceOf returns the page tables of an address space that memory has made.
func (w *world) spaceOf(mm arch.GVA) *vitrinetest.Space { return w.spaces[mm] }
