package osi

import (
	"context"
	"iter"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// System is the operating system of one guest. Its methods may be called
// concurrently. A list is made when the iteration begins, and each entry read
// when its turn comes: to stop early saves the rest. See the package comment
// for what an error in a list means.
//
// Methods that take a Handle return ErrNoProcess when it names no process.
type System interface {
	// OS returns the provider's name: "linux", "windows".
	OS() string

	// Processes lists all processes but the idle ones.
	Processes(ctx context.Context) iter.Seq2[Process, error]
	// ProcessHandles is the cheap variant of Processes.
	ProcessHandles(ctx context.Context) iter.Seq2[Handle, error]
	// Process returns the process that a handle names; for the handle of a
	// thread, its process.
	Process(ctx context.Context, h Handle) (Process, error)
	// ProcessByPID returns the process with this pid, without listing all. The
	// pid of another thread than the first is no process: ErrNoProcess.
	ProcessByPID(ctx context.Context, pid int) (Process, error)

	// Threads lists all threads of a process, the first one first.
	Threads(ctx context.Context, h Handle) iter.Seq2[Thread, error]
	// ThreadAt returns the thread whose task structure lies at task. It is
	// cheap enough to be called at each event of a trace.
	ThreadAt(ctx context.Context, task arch.GVA) (Thread, error)
	// Current returns the thread that a virtual processor (0-based) runs now.
	// An idle processor runs a thread with PID 0.
	Current(ctx context.Context, vcpu int) (Thread, error)

	// Modules lists the kernel's modules, the last loaded first.
	Modules(ctx context.Context) iter.Seq2[Module, error]
	// ModuleAt returns the module that holds a, or ErrNoModule.
	ModuleAt(ctx context.Context, a arch.GVA) (Module, error)

	// Libraries lists the shared objects of a process in address order, one
	// entry for each.
	Libraries(ctx context.Context, h Handle) iter.Seq2[Library, error]
	// Mappings lists a process's address space in address order. A process
	// without user memory has no mappings; that is no error.
	Mappings(ctx context.Context, h Handle) iter.Seq2[Mapping, error]
	// MappingAt returns the mapping that holds a, or ErrNoMapping. It does not
	// list the others.
	MappingAt(ctx context.Context, h Handle, a arch.GVA) (Mapping, error)
	// Pages lists the resident pages of a process in address order, by its
	// page tables.
	Pages(ctx context.Context, h Handle) iter.Seq2[Page, error]
	// Memory returns the layout of a process's memory, or ErrNoUserMemory.
	Memory(ctx context.Context, h Handle) (ProcMem, error)
	// AddressSpace returns the user memory of a process, or ErrNoUserMemory.
	// It is good until the process ends; then its pages become others'.
	AddressSpace(ctx context.Context, h Handle) (*vitrine.AddressSpace, error)

	// Files lists the open files of a process by ascending descriptor.
	Files(ctx context.Context, h Handle) iter.Seq2[File, error]
	// FileByFD returns one open file of a process, or ErrNoFile.
	FileByFD(ctx context.Context, h Handle, fd int) (File, error)
	// Cwd returns the working directory of a process.
	Cwd(ctx context.Context, h Handle) (string, error)
}
