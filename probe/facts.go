package probe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// commLen is the size of task_struct->comm (TASK_COMM_LEN).
const commLen = 16

// facts is where a kernel keeps what identifies a thread.
type facts struct {
	kernel *vitrine.AddressSpace
	nt     *ntFacts   // nil for Linux, whose the other fields are
	i386   *i386Facts // nil but for Linux on 32-bit x86
	// current is where a processor's current task pointer is, relative to its
	// GS base.
	current                                   arch.GVA
	pid, tgid, comm, parent, cred, uid, stack uint64
	leader, start                             uint64
	stackSize                                 uint64
	// mm and pgd lead from a task to its program's page table; pgdSize is 0 where
	// that is not known.
	mm, pgd, pgdSize uint64
	// about is what describes a task, nil where the kernel's types lack some of it.
	about *engine.AboutOffsets
}

// findFacts looks them up in the kernel's types.
func findFacts(k *kernel.Kernel) (*facts, error) {
	f := &facts{kernel: k.AddressSpace()}
	if k.NT() != nil {
		var err error
		f.nt, err = findNTFacts(k)
		return f, err
	}
	for _, want := range []struct {
		to          *uint64
		typ, member string
	}{
		{&f.pid, "task_struct", "pid"},
		{&f.tgid, "task_struct", "tgid"},
		{&f.comm, "task_struct", "comm"},
		{&f.parent, "task_struct", "real_parent"},
		{&f.leader, "task_struct", "group_leader"},
		{&f.start, "task_struct", "start_time"},
		{&f.cred, "task_struct", "cred"},
		{&f.stack, "task_struct", "stack"},
		{&f.uid, "cred", "uid"},
	} {
		field, err := k.Types().Field(want.typ, want.member)
		if err != nil {
			return nil, err
		}
		*want.to = field.Offset
	}
	f.stackSize = stackSize(k)
	var err error
	if f.about, err = engine.FindAbout(kernelFacts{k}.Offset); err != nil {
		f.about = nil // only probes that describe need it
	}
	if k.Guest().Arch() == arch.ARM64 {
		f.findTables(k)
		return f, nil // a register has the current task
	}
	f.current, err = currentTask(k)
	if is32(k) {
		f.i386 = &i386Facts{as: f.kernel, current: f.current, stackField: f.stack, stackSize: f.stackSize}
	}
	return f, err
}

// findTables notes where a task's page table is.
func (f *facts) findTables(k *kernel.Kernel) {
	mm, err1 := k.Types().Field("task_struct", "mm")
	pgd, err2 := k.Types().Field("mm_struct", "pgd")
	if err1 == nil && err2 == nil {
		f.mm, f.pgd, f.pgdSize = mm.Offset, pgd.Offset, pgd.Size
	}
}

// userRoot returns a task's own page table; see trap.Config.
func (f *facts) userRoot(task arch.GVA) (arch.GPA, bool) {
	if task == 0 || f.pgdSize == 0 {
		return 0, false
	}
	mm := f.pointer(task, f.mm)
	if !inKernel(mm) {
		return 0, false // a kernel thread
	}
	pgd := f.pointer(mm, f.pgd)
	if !inKernel(pgd) {
		return 0, false
	}
	root, err := f.kernel.Translate(pgd)
	return root, err == nil
}

// stackSize returns the size of a task's kernel stack (THREAD_SIZE), measured
// at the first task's, which the linker script reserves: between these symbols
// since Linux 6.9, and the second pair before. Without them it is what x86
// has had since 3.15 unless KASAN is on.
func stackSize(k *kernel.Kernel) uint64 {
	for _, name := range []string{"init_stack", "init_task"} {
		start, err1 := k.Symbol("__start_" + name)
		end, err2 := k.Symbol("__end_" + name)
		n := uint64(end.Addr - start.Addr)
		if err1 == nil && err2 == nil && n >= 8<<10 && n <= 64<<10 && bits.OnesCount64(n) == 1 {
			return n
		}
	}
	if is32(k) {
		return 8 << 10
	}
	return 16 << 10
}

// currentTask finds the per-CPU pointer to the current task. It is a variable
// of its own until 6.1 and again from 6.15 on; between, since 6.2, it is the
// first member of pcpu_hot.
func currentTask(k *kernel.Kernel) (arch.GVA, error) {
	if s, err := k.Symbol("pcpu_hot"); err == nil {
		f, err := k.Types().Field("pcpu_hot", "current_task")
		return s.Addr + arch.GVA(f.Offset), err
	}
	s, err := k.Symbol("current_task")
	if err != nil {
		return 0, fmt.Errorf("find current task: %w", err)
	}
	return s.Addr, nil
}

// thread reads a thread's identity. What cannot be read stays zero.
func (f *facts) thread(task arch.GVA) Thread {
	if f.nt != nil {
		return f.nt.thread(task)
	}
	t := Thread{Task: task}
	if task == 0 {
		return t
	}
	t.TID, t.PID = f.int32(task, f.pid), f.int32(task, f.tgid)
	t.PPID = f.int32(f.pointer(task, f.parent), f.tgid)
	uid, _ := f.kernel.ReadUint32(f.pointer(task, f.cred) + arch.GVA(f.uid))
	t.UID = uid
	var comm [commLen]byte
	n, _ := f.kernel.Read(comm[:], task+arch.GVA(f.comm))
	name, _, _ := bytes.Cut(comm[:n], []byte{0})
	t.Comm = string(name)
	return t
}

func (f *facts) int32(base arch.GVA, off uint64) int {
	var b [4]byte
	if _, err := f.kernel.Read(b[:], base+arch.GVA(off)); err != nil {
		return 0
	}
	return int(int32(binary.LittleEndian.Uint32(b[:])))
}

func (f *facts) pointer(base arch.GVA, off uint64) arch.GVA {
	p, _ := f.kernel.ReadPointer(base + arch.GVA(off))
	return p
}
