package linux

import (
	"context"
	"fmt"
	"math/bits"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Bits of task_struct.flags, the same since 2.6.
const (
	pfWQWorker = 0x00000020
	pfKThread  = 0x00200000
)

// maxTasks is the largest number of tasks that a kernel allows (its limit of
// pid_max on 64-bit machines).
const maxTasks = 4 << 20

// task is what one read of a task_struct yields. The names are the kernel's.
type task struct {
	addr              arch.GVA
	pid, tgid         int
	state, exitState  uint64
	flags             uint64
	cpu               int
	comm              string
	startBoottime     time.Duration
	leader, parent    arch.GVA
	cred, mm          arch.GVA
	signal, files, fs arch.GVA
	kthread           arch.GVA
	thread            arch.GVA // struct pid
	nsproxy, cgroups  arch.GVA
}

// readTask reads the task_struct at addr. It fails with ErrNoProcess when what
// lies there can't be a task.
func (s *system) readTask(addr arch.GVA) (task, error) {
	buf := s.tasks.Get().(*[]byte)
	defer s.tasks.Put(buf)
	l := &s.l.task
	r, err := load(s.kernel, &l.shape, addr, *buf)
	if err != nil {
		return task{}, err
	}
	t := task{
		addr: addr, pid: r.int(l.pid), tgid: r.int(l.tgid),
		state: r.uint(l.state), exitState: r.uint(l.exitState), flags: r.uint(l.flags), cpu: r.int(l.cpu),
		comm: r.str(l.comm), startBoottime: time.Duration(r.uint(l.startBoottime)),
		leader: r.ptr(l.leader), parent: r.ptr(l.realParent), cred: r.ptr(l.realCred), mm: r.ptr(l.mm),
		signal: r.ptr(l.signal), files: r.ptr(l.files), fs: r.ptr(l.fs), kthread: r.ptr(l.kthread),
		thread: r.ptr(l.thread), nsproxy: r.ptr(l.nsproxy), cgroups: r.ptr(l.cgroups),
	}
	if t.pid < 0 || t.pid > maxTasks || t.tgid < 0 || t.tgid > maxTasks || kernelPointer(t.leader) != nil {
		return task{}, fmt.Errorf("read task at %v: %w", addr, osi.ErrNoProcess)
	}
	return t, nil
}

// isKThread reports whether the task runs kernel code only.
func (t *task) isKThread() bool { return t.flags&pfKThread != 0 }

// userMM returns the task's own memory descriptor. A kernel thread may borrow
// one, which is not its own.
func (t *task) userMM() arch.GVA {
	if t.isKThread() {
		return 0
	}
	return t.mm
}

// Bits of task_struct.state and exit_state, as of 4.14 and later.
const (
	taskIdle       = 0x0402 // uninterruptible, and not counted as load
	taskRTLockWait = 0x1000 // 5.16
	taskFrozen     = 0x8000 // 6.1
	taskReport     = 0x007f // the states that are shown, and exit_state's two
)

// stateLetters are the letters of /proc/PID/stat for the highest bit of
// taskReport that is set: none, 0x01, 0x02, ... 0x40.
const stateLetters = "RSDTtXZP"

// letter returns the state as /proc/PID/stat shows it.
func (t *task) letter() osi.State {
	st := t.state
	if st&(taskRTLockWait|taskFrozen) != 0 {
		return 'D'
	}
	if st&taskIdle == taskIdle {
		return 'I'
	}
	return osi.State(stateLetters[bits.Len64((st|t.exitState)&taskReport)])
}

// thread makes the record of a task. parents may be nil; it saves reads where
// many tasks are made into records.
func (s *system) thread(t *task, boot time.Time, parents map[arch.GVA]int) (osi.Thread, error) {
	th, first := s.threadOnly(t, boot, parents)
	var err error
	if th.ASID, err = s.asid(t.userMM()); err != nil && first == nil {
		first = &osi.PartialError{PID: t.tgid, Part: "page-table root", Err: err}
	}
	return th, first
}

// threadOnly is thread without its address space.
func (s *system) threadOnly(t *task, boot time.Time, parents map[arch.GVA]int) (osi.Thread, error) {
	th := osi.Thread{
		Handle: osi.Handle{Task: t.addr},
		TID:    t.pid, PID: t.tgid, Name: t.comm, State: t.letter(), KThread: t.isKThread(),
		VCPU: t.cpu, ID: osi.MakeID(t.pid, t.startBoottime),
	}
	if !boot.IsZero() {
		th.StartTime = boot.Add(t.startBoottime)
	}
	var err error
	if th.UID, th.GID, err = s.owner(t); err != nil {
		return th, &osi.PartialError{PID: t.tgid, Part: "credentials", Err: err}
	}
	if th.PPID, err = s.parentID(t, parents); err != nil {
		return th, &osi.PartialError{PID: t.tgid, Part: "parent", Err: err}
	}
	return th, nil
}

// owner returns the real user and group of a task, as the first number of
// "Uid:" and "Gid:" in /proc/PID/status is for a reader in the initial user
// namespace.
func (s *system) owner(t *task) (uid, gid uint32, err error) {
	var buf [64]byte
	r, err := load(s.kernel, &s.l.cred.shape, t.cred, buf[:])
	return uint32(r.uint(s.l.cred.uid)), uint32(r.uint(s.l.cred.gid)), err
}

// parentID returns the process id of the real parent, as "PPid:" in
// /proc/PID/status: 0 for the first processes.
func (s *system) parentID(t *task, known map[arch.GVA]int) (int, error) {
	if id, ok := known[t.parent]; ok {
		return id, nil
	}
	if t.parent == t.addr {
		return 0, nil // init_task is its own
	}
	if err := kernelPointer(t.parent); err != nil {
		return 0, err
	}
	id, err := s.kernel.ReadUint32(t.parent + arch.GVA(s.l.task.tgid.off))
	if err == nil && known != nil {
		known[t.parent] = int(int32(id))
	}
	return int(int32(id)), err
}

// asid returns the physical address of a memory descriptor's top page table, 0
// for none. Under page-table isolation it is the kernel's half of the pair,
// which maps user memory too; while user code runs, CR3 holds the page after it.
func (s *system) asid(mm arch.GVA) (arch.GPA, error) {
	if mm == 0 {
		return 0, nil
	}
	if err := kernelPointer(mm); err != nil {
		return 0, err
	}
	pgd, err := s.kernel.ReadPointer(mm + arch.GVA(s.l.mm.pgd.off))
	if err != nil {
		return 0, err
	}
	return s.kernel.Translate(pgd)
}

// process makes the record of a process from the task of its first thread.
func (s *system) process(t *task, boot time.Time, names *resolver) (osi.Process, error) {
	th, first := s.threadOnly(t, boot, names.parents)
	p := osi.Process{
		Handle: th.Handle, PID: th.PID, PPID: th.PPID, Name: th.Name, FullName: th.Name,
		UID: th.UID, GID: th.GID, State: th.State, KThread: th.KThread, Threads: 1,
		StartTime: th.StartTime, ID: th.ID,
	}
	note := func(part string, err error) {
		if err != nil && first == nil {
			first = &osi.PartialError{PID: t.tgid, Part: part, Err: err}
		}
	}
	n, err := s.threadCount(t)
	note("thread count", err)
	p.Threads = max(n, 1)
	if t.isKThread() {
		p.FullName = s.fullName(t)
		return p, first
	}
	if t.mm == 0 {
		return p, first
	}
	mm, err := s.readMM(t.mm)
	if err != nil {
		note("memory descriptor", err)
		return p, first
	}
	p.ASID, err = s.kernel.Translate(mm.pgd)
	note("page-table root", err)
	p.Exe, err = names.file(mm.exeFile)
	note("exe", err)
	p.Compat = mm.compat
	p.Args, err = s.args(&mm)
	note("args", err)
	return p, first
}

func (s *system) threadCount(t *task) (int, error) {
	if err := kernelPointer(t.signal); err != nil {
		return 0, err
	}
	n, err := s.kernel.ReadUint32(t.signal + arch.GVA(s.l.signal.nrThreads.off))
	return int(int32(n)), err
}

// leaderOf returns the first thread of the process that a handle names, and
// makes sure that it is (still) on the kernel's list of processes.
func (s *system) leaderOf(ctx context.Context, h osi.Handle) (task, error) {
	if err := ctx.Err(); err != nil {
		return task{}, err
	}
	t, err := s.readTask(h.Task)
	if err == nil && t.leader != h.Task {
		tgid := t.tgid
		if t, err = s.readTask(t.leader); err == nil && t.tgid != tgid {
			err = osi.ErrNoProcess
		}
	}
	if err != nil && fatal(err) {
		return task{}, err
	}
	if err != nil || !s.linked(s.kernel, t.addr+arch.GVA(s.l.task.tasks.off)) {
		return task{}, fmt.Errorf("find process of task %v: %w", h.Task, osi.ErrNoProcess)
	}
	return t, nil
}

// fullName returns a kernel thread's name as /proc/PID/comm shows it: longer
// than comm where the kernel keeps more, and for a worker with what it works
// at. It falls back on comm, and what it adds may be a moment old.
func (s *system) fullName(t *task) string {
	l := &s.l.kthread
	var buf [256]byte
	r, err := load(s.kernel, &l.shape, t.kthread, buf[:])
	if err != nil {
		return t.comm
	}
	name := t.comm
	if at := r.ptr(l.fullName); at != 0 && kernelPointer(at) == nil {
		if long, err := s.kernel.ReadString(at, 64); err == nil && long != "" {
			name = long
		}
	}
	if t.flags&pfWQWorker != 0 {
		name += s.workerSuffix(r.ptr(l.data))
	}
	return name
}

// workerSuffix returns what a workqueue worker does: "+" and the workqueue's
// name while it works for one, "-" and the name of the last one while idle.
func (s *system) workerSuffix(worker arch.GVA) string {
	l := &s.l.worker
	var buf [256]byte
	r, err := load(s.kernel, &l.shape, worker, buf[:])
	if err != nil || r.uint(l.pool) == 0 || r.str(l.desc) == "" {
		return ""
	}
	if r.uint(l.currentWork) != 0 {
		return "+" + r.str(l.desc)
	}
	return "-" + r.str(l.desc)
}
