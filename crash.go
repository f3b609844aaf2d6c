package vitrine

import "github.com/vitrine-vmi/vitrine/arch"

// NoteSource is implemented by backends of memory images that may come with
// the kernel's own description of itself.
type NoteSource interface {
	// VMCoreInfo returns the VMCOREINFO text that came beside the memory, nil
	// when there is none. Whoever made the image put it there: it says where to
	// look, and what is found there has to be checked. Nobody may change it.
	VMCoreInfo() []byte
}

// WindowsCrashSource is implemented by backends that read Windows crash dumps.
type WindowsCrashSource interface {
	// WindowsCrash returns what the dump's header says, nil when the image is
	// no Windows crash dump.
	WindowsCrash() *WindowsCrash
}

// VMCoreInfo returns the VMCOREINFO text that came beside an image's memory,
// nil when there is none; see NoteSource.
func (g *Guest) VMCoreInfo() []byte {
	if s, ok := g.backend.(NoteSource); ok {
		return s.VMCoreInfo()
	}
	return nil
}

// WindowsCrash returns what the header of a Windows crash dump says, nil for
// every other guest. Nobody may change it.
func (g *Guest) WindowsCrash() *WindowsCrash {
	if s, ok := g.backend.(WindowsCrashSource); ok {
		return s.WindowsCrash()
	}
	return nil
}

// WindowsCrash is what the header of a Windows crash dump says (DUMP_HEADER and
// DUMP_HEADER64). All of it is the guest's word: addresses may lead nowhere.
//
// A triage dump (a "small memory dump") holds blocks by virtual address and no
// page tables. Its guest has page tables all the same: made up, at
// DirectoryTableBase, they map just the blocks, so that
//
//	g.AddressSpace(crash.Paging, crash.DirectoryTableBase)
//
// reads every kind of dump. Reading a byte between the blocks is a
// *PhysicalError or a *FaultError; physical addresses of such a guest mean
// nothing by themselves.
type WindowsCrash struct {
	Type   WindowsDumpType
	Bits   int             // 32 or 64
	Build  uint32          // MinorVersion: the build number, such as 19041
	Major  uint32          // MajorVersion: 15 is a free build, 12 a checked one
	Paging arch.PagingMode // of the page tables at DirectoryTableBase

	DirectoryTableBase  arch.GPA
	PfnDatabase         arch.GVA
	PsLoadedModuleList  arch.GVA
	PsActiveProcessHead arch.GVA
	KdDebuggerDataBlock arch.GVA
	BugCheck            uint32
	BugCheckParameters  [4]uint64

	// Of a triage dump only, zero otherwise: the thread that crashed, its
	// process, and the drivers that were loaded.
	Thread  arch.GVA // ETHREAD
	Process arch.GVA // EPROCESS
	Drivers []WindowsDriver
}

// WindowsDumpType is the kind of a Windows crash dump, as its header numbers it.
type WindowsDumpType uint32

// The kinds of Windows crash dumps that hold a kernel's memory.
const (
	WindowsFull         WindowsDumpType = 1 // all RAM, in runs
	WindowsKernel       WindowsDumpType = 2 // "kernel summary": a bitmap and the pages that it has
	WindowsTriage       WindowsDumpType = 4 // blocks by virtual address
	WindowsBitmapFull   WindowsDumpType = 5 // since 8: all RAM by a bitmap
	WindowsBitmapKernel WindowsDumpType = 6 // since 8: the kernel's and the hypervisor's pages by a bitmap
)

// WindowsDriver is an entry of a triage dump's list of drivers.
type WindowsDriver struct {
	Name string // text of the guest
	Base arch.GVA
	Size uint64 // bytes
}
