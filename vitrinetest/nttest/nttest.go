// Package nttest lays out the memory of a guest as an NT kernel would: image
// with exports and accessors, KPCR, processes, threads, drivers, loader lists,
// mappings and handles. It is for tests of what reads them; what it makes is
// no Windows, and shows that code paths work, not that Windows is so.
//
// Where members lie is told by the caller, by the same names as in the
// kernel's symbols, so that one test can run over the layouts of many builds.
// Mistakes of the test panic.
package nttest

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// Offset tells where a member of a structure lies in the guest; false when the
// build has no such member.
type Offset func(structName, path string) (uint64, bool)

// Config is a guest to make. The zero value of most members leaves something out.
type Config struct {
	Mode         arch.PagingMode
	Offset       Offset
	Major, Minor int
	Build        int
	HandleBits   int  // bits of ObjectPointerBits in a handle table entry, 0 for a plain pointer
	InlineVAD    bool // EPROCESS holds a MM_AVL_TABLE instead of a pointer to the top node
	Cookie       byte // the type indices in object headers are hidden with it; 0 means plain
	NoAccessors  bool
	NoModuleName bool // PsLoadedModuleList is not exported
	NoKDBG       bool
	User         bool       // the processor runs user code
	NoKernelGS   bool       // the backend does not tell what SWAPGS would load, but the tables of descriptors, as the monitor of QEMU does
	Idle         bool       // the processor runs the idle thread; else the first thread of the last process
	LargeKernel  bool       // the image is mapped by 2 MiB pages
	Processes    []*Process // System first
	// Services are numbers of exported services by name; nil: there is no service table.
	Services      map[string]int
	NoServiceName bool     // KeServiceDescriptorTable is not exported, as it is by 32-bit kernels
	Drivers       []Module // without the kernel itself
}

// Module is a driver or library.
type Module struct {
	Name, Path string
	Base       arch.GVA
	Size       uint32
}

// Thread is a thread of a process.
type Thread struct {
	TID   int
	State byte
	Task  arch.GVA // filled in
}

// VAD is a mapping.
type VAD struct {
	Start, End arch.GVA // End is the first address behind it
	Flags      uint64   // the value of its VadFlags
	Private    bool
	File       string // path within its device
	Device     string // name of the device: "\Device\HarddiskVolume1"
}

// Handle is an open handle.
type Handle struct {
	Value  int
	Type   string // "File", "Key", "Mutant", ...
	Name   string // of the object; of a file its path within Device, of a key its path
	Device string
	Access uint32
	Pos    uint64
}

// Process is a process to make.
type Process struct {
	PID, PPID int
	Name      string // ImageFileName
	Image     string // NT path, SeAuditProcessCreationInfo
	ImagePath string // DOS path, in the process parameters
	Command   string
	Cwd       string
	SID       []byte
	Session   uint32
	Created   uint64 // FILETIME
	Base      arch.GVA
	Threads   []Thread
	Libraries []Module // the executable first
	Libs32    []Module // of the second loader list of a 32-bit process on x64
	VADs      []VAD
	Handles   []Handle
	Exited    bool

	Task  arch.GVA           // filled in: EPROCESS
	PEB   arch.GVA           // filled in
	Space *vitrinetest.Space // filled in
}

// Guest is the guest that was made.
type Guest struct {
	*vitrinetest.Backend
	Config
	Kernel      *vitrinetest.Space
	X64         bool
	Base        arch.GVA // of the kernel
	Exports     map[string]arch.GVA
	ProcessHead arch.GVA
	ModuleList  arch.GVA
	PCR         arch.GVA
	GUID        string
	// ServiceTable is where the service table is, 0 without one.
	ServiceTable arch.GVA

	w       uint64   // bytes of a pointer
	pool    arch.GVA // next free byte
	poolEnd arch.GVA
	data    arch.GVA // next free byte of the image's data
	text    arch.GVA
	types   map[string]arch.GVA // OBJECT_TYPEs
	indices map[string]int
	idle    arch.GVA
	order   []string // names of exports in the order they were made
	devices map[string]arch.GVA
	keys    map[string]arch.GVA
}

// Places of the image's parts, behind its base.
const (
	textAt, dataAt, edataAt, rdataAt = 0x1000, 0x4000, 0xc000, 0x10000
	imageSize                        = 0x12000
	poolSize                         = 2 << 20
)

// New makes a guest.
func New(c Config) *Guest {
	g := &Guest{Backend: vitrinetest.New(), Config: c, Exports: map[string]arch.GVA{}, types: map[string]arch.GVA{}, indices: map[string]int{},
		devices: map[string]arch.GVA{}, keys: map[string]arch.GVA{}}
	g.SetLog(false)
	g.X64 = c.Mode == arch.Paging4Level || c.Mode == arch.Paging5Level
	g.Kernel = g.NewSpace(c.Mode)
	g.w, g.Base, g.pool = 4, 0x82600000, 0x85000000
	shared, pcr := arch.GVA(0xffdf0000), arch.GVA(0x82980000)
	if g.X64 {
		g.w, g.Base, g.pool = 8, 0xfffff80002a00000, 0xffffa80000000000
		shared, pcr = 0xfffff78000000000, 0xfffff80100000000
	}
	if c.Build < 9600 && g.X64 { // until 8 the kernel had the uppermost 8 TiB only
		g.pool = 0xfffffa8000000000
	}
	if c.Build < 6000 && !g.X64 {
		pcr = 0xffdff000
	}
	g.PCR = pcr
	g.mapImage()
	g.Kernel.Map(g.pool, poolSize, vitrinetest.Writable|vitrinetest.NoExec)
	g.poolEnd = g.pool + poolSize
	g.pool += 0x1000
	g.Kernel.Map(shared, arch.PageSize, 0)
	g.Kernel.Map(pcr, arch.PageSize, vitrinetest.Writable)
	g.data, g.text = g.Base+dataAt, g.Base+textAt
	g.Kernel.PutUint32(shared+0x26c, uint32(c.Major))
	g.Kernel.PutUint32(shared+0x270, uint32(c.Minor))
	g.fill()
	return g
}

func (g *Guest) mapImage() {
	if g.LargeKernel {
		pa := g.Alloc(2 * 512)
		pa = (pa + vitrinetest.Page2M - 1) &^ (vitrinetest.Page2M - 1)
		g.Kernel.MapTo(g.Base, pa, vitrinetest.Page2M, vitrinetest.Writable)
		return
	}
	g.Kernel.Map(g.Base, imageSize, vitrinetest.Writable)
}

// fill makes everything, the image's headers last, when all exports are known.
func (g *Guest) fill() {
	for _, name := range []string{"PsInitialSystemProcess", "PsLoadedModuleList", "NtBuildNumber", "PsProcessType", "PsThreadType", "NtBuildLab"} {
		g.variable(name, 64)
	}
	g.Kernel.PutUint32(g.Exports["NtBuildNumber"], 0xf0000000|uint32(g.Build))
	g.Kernel.PutString(g.Exports["NtBuildLab"], fmt.Sprintf("%d.nttest", g.Build))
	g.ProcessHead = g.reserve(2 * g.w)
	g.ModuleList = g.Exports["PsLoadedModuleList"]
	if g.NoModuleName {
		delete(g.Exports, "PsLoadedModuleList")
	}
	g.emptyList(g.ProcessHead)
	g.emptyList(g.ModuleList)
	g.makeTypes()
	g.makeModules()
	for _, p := range g.Processes {
		g.makeProcess(p)
	}
	g.Word(g.Exports["PsInitialSystemProcess"], uint64(g.Processes[0].Task))
	g.makePCR()
	if !g.NoKDBG {
		g.makeKDBG()
	}
	if !g.NoAccessors {
		g.makeAccessors()
	}
	g.makeServices()
	g.makeHeaders()
}

// At returns where a member lies. It panics when the build has none.
func (g *Guest) At(structName, path string) arch.GVA {
	off, ok := g.Offset(structName, path)
	if !ok {
		panic(fmt.Sprintf("nttest: no member %s.%s", structName, path))
	}
	return arch.GVA(off)
}

// has returns where a member lies, and whether there is one.
func (g *Guest) has(structName, path string) (arch.GVA, bool) {
	off, ok := g.Offset(structName, path)
	return arch.GVA(off), ok
}

// Word stores a pointer in the kernel's memory.
func (g *Guest) Word(at arch.GVA, v uint64) { g.Kernel.PutUint(at, v, int(g.w)) }

// set stores a pointer-sized member.
func (g *Guest) set(base arch.GVA, structName, path string, v uint64) {
	g.Word(base+g.At(structName, path), v)
}

// reserve takes bytes of the image's data.
func (g *Guest) reserve(n uint64) arch.GVA {
	at := g.data
	g.data += arch.GVA(n+15) &^ 15
	if g.data > g.Base+edataAt {
		panic("nttest: the image's data is full")
	}
	return at
}

// variable makes an exported variable.
func (g *Guest) variable(name string, n uint64) { g.export(name, g.reserve(n)) }

func (g *Guest) export(name string, at arch.GVA) {
	g.Exports[name] = at
	g.order = append(g.order, name)
}

// Pool takes bytes of kernel memory, 16-aligned behind a pool header.
func (g *Guest) Pool(n uint64) arch.GVA {
	at := g.pool + 16
	g.pool = at + arch.GVA(n+15)&^15
	if g.pool > g.poolEnd {
		panic("nttest: the pool is full")
	}
	return at
}

func (g *Guest) emptyList(at arch.GVA) {
	g.Word(at, uint64(at))
	g.Word(at+arch.GVA(g.w), uint64(at))
}

// append adds a link at the end of the list at head.
func (g *Guest) append(s *vitrinetest.Space, head, link arch.GVA, w uint64) {
	last := arch.GVA(readWord(s, head+arch.GVA(w), w))
	s.PutUint(link, uint64(head), int(w))
	s.PutUint(link+arch.GVA(w), uint64(last), int(w))
	s.PutUint(last, uint64(link), int(w))
	s.PutUint(head+arch.GVA(w), uint64(link), int(w))
}

func readWord(s *vitrinetest.Space, at arch.GVA, w uint64) uint64 {
	v := s.Uint64(at)
	if w == 4 {
		v &= 1<<32 - 1
	}
	return v
}

// unicode stores a UNICODE_STRING at, its text at text.
func unicode(s *vitrinetest.Space, at, text arch.GVA, str string, w uint64) {
	u := utf16.Encode([]rune(str))
	var b []byte
	for _, c := range u {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	s.Put(text, append(b, 0, 0))
	s.PutUint(at, uint64(len(b)), 2)
	s.PutUint(at+2, uint64(len(b)+2), 2)
	s.PutUint(at+arch.GVA(w), uint64(text), int(w))
}

// str stores a UNICODE_STRING with text in kernel memory; an empty one is zero.
func (g *Guest) str(at arch.GVA, s string) {
	if s != "" {
		unicode(g.Kernel, at, g.Pool(uint64(2*len(s)+2)), s, g.w)
	}
}

// makeModules makes the list of drivers, the kernel's own entry first.
func (g *Guest) makeModules() {
	all := append([]Module{{Name: "ntoskrnl.exe", Path: `\SystemRoot\system32\ntoskrnl.exe`, Base: g.Base, Size: imageSize}}, g.Drivers...)
	for _, m := range all {
		at := g.Pool(0x100)
		g.fillLoaderEntry(g.Kernel, at, m, g.w, func(va arch.GVA, s string) { g.str(va, s) })
		g.append(g.Kernel, g.ModuleList, at, g.w)
	}
}

// loader holds the members of LDR_DATA_TABLE_ENTRY, the same in every build:
// for pointers of w bytes.
func (g *Guest) fillLoaderEntry(s *vitrinetest.Space, at arch.GVA, m Module, w uint64, str func(arch.GVA, string)) {
	n := arch.GVA(w)
	s.PutUint(at+6*n, uint64(m.Base), int(w))
	s.PutUint32(at+8*n, m.Size)
	str(at+9*n, m.Path)
	str(at+11*n, m.Name)
}

// makeKDBG makes the block that tells a debugger where things are.
func (g *Guest) makeKDBG() {
	kd, version := g.reserve(0x340), g.reserve(0x40)
	list := g.reserve(16)
	for at, v := range map[arch.GVA]uint64{0x18: uint64(g.Base), 0x48: uint64(g.ModuleList), 0x50: uint64(g.ProcessHead)} {
		g.Kernel.PutUint64(kd+at, signed(v, g.w))
	}
	g.Kernel.Put(kd+0x10, []byte("KDBG"))
	g.Kernel.PutUint32(kd+0x14, 0x340)
	g.Kernel.PutUint64(version+0x10, signed(uint64(g.Base), g.w))
	g.Kernel.PutUint64(version+0x18, signed(uint64(g.ModuleList), g.w))
	g.Kernel.PutUint64(version+0x20, signed(uint64(list), g.w))
	g.Word(list, uint64(kd))
	if g.X64 {
		g.Word(g.PCR+0x108, uint64(version))
	} else {
		g.Word(g.PCR+0x34, uint64(version))
	}
}

// signed extends an address as a 64-bit debugger sees it.
func signed(v, w uint64) uint64 {
	if w == 4 {
		return uint64(int64(int32(v)))
	}
	return v
}

// Guest returns the guest: an image that lies still, as x86-64 hardware has it
// whatever the kernel is.
func (g *Guest) Guest() *vitrine.Guest {
	return vitrine.New(g.Backend, vitrine.Info{Name: "nttest", Backend: "fake", Arch: arch.AMD64, CPUs: 1, Live: true})
}

// file returns the last element of a path.
func file(path string) string { return path[strings.LastIndexByte(path, '\\')+1:] }
