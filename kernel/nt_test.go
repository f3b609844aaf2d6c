package kernel_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
)

// ntBuild is a build to lay out.
type ntBuild struct {
	name         string
	major, minor int
	build        int
	mode         arch.PagingMode
	bits         int
	inline       bool
	cookie       byte
}

var ntBuilds = []ntBuild{
	{"XP SP3 x86", 5, 1, 2600, arch.Paging32Bit, 0, false, 0},
	{"2003 x86", 5, 2, 3790, arch.Paging32Bit, 0, true, 0},
	{"7 SP1 x86 PAE", 6, 1, 7601, arch.PagingPAE, 0, true, 0},
	{"7 SP1 x64", 6, 1, 7601, arch.Paging4Level, 0, true, 0},
	{"8 x64", 6, 2, 9200, arch.Paging4Level, 41, true, 0},
	{"8.1 x64", 6, 3, 9600, arch.Paging4Level, 44, false, 0},
	{"10 19041 x86", 10, 0, 19041, arch.PagingPAE, 29, false, 0x5a},
	{"10 19041 x64", 10, 0, 19041, arch.Paging4Level, 44, false, 0x5a},
	{"11 22631 x64 LA57", 10, 0, 22631, arch.Paging5Level, 44, false, 0xc3},
}

func (b ntBuild) x64() bool { return b.mode >= arch.Paging4Level }

// offsets are those of the build's layout.
func (b ntBuild) offsets() nttest.Offset {
	types, _, _ := kernel.NTLayout(b.build, b.x64())
	return func(structName, path string) (uint64, bool) {
		f, err := types.Field(structName, path)
		return f.Offset, err == nil
	}
}

const created = 0x01d8_0000_0000_0000 // a FILETIME of 2021

func (b ntBuild) config() nttest.Config {
	vad := func(start arch.GVA) nttest.VAD {
		return nttest.VAD{Start: start, End: start + 0x1000, Private: true}
	}
	return nttest.Config{Mode: b.mode, Offset: b.offsets(), Major: b.major, Minor: b.minor, Build: b.build, HandleBits: b.bits, InlineVAD: b.inline, Cookie: b.cookie,
		Processes: []*nttest.Process{
			{PID: 4, Name: "System", Created: created, Threads: []nttest.Thread{{TID: 8, State: 5}, {TID: 12, State: 5}}},
			{PID: 300, PPID: 4, Name: "smss.exe", Image: `\Device\HarddiskVolume1\Windows\System32\smss.exe`, Created: created + 10, Base: 0x48580000,
				Threads: []nttest.Thread{{TID: 304, State: 5}}, VADs: []nttest.VAD{vad(0x10000), vad(0x20000), vad(0x48580000)}},
			{PID: 1234, PPID: 300, Name: "notepad.exe", Image: `\Device\HarddiskVolume1\Windows\notepad.exe`, Created: created + 20, Base: 0x400000,
				Threads: []nttest.Thread{{TID: 1238, State: 2}}, VADs: []nttest.VAD{vad(0x30000), vad(0x400000)}},
		},
		Drivers: []nttest.Module{{Name: "hal.dll", Path: `\SystemRoot\system32\hal.dll`, Base: 0x80010000, Size: 0x20000}},
	}
}

func TestDescribeNT(t *testing.T) {
	for _, b := range ntBuilds {
		t.Run(b.name, func(t *testing.T) {
			g := nttest.New(b.config())
			k := describe(t, g.Guest(), nil)
			nt := k.NT()
			if k.OS() != kernel.Windows || nt == nil || k.Base() != g.Base || nt.Build != b.build || nt.X64 != b.x64() || k.Paging() != b.mode {
				t.Fatalf("%v %+v at %v, paging %v", k.OS(), nt, k.Base(), k.Paging())
			}
			if want := g.Processes[0]; nt.System != want.Task || k.AddressSpace().Root() != want.Space.Root() {
				t.Errorf("System at %v with page table %v, want %v, %v", nt.System, k.AddressSpace().Root(), want.Task, want.Space.Root())
			}
			if nt.ProcessHead != g.ProcessHead || nt.ModuleList != g.ModuleList || nt.GUID != g.GUID || nt.PDB != "ntkrnlmp.pdb" || nt.PDBAge != 1 {
				t.Errorf("heads %v, %v, symbols %s %s %d", nt.ProcessHead, nt.ModuleList, nt.PDB, nt.GUID, nt.PDBAge)
			}
			if th, err := nt.CurrentThread(t.Context(), 0); err != nil || th != g.Processes[2].Threads[0].Task {
				t.Errorf("current thread %v, %v, want %v", th, err, g.Processes[2].Threads[0].Task)
			}
			if s, err := k.Symbol("PsActiveProcessHead"); err != nil || s.Addr != g.ProcessHead {
				t.Errorf("Symbol(PsActiveProcessHead) = %+v, %v", s, err)
			}
			for _, m := range k.Missing() {
				t.Errorf("missing: %s", m)
			}
		})
	}
}

// moved returns the offsets of a kernel in whose structures something was put
// in, so that all that follows lies farther on.
func moved(o nttest.Offset) nttest.Offset {
	return func(structName, path string) (uint64, bool) {
		off, ok := o(structName, path)
		switch {
		case structName == "_KPROCESS" && path == "DirectoryTableBase":
			return off + 8, ok
		case structName == "_EPROCESS" && path != "Pcb":
			return off + 0x10, ok
		case structName == "_ETHREAD" && path != "Tcb":
			return off + 0x18, ok
		}
		return off, ok
	}
}

// inferredMembers are those that no accessor is needed for.
var inferredMembers = []string{"_KPROCESS.DirectoryTableBase", "_EPROCESS.UniqueProcessId", "_EPROCESS.ActiveProcessLinks", "_EPROCESS.ImageFileName",
	"_EPROCESS.Peb", "_EPROCESS.Token", "_EPROCESS.ObjectTable", "_EPROCESS.ThreadListHead", "_ETHREAD.ThreadListEntry", "_EPROCESS.SeAuditProcessCreationInfo", "_EPROCESS.CreateTime",
	"_EPROCESS.VadRoot", "_ETHREAD.Cid.UniqueThread", "_ETHREAD.Cid.UniqueProcess"}

// A kernel that claims a build and lays out its structures otherwise: every
// member that matters is found where it is, with accessors and without.
func TestNTInference(t *testing.T) {
	for _, b := range ntBuilds {
		for _, build := range []int{b.build, 99999} {
			// A build that is not known gets the newest layout, where the other
			// structures differ from those of old builds by more than can be told.
			if build != b.build && b.build != 22631 && (b.build != 19041 || b.x64()) {
				continue
			}
			for _, accessors := range []bool{true, false} {
				c := b.config()
				c.Build, c.NoAccessors, c.Offset = build, !accessors, moved(c.Offset)
				members := inferredMembers
				if accessors {
					members = append([]string{"_EPROCESS.InheritedFromUniqueProcessId", "_EPROCESS.SectionBaseAddress"}, members...)
				}
				checkInference(t, fmt.Sprintf("%s as build %d, accessors %v", b.name, build, accessors), c, members)
			}
		}
	}
}

func checkInference(t *testing.T, name string, c nttest.Config, members []string) {
	k, err := kernel.Describe(t.Context(), nttest.New(c).Guest(), nil)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, m := range members {
		structName, path, _ := strings.Cut(m, ".")
		want, ok := c.Offset(structName, path)
		f, err := k.Types().Field(structName, path)
		if !ok || err != nil || f.Offset != want {
			t.Errorf("%s: %s at %#x, %v, want %#x (%s)", name, m, f.Offset, err, want, k.Types().Source(structName, path))
		}
		if by := k.Facts()[m]; err == nil && !strings.Contains(by, "inferred") && !strings.Contains(by, "accessor") {
			t.Errorf("%s: %s is said to be known by %q", name, m, by)
		}
	}
}

// A kernel that claims a build and is laid out as another one that is known is
// read by the layout of that one, also what has neither an accessor nor a shape.
func TestNTAgreeingLayout(t *testing.T) {
	for _, b := range ntBuilds {
		for _, build := range []int{2600, 6002, 9200, 17763, 99999} {
			c := b.config()
			c.Build = build
			_, claimed, _ := kernel.NTLayout(build, b.x64())
			_, real, _ := kernel.NTLayout(b.build, b.x64())
			k, err := kernel.Describe(t.Context(), nttest.New(c).Guest(), nil)
			if err != nil {
				t.Errorf("%s as %d: %v", b.name, build, err)
				continue
			}
			disagree := strings.Contains(strings.Join(k.Missing(), "; "), "accessors disagree with it")
			if by := k.Facts()["types"]; disagree != strings.Contains(by, "accessors agree") || claimed == real && disagree {
				t.Errorf("%s as %d: types by %q, missing %q", b.name, build, by, k.Missing())
			}
			for _, m := range []string{"_HANDLE_TABLE.TableCode", "_FILE_OBJECT.FileName", "_TOKEN.UserAndGroups", "_EPROCESS.VadRoot", "_ETHREAD.Win32StartAddress"} {
				structName, path, _ := strings.Cut(m, ".")
				want, _ := c.Offset(structName, path)
				if f, err := k.Types().Field(structName, path); err != nil || f.Offset != want {
					t.Errorf("%s as %d: %s at %#x, %v, want %#x (types by %s)", b.name, build, m, f.Offset, err, want, k.Facts()["types"])
				}
			}
		}
	}
}

// essentialMembers are those by which processes are listed.
var essentialMembers = []string{"_KPROCESS.DirectoryTableBase", "_EPROCESS.UniqueProcessId", "_EPROCESS.ActiveProcessLinks",
	"_EPROCESS.ImageFileName", "_EPROCESS.InheritedFromUniqueProcessId", "_EPROCESS.Peb"}

// Without any layout, the members by which processes are listed are found by
// the kernel's own code and by what lies there.
func TestNTWithoutLayouts(t *testing.T) {
	for _, b := range ntBuilds {
		for _, move := range []bool{false, true} {
			c := b.config()
			if move {
				c.Offset = moved(c.Offset)
			}
			k, err := kernel.Describe(t.Context(), nttest.New(c).Guest(), &kernel.Options{NoLayouts: true})
			if err != nil {
				t.Errorf("%s: %v", b.name, err)
				continue
			}
			for _, m := range essentialMembers {
				structName, path, _ := strings.Cut(m, ".")
				want, _ := c.Offset(structName, path)
				if f, err := k.Types().Field(structName, path); err != nil || f.Offset != want {
					t.Errorf("%s, moved %v: %s at %#x, %v, want %#x", b.name, move, m, f.Offset, err, want)
				}
				if by := k.Facts()[m]; strings.Contains(by, "layout") {
					t.Errorf("%s: %s is said to be known by %q", b.name, m, by)
				}
			}
			if all := strings.Join(k.Missing(), "; "); !strings.Contains(all, "layouts") {
				t.Errorf("%s: that there are no layouts is not said: %s", b.name, all)
			}
		}
	}
}

func TestNTWaysToTheKernel(t *testing.T) {
	for _, b := range ntBuilds {
		for name, change := range map[string]func(c *nttest.Config){
			"user mode":          func(c *nttest.Config) { c.User = true },
			"user mode, no KGS":  func(c *nttest.Config) { c.User, c.NoKernelGS = true, true },
			"idle":               func(c *nttest.Config) { c.Idle = true },
			"no KDBG":            func(c *nttest.Config) { c.NoKDBG = true },
			"list not exported":  func(c *nttest.Config) { c.NoModuleName = true },
			"neither":            func(c *nttest.Config) { c.NoModuleName, c.NoKDBG = true, true },
			"large pages":        func(c *nttest.Config) { c.LargeKernel = b.mode != arch.Paging32Bit },
			"no accessor at all": func(c *nttest.Config) { c.NoAccessors = true },
		} {
			c := b.config()
			change(&c)
			g := nttest.New(c)
			k, err := kernel.Describe(t.Context(), g.Guest(), nil)
			if err != nil {
				t.Errorf("%s, %s: %v", b.name, name, err)
				continue
			}
			nt := k.NT()
			if pcr, err := nt.PCR(t.Context(), 0); err != nil || pcr != g.PCR || nt.ModuleList != g.ModuleList || nt.ProcessHead != g.ProcessHead {
				t.Errorf("%s, %s: KPCR %v, %v, heads %v %v", b.name, name, pcr, err, nt.ModuleList, nt.ProcessHead)
			}
		}
	}
}

// Without registers the kernel is found by the process System.
func TestNTWithoutRegisters(t *testing.T) {
	for _, b := range ntBuilds {
		g := nttest.New(b.config())
		image := vitrine.New(imageOnly{g.Backend}, vitrine.Info{Name: "raw", Backend: "dump", Arch: arch.AMD64, CPUs: 1})
		k, err := kernel.Describe(t.Context(), image, nil)
		if err != nil || k.Base() != g.Base || k.NT().ProcessHead != g.ProcessHead {
			t.Errorf("%s: %v", b.name, err)
		}
	}
}

func TestNTNotBooted(t *testing.T) {
	for _, b := range ntBuilds {
		g := nttest.New(b.config())
		g.Word(g.Exports["PsInitialSystemProcess"], 0)
		if k, err := kernel.Describe(t.Context(), g.Guest(), &kernel.Options{Wait: -1}); !errors.Is(err, vitrine.ErrNotBooted) || !strings.Contains(err.Error(), "System") {
			t.Errorf("%s without System: %v, %v", b.name, k, err)
		}
		c := b.config()
		c.Processes = c.Processes[:1]
		if k, err := kernel.Describe(t.Context(), nttest.New(c).Guest(), &kernel.Options{Wait: -1}); !errors.Is(err, vitrine.ErrNotBooted) {
			t.Errorf("%s with System only: %v, %v", b.name, k, err)
		}
		if _, err := kernel.Describe(t.Context(), nttest.New(c).Guest(), &kernel.Options{Early: true}); err != nil {
			t.Errorf("%s with System only, early: %v", b.name, err)
		}
	}
}

// Whatever one page of the kernel is replaced by, Describe ends, with a kernel
// or an error.
func TestNTGarbage(t *testing.T) {
	b := ntBuilds[7]
	g := nttest.New(b.config())
	page := make([]byte, arch.PageSize)
	for i := range page {
		page[i] = byte(i*7 + i>>8)
	}
	for _, at := range []arch.GVA{g.Base, g.Base + 0x4000, g.Base + 0xc000, g.PCR, g.Processes[0].Task.Page(), g.Processes[1].Task.Page()} {
		old := make([]byte, arch.PageSize)
		if _, err := g.Guest().ReadPhysical(old, g.Kernel.Phys(at)); err != nil {
			t.Fatal(err)
		}
		g.Kernel.Put(at, page)
		k, err := kernel.Describe(t.Context(), g.Guest(), &kernel.Options{Wait: -1})
		if (k == nil) == (err == nil) {
			t.Errorf("page at %v: %v, %v", at, k, err)
		}
		g.Kernel.Put(at, old)
	}
}
