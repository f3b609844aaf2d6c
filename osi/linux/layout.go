package linux

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// facts is what the provider asks of the kernel's description of itself. It is
// what *kernel.Kernel offers, cut down so that tests can make it up.
type facts interface {
	// Field returns offset and size of a member; see kernel.Types.Field.
	Field(structName, path string) (member, error)
	// Symbol returns the address of a kernel symbol.
	Symbol(name string) (arch.GVA, error)
	// PerCPU returns the address of a processor's instance of a variable.
	PerCPU(name string, cpu int) (arch.GVA, error)
	// Timekeeper returns the addresses of the clock's sequence count and of the clock.
	Timekeeper() (sequence, timekeeper arch.GVA, err error)
}

// member is where a member lies in its structure. The zero member is absent.
type member struct{ off, size uint64 }

func (m member) ok() bool { return m.size != 0 }

func (m member) end() uint64 { return m.off + m.size }

// shape is the part of a structure that holds all members which the provider
// reads, so that one read fetches them.
type shape struct {
	name   string
	lo, hi uint64
}

func (s *shape) add(m member) {
	if s.hi == 0 {
		s.lo = m.off
	}
	s.lo, s.hi = min(s.lo, m.off), max(s.hi, m.end())
}

// maxShape bounds what a guest's type information can make one read cost. The
// largest structure here, task_struct, has 10 KiB in Debian's kernels.
const maxShape = 64 << 10

// layout is every offset that the provider uses, resolved once by Open. The
// names are the kernel's.
type layout struct {
	list struct {
		shape
		next, prev member
	}
	task struct {
		shape
		state, exitState, flags, cpu       member
		tasks, threadNode                  member
		pid, tgid, realParent, leader      member
		comm, realCred, mm, startBoottime  member
		signal, files, fs, kthread         member
		pidLinks, thread, nsproxy, cgroups member
	}
	signal struct {
		shape
		nrThreads, threadHead, live member
	}
	cred struct {
		shape
		uid, gid member
	}
	mm struct {
		shape
		pgd, exeFile                           member
		startCode, endCode, startData, endData member
		startBrk, brk, startStack, taskSize    member
		argStart, argEnd, envStart, envEnd     member
		maRoot                                 member // 6.1 and later
		mmap, rbNode                           member // before
	}
	vma struct {
		shape
		start, end, mm, flags, pgoff, file, ops, private member
		anonName, shared                                 member // CONFIG_ANON_VMA_NAME, 5.17
		next, prev, rb                                   member // before 6.1
	}
	rb struct {
		shape
		left, right member
	}
	maple struct {
		shape
		pivots64, slots64, pivotsA, slotsA member
	}
	file struct {
		shape
		mnt, dentry, inode, pos, flags, mode member
	}
	backing struct { // of overlayfs, 6.8
		shape
		mnt, dentry member
	}
	fdtable struct {
		shape
		maxFDs, fd, closeOnExec, openFDs member
	}
	files struct {
		shape
		fdt member
	}
	fs struct {
		shape
		pwdMnt, pwdDentry, rootMnt, rootDentry member
	}
	dentry struct {
		shape
		pprev, parent, name, len, op, sb, inode, inline member
	}
	dentryOps struct {
		shape
		dname member
	}
	superBlock struct {
		shape
		fsType member
	}
	fsType struct {
		shape
		name member
	}
	mount struct {
		shape
		parent, mountpoint, mnt, root member
	}
	inode struct {
		shape
		ino, private member
	}
	ns struct { // ns_common, behind the inode of a namespace
		shape
		ops member
	}
	nsOps struct {
		shape
		name member
	}
	vmOps struct {
		shape
		name member
	}
	special struct {
		shape
		name member
	}
	anonName struct{ name member }
	module   struct {
		shape
		state, list, name                      member
		coreBase, coreSize, initBase, initSize member // until 6.3
		memBase, memSize, memSecond, mem       member // 6.4 and later
	}
	kthread struct {
		shape
		data, fullName member
	}
	worker struct {
		shape
		desc, currentWork, pool member
	}
	timekeeper struct {
		shape
		offsReal, offsBoot, xtimeSec, ktimeSec member
	}
	confine  confineLayout
	runqueue struct { // where processors keep no pointer to their task in memory: arm64
		shape
		cfs, rq   member // of a task, to its queue, and on to its processor's
		cpu, curr member
	}
	pcpuHot struct { // 6.2 to 6.14
		shape
		current member
	}
}

// row names the member that dst takes: alternatives separated by "|", the
// newest kernel's first; a leading "?" marks a member that may be absent.
type row struct {
	dst   *member
	names string
}

type group struct {
	structName string // with a leading "?" the whole structure may be absent
	shape      *shape
	rows       []row
}

func (l *layout) groups() []group {
	return slices.Concat(l.taskGroups(), l.memoryGroups(), l.fileGroups(), l.confine.groups())
}

func (l *layout) taskGroups() []group {
	t, s, c, k, w, tk := &l.task, &l.signal, &l.cred, &l.kthread, &l.worker, &l.timekeeper
	var cfs shape // one member
	return []group{
		{"list_head", &l.list.shape, []row{{&l.list.next, "next"}, {&l.list.prev, "prev"}}},
		{"task_struct", &t.shape, []row{
			{&t.state, "__state|state"}, // 5.14 renamed it
			{&t.exitState, "exit_state"}, {&t.flags, "flags"},
			{&t.cpu, "?cpu|thread_info.cpu"}, // 5.16 moved it
			{&t.tasks, "tasks"}, {&t.threadNode, "thread_node"},
			{&t.pid, "pid"}, {&t.tgid, "tgid"}, {&t.realParent, "real_parent"}, {&t.leader, "group_leader"},
			{&t.comm, "comm"}, {&t.realCred, "real_cred"}, {&t.mm, "mm"},
			{&t.startBoottime, "start_boottime|real_start_time"}, // 5.5 renamed it
			{&t.signal, "signal"}, {&t.files, "files"}, {&t.fs, "fs"},
			{&t.kthread, "?worker_private|set_child_tid"}, // 5.17 moved struct kthread's pointer
			{&l.runqueue.cfs, "?se.cfs_rq"},
			{&t.pidLinks, "?pid_links"}, {&t.thread, "?thread_pid"}, {&t.nsproxy, "?nsproxy"}, {&t.cgroups, "?cgroups"},
		}},
		{"signal_struct", &s.shape, []row{{&s.nrThreads, "nr_threads"}, {&s.threadHead, "thread_head"}, {&s.live, "live"}}},
		{"cred", &c.shape, []row{{&c.uid, "uid"}, {&c.gid, "gid"}, {&l.confine.userNS, "?user_ns"}}},
		{"?kthread", &k.shape, []row{{&k.data, "?data"}, {&k.fullName, "?full_name"}}}, // full_name: 5.17
		{"?worker", &w.shape, []row{{&w.desc, "?desc"}, {&w.currentWork, "?current_work"}, {&w.pool, "?pool"}}},
		{"?timekeeper", &tk.shape, []row{
			{&tk.offsReal, "?offs_real"}, {&tk.offsBoot, "?offs_boot"},
			{&tk.xtimeSec, "?xtime_sec"}, {&tk.ktimeSec, "?ktime_sec"},
		}},
		{"?cfs_rq", &cfs, []row{{&l.runqueue.rq, "?rq"}}}, // CONFIG_FAIR_GROUP_SCHED
		{"?rq", &l.runqueue.shape, []row{{&l.runqueue.cpu, "?cpu"}, {&l.runqueue.curr, "?curr"}}},
		{"?pcpu_hot", &l.pcpuHot.shape, []row{{&l.pcpuHot.current, "?current_task"}}},
	}
}

func (l *layout) memoryGroups() []group {
	m, v, p := &l.mm, &l.vma, &l.maple
	return []group{
		{"mm_struct", &m.shape, []row{
			{&m.pgd, "pgd"}, {&m.exeFile, "exe_file"},
			{&m.startCode, "start_code"}, {&m.endCode, "end_code"},
			{&m.startData, "start_data"}, {&m.endData, "end_data"},
			{&m.startBrk, "start_brk"}, {&m.brk, "brk"}, {&m.startStack, "start_stack"},
			{&m.taskSize, "?task_size"},
			{&m.argStart, "arg_start"}, {&m.argEnd, "arg_end"},
			{&m.envStart, "env_start"}, {&m.envEnd, "env_end"},
			// 6.1 replaced list and red-black tree with the maple tree.
			{&m.maRoot, "?mm_mt.ma_root"}, {&m.mmap, "?mmap"}, {&m.rbNode, "?mm_rb.rb_node"},
		}},
		{"vm_area_struct", &v.shape, []row{
			{&v.start, "vm_start"}, {&v.end, "vm_end"}, {&v.mm, "vm_mm"},
			{&v.flags, "vm_flags|__vm_flags"}, {&v.pgoff, "vm_pgoff"}, {&v.file, "vm_file"},
			{&v.ops, "vm_ops"}, {&v.private, "vm_private_data"},
			{&v.anonName, "?anon_name"}, {&v.shared, "?shared"},
			{&v.next, "?vm_next"}, {&v.prev, "?vm_prev"}, {&v.rb, "?vm_rb"},
		}},
		{"?rb_node", &l.rb.shape, []row{{&l.rb.left, "?rb_left"}, {&l.rb.right, "?rb_right"}}},
		{"?maple_range_64", &p.shape, []row{{&p.pivots64, "?pivot"}, {&p.slots64, "?slot"}}},
		{"?maple_arange_64", &p.shape, []row{{&p.pivotsA, "?pivot"}, {&p.slotsA, "?slot"}}},
		{"?vm_operations_struct", &l.vmOps.shape, []row{{&l.vmOps.name, "?name"}}},
		{"?vm_special_mapping", &l.special.shape, []row{{&l.special.name, "?name"}}},
	}
}

func (l *layout) fileGroups() []group {
	f, t, d, m, o := &l.file, &l.fdtable, &l.dentry, &l.mount, &l.module
	return []group{
		{"file", &f.shape, []row{
			{&f.mnt, "f_path.mnt|__f_path.mnt"}, {&f.dentry, "f_path.dentry|__f_path.dentry"}, // a union since 6.17
			{&f.inode, "f_inode"}, {&f.pos, "f_pos"}, {&f.flags, "f_flags"}, {&f.mode, "f_mode"},
		}},
		{"?backing_file", &l.backing.shape, []row{{&l.backing.mnt, "?user_path.mnt"}, {&l.backing.dentry, "?user_path.dentry"}}},
		{"fdtable", &t.shape, []row{
			{&t.maxFDs, "max_fds"}, {&t.fd, "fd"}, {&t.closeOnExec, "close_on_exec"}, {&t.openFDs, "open_fds"},
		}},
		{"files_struct", &l.files.shape, []row{{&l.files.fdt, "fdt"}}},
		{"fs_struct", &l.fs.shape, []row{{&l.fs.pwdMnt, "pwd.mnt"}, {&l.fs.pwdDentry, "pwd.dentry"}, {&l.fs.rootMnt, "root.mnt"}, {&l.fs.rootDentry, "root.dentry"}}},
		{"dentry", &d.shape, []row{
			{&d.pprev, "d_hash.pprev"}, {&d.parent, "d_parent"},
			{&d.name, "d_name.name|__d_name.name"}, {&d.len, "d_name.len|__d_name.len"}, // a union since 6.16
			{&d.op, "d_op"}, {&d.sb, "d_sb"}, {&d.inode, "d_inode"},
			{&d.inline, "?d_shortname|d_iname"}, // renamed in 6.14
		}},
		{"dentry_operations", &l.dentryOps.shape, []row{{&l.dentryOps.dname, "d_dname"}}},
		{"super_block", &l.superBlock.shape, []row{{&l.superBlock.fsType, "s_type"}}},
		{"file_system_type", &l.fsType.shape, []row{{&l.fsType.name, "name"}}},
		{"mount", &m.shape, []row{
			{&m.parent, "mnt_parent"}, {&m.mountpoint, "mnt_mountpoint"}, {&m.mnt, "mnt"}, {&m.root, "mnt.mnt_root"},
		}},
		{"inode", &l.inode.shape, []row{{&l.inode.ino, "i_ino"}, {&l.inode.private, "?i_private"}}},
		{"?ns_common", &l.ns.shape, []row{{&l.ns.ops, "?ops"}}},
		{"?proc_ns_operations", &l.nsOps.shape, []row{{&l.nsOps.name, "?name"}}},
		{"module", &o.shape, []row{
			{&o.state, "state"}, {&o.list, "list"}, {&o.name, "name"},
			// 6.4 replaced the two layouts with an array of regions.
			{&o.memBase, "?mem[0].base"}, {&o.memSize, "?mem[0].size"}, {&o.memSecond, "?mem[1].base"}, {&o.mem, "?mem"},
			{&o.coreBase, "?core_layout.base"}, {&o.coreSize, "?core_layout.size"},
			{&o.initBase, "?init_layout.base"}, {&o.initSize, "?init_layout.size"},
		}},
	}
}

// newLayout resolves every offset. Its error names all that are missing.
func newLayout(k facts) (*layout, error) {
	l := new(layout)
	var missing []string
	for _, g := range l.groups() {
		missing = append(missing, g.resolve(k)...)
	}
	missing = append(missing, l.check()...)
	if len(missing) > 0 {
		return nil, fmt.Errorf("understand the kernel's structures: missing %s", strings.Join(missing, ", "))
	}
	l.resolveAnonName(k)
	l.confine.resolve(k)
	return l, nil
}

// resolve fills the members of one structure and returns those it did not find.
func (g *group) resolve(k facts) (missing []string) {
	name, optional := strings.CutPrefix(g.structName, "?")
	g.shape.name = name
	for _, r := range g.rows {
		names, may := strings.CutPrefix(r.names, "?")
		m, ok := firstField(k, name, names)
		switch {
		case ok && m.end() > maxShape:
			missing = append(missing, fmt.Sprintf("%s.%s (an offset of %d is not believable)", name, names, m.off))
		case ok:
			*r.dst = m
			g.shape.add(m)
		case !may && !optional:
			missing = append(missing, name+"."+names)
		}
	}
	return missing
}

func firstField(k facts, structName, names string) (member, bool) {
	for path := range strings.SplitSeq(names, "|") {
		if m, err := k.Field(structName, path); err == nil && m.ok() && m.off <= maxShape && m.size <= maxShape {
			return m, true
		}
	}
	return member{}, false
}

// resolveAnonName finds the text behind an anonymous mapping's name: a
// flexible array, whose size is zero in the type information.
func (l *layout) resolveAnonName(k facts) {
	if m, err := k.Field("anon_vma_name", "name"); err == nil && m.off <= maxShape {
		l.anonName.name = member{m.off, 1}
	}
}

// check returns what is missing among members of which one or the other must
// exist.
func (l *layout) check() (missing []string) {
	maple := l.mm.maRoot.ok() && l.maple.slots64.ok() && l.maple.pivots64.ok() && l.maple.slotsA.ok() && l.maple.pivotsA.ok()
	list := l.mm.mmap.ok() && l.mm.rbNode.ok() && l.vma.next.ok() && l.vma.rb.ok() && l.rb.left.ok() && l.rb.right.ok()
	if !maple && !list {
		missing = append(missing, "mm_struct.mm_mt (with maple_range_64, maple_arange_64) or mm_struct.mmap, mm_rb (with rb_node)")
	}
	regions := l.module.memBase.ok() && l.module.memSize.ok() && l.module.memSecond.off > l.module.memBase.off
	if !regions && !(l.module.coreBase.ok() && l.module.coreSize.ok()) {
		missing = append(missing, "module.mem or module.core_layout")
	}
	return missing
}
