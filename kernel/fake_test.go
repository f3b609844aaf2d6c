package kernel_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	cilium "github.com/cilium/ebpf/btf"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	kt "github.com/vitrine-vmi/vitrine/kernel/internal/kallsymstest"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// The parts of a fake kernel, as distances from its base.
const (
	fakeRodata  = 1 << 20 // constants: banner, symbol table, BTF
	fakeTable   = fakeRodata + 0x1000
	fakeBTF     = fakeRodata + 0x80000
	fakeData    = 2 << 20
	fakeTop     = fakeData // the kernel's page table, mapped onto itself
	fakeVars    = fakeData + 0x1000
	fakeUTS     = fakeVars + 0x100
	fakePercpu  = fakeVars + 0x800
	fakeCalls   = fakeVars + 0x900 // syscall_metadata and what it points to
	fakeDataEnd = fakeData + 0x10000

	fakeSlide   = 0x2200000
	fakeDirect  = arch.GVA(0xffff_8880_0000_0000) // the direct map of physical memory
	fakeInfo    = fakeDirect + 0x1000
	fakeRelease = "6.1.0-50-cloud-amd64"
	fakeID      = "bb603a9147d3efe4744bf83c83eee397c591cc20"
)

// fake is a guest that runs the least that looks like a Linux kernel.
type fake struct {
	*vitrinetest.Backend
	space *vitrinetest.Space
	base  arch.GVA
	info  vitrine.Info
}

// fakeOptions choose what kernel to fake; the zero value is a good one.
type fakeOptions struct {
	layout  kt.Layout // "" is that of 6.12
	mode    arch.PagingMode
	release string // what the banner says
	noInfo  bool   // no VMCOREINFO
	noBTF   bool
	noData  bool   // symbols of functions only, as without CONFIG_KALLSYMS_ALL
	state   uint32 // system_state; 0 is replaced by 3, running
}

func (o fakeOptions) withDefaults() fakeOptions {
	if o.layout == "" {
		o.layout = kt.Linux612
	}
	if o.mode == arch.PagingOff {
		o.mode = arch.Paging4Level
	}
	if o.release == "" {
		o.release = fakeRelease
	}
	if o.state == 0 {
		o.state = 3
	}
	return o
}

// newFake returns a guest whose only processor executes a fake kernel.
func newFake(t testing.TB, o fakeOptions) *fake {
	f := &fake{Backend: vitrinetest.New(), info: vitrine.Info{Name: "fake", Backend: "fake", Arch: arch.AMD64, CPUs: 1, Live: true}}
	f.space = f.addKernel(t, o)
	f.runIn(f.space.Mode(), f.space.Root(), uint64(f.base)+0x100)
	f.SetLog(false)
	return f
}

func (f *fake) guest() *vitrine.Guest { return vitrine.New(f, f.info) }

func describe(t testing.TB, g *vitrine.Guest, opts *kernel.Options) *kernel.Kernel {
	t.Helper()
	k, err := kernel.Describe(t.Context(), g, opts)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// imageOnly hides all but memory, as a raw memory image does.
type imageOnly struct{ vitrine.Backend }

// image returns the guest as a memory image without registers.
func (f *fake) image() *vitrine.Guest {
	info := f.info
	info.Live = false
	return vitrine.New(imageOnly{f}, info)
}

// runIn sets the processor's registers.
func (f *fake) runIn(mode arch.PagingMode, root arch.GPA, rip uint64) {
	r := arch.Registers{CR0: arch.CR0PE | arch.CR0PG, CR3: uint64(root), CR4: arch.CR4PAE, EFER: arch.EFERLMA | 1<<8, RIP: rip, CS: 0x10}
	if mode == arch.Paging5Level {
		r.CR4 |= arch.CR4LA57
	}
	f.SetRegisters(r)
}

// addKernel puts a kernel into the guest's memory.
func (f *fake) addKernel(t testing.TB, o fakeOptions) *vitrinetest.Space {
	o = o.withDefaults()
	if o.mode == arch.PagingARM48 {
		return f.addARMKernel(t, o)
	}
	s := f.NewSpace(o.mode)
	f.base = 0xffff_ffff_8100_0000 + fakeSlide
	s.Map(f.base, fakeRodata, 0)
	s.Map(f.base+fakeRodata, fakeData-fakeRodata, vitrinetest.NoExec)
	s.MapTo(f.base+fakeTop, s.Root(), vitrinetest.Page4K, vitrinetest.NoExec|vitrinetest.Writable)
	s.Map(f.base+fakeVars, fakeDataEnd-fakeVars, vitrinetest.NoExec|vitrinetest.Writable)
	s.PutString(f.base+fakeRodata, "Linux version "+o.release+" (debian-kernel@lists.debian.org)\n")
	blob := fakeTypes(t)
	if !o.noBTF {
		s.Put(f.base+fakeBTF, blob)
	}
	table := kt.Build(o.layout, uint64(f.base)+fakeTable, uint64(f.base), f.symbols(o, len(blob)))
	s.Put(f.base+fakeTable, table)
	f.putVariables(s, o)
	return s
}

// symbols returns the fake kernel's symbols in address order.
func (f *fake) symbols(o fakeOptions, btfSize int) []kt.Symbol {
	at := func(off int) uint64 { return uint64(f.base) + uint64(off) }
	out := kt.Many(o.layout, uint64(f.base), 700)
	if o.noData {
		return out
	}
	add := func(off int, name string) { out = append(out, kt.Symbol{Addr: at(off), Type: 'D', Name: name}) }
	add(fakeRodata, "linux_banner")
	if !o.noBTF {
		add(fakeBTF, "__start_BTF")
		add(fakeBTF+btfSize, "__stop_BTF")
	}
	add(fakeTop, "init_top_pgt")
	add(fakeVars, "system_state")
	add(fakeVars+8, "nr_cpu_ids")
	add(fakeVars+16, "__cpu_online_mask")
	add(fakeVars+24, "syscalls_metadata")
	if !o.noInfo {
		add(fakeVars+32, "vmcoreinfo_note")
	}
	add(fakeUTS, "init_uts_ns")
	add(modulesHead, "modules")
	add(fakePercpu, "__per_cpu_offset")
	add(fakeDataEnd, "_end")
	return out
}

func (f *fake) putVariables(s *vitrinetest.Space, o fakeOptions) {
	s.PutUint32(f.base+fakeVars, o.state)
	s.PutUint32(f.base+fakeVars+8, 1)
	s.PutUint64(f.base+fakeVars+16, 1)
	s.PutUint64(f.base+fakeVars+24, uint64(f.base)+fakeCalls)
	s.PutString(f.base+fakeUTS, "Linux")
	s.PutString(f.base+fakeUTS+2*65, o.release)
	s.PutUint64(f.base+fakePercpu, uint64(f.base)+fakeData) // the instance of an absolute symbol
	s.PutUint64(f.base+modulesHead, uint64(f.base)+modulesHead)
	f.putSyscall(s)
	if !o.noInfo {
		s.Map(fakeDirect, 0x3000, vitrinetest.NoExec|vitrinetest.Writable) // the direct map, where the note is
		s.PutUint64(f.base+fakeVars+32, uint64(fakeInfo))
		// A real image is one piece of physical memory; here the page table lies apart.
		phys := int64(s.Root()) - int64(f.base+fakeTop-0xffff_ffff_8000_0000)
		s.Put(fakeInfo, note(fakeNote(f.base, o, phys)))
	}
}

// putSyscall puts an array of metadata in which number 2 alone is a call.
func (f *fake) putSyscall(s *vitrinetest.Space) {
	at := f.base + fakeCalls
	s.PutUint64(at+16, uint64(at)+0x100)
	m := at + 0x100
	s.PutUint64(m, uint64(at)+0x180)
	s.PutUint32(m+8, 2)
	s.PutUint32(m+12, 1)
	s.PutUint64(m+16, uint64(at)+0x140)
	s.PutUint64(m+24, uint64(at)+0x148)
	s.PutUint64(at+0x140, uint64(at)+0x190)
	s.PutUint64(at+0x148, uint64(at)+0x1a0)
	s.PutString(at+0x180, "sys_open")
	s.PutString(at+0x190, "const char *")
	s.PutString(at+0x1a0, "filename")
}

// fakeNote returns a VMCOREINFO text.
func fakeNote(base arch.GVA, o fakeOptions, phys int64) string {
	l5 := 0
	if o.mode == arch.Paging5Level {
		l5 = 1
	}
	return fmt.Sprintf("OSRELEASE=%s\nBUILD-ID=%s\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=%x\nOFFSET(uts_namespace.name)=0\n"+
		"SYMBOL(swapper_pg_dir)=%x\nSYMBOL(_stext)=%x\nNUMBER(phys_base)=%d\nNUMBER(pgtable_l5_enabled)=%d\nKERNELOFFSET=%x\n",
		o.release, fakeID, uint64(base)+fakeUTS, uint64(base)+fakeTop, uint64(base), phys, l5, fakeSlide)
}

// note wraps a text as the kernel's ELF note.
func note(text string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 11)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return append(append(b, "VMCOREINFO\x00\x00"...), text...)
}

var fakeBlob = sync.OnceValues(buildTypes)

func fakeTypes(t testing.TB) []byte {
	blob, err := fakeBlob()
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// buildTypes returns BTF with a few types.
func buildTypes() ([]byte, error) {
	u32 := &cilium.Int{Name: "unsigned int", Size: 4}
	char := &cilium.Int{Name: "char", Size: 1, Encoding: cilium.Char}
	u64 := &cilium.Int{Name: "u64", Size: 8}
	upid := &cilium.Struct{Name: "upid", Size: 16, Members: []cilium.Member{{Name: "nr", Type: u32}, {Name: "ns", Type: u64, Offset: 64}}}
	pid := &cilium.Struct{Name: "pid", Size: 32, Members: []cilium.Member{{Name: "count", Type: u32}, {Name: "numbers", Type: &cilium.Array{Type: upid, Index: u32, Nelems: 1}, Offset: 128}}}
	task := &cilium.Struct{Name: "task_struct", Size: 96, Members: []cilium.Member{
		{Name: "pid", Type: u32, Offset: 0},
		{Type: &cilium.Union{Size: 8, Members: []cilium.Member{{Name: "flags", Type: u32}, {Name: "wide", Type: &cilium.Int{Name: "u64", Size: 8}}}}, Offset: 64},
		{Name: "comm", Type: &cilium.Array{Type: char, Index: u32, Nelems: 16}, Offset: 128},
		{Name: "parent", Type: u64, Offset: 256}, {Name: "real_parent", Type: u64, Offset: 320}, {Name: "group_leader", Type: u64, Offset: 384},
		{Name: "thread_pid", Type: u64, Offset: 448}, {Name: "tasks", Type: &cilium.Array{Type: u64, Index: u32, Nelems: 2}, Offset: 512},
		{Name: "mm", Type: u64, Offset: 640},
	}}
	states := &cilium.Enum{Name: "system_states", Size: 4, Values: []cilium.EnumValue{
		{Name: "SYSTEM_BOOTING", Value: 0}, {Name: "SYSTEM_SCHEDULING", Value: 1}, {Name: "SYSTEM_FREEING_INITMEM", Value: 2}, {Name: "SYSTEM_RUNNING", Value: 3}}}
	b, err := cilium.NewBuilder(append(moduleTypes(), task, pid, states), nil)
	if err != nil {
		return nil, err
	}
	for i := range 2500 { // as large as the least that is taken for a kernel's
		if _, err := b.Add(&cilium.Struct{Name: fmt.Sprintf("filler_structure_%d", i), Size: 4}); err != nil {
			return nil, err
		}
	}
	return b.Marshal(nil, nil)
}
