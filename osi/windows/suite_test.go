package windows

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
	"github.com/vitrine-vmi/vitrine/vitrinetest/providertest"
)

// build is a build to lay out.
type build struct {
	name                string
	major, minor, build int
	mode                arch.PagingMode
	bits                int
	inline              bool
	cookie              byte
	flags               vadFlags
}

var builds = []build{
	{"XP SP3 x86", 5, 1, 2600, arch.Paging32Bit, 0, false, 0, flagsXP},
	{"2003 x86", 5, 2, 3790, arch.Paging32Bit, 0, true, 0, flags7},
	{"2003 x64", 5, 2, 3790, arch.Paging4Level, 0, true, 0, flags7x64},
	{"Vista x64", 6, 0, 6002, arch.Paging4Level, 0, true, 0, flags7x64},
	{"7 SP1 x86 PAE", 6, 1, 7601, arch.PagingPAE, 0, true, 0, flags7},
	{"7 SP1 x64", 6, 1, 7601, arch.Paging4Level, 0, true, 0, flags7x64},
	{"8 x64", 6, 2, 9200, arch.Paging4Level, 41, true, 0, flags8},
	{"8.1 x64", 6, 3, 9600, arch.Paging4Level, 44, false, 0, flags8},
	{"10 17763 x64", 10, 0, 17763, arch.Paging4Level, 44, false, 0x11, flags1903},
	{"10 19041 x86", 10, 0, 19041, arch.PagingPAE, 29, false, 0x5a, flags1903},
	{"10 19045 x64", 10, 0, 19045, arch.Paging4Level, 44, false, 0x5a, flags1903},
	{"11 22631 x64 LA57", 10, 0, 22631, arch.Paging5Level, 44, false, 0xc3, flags11},
}

func (b build) x64() bool { return b.mode >= arch.Paging4Level }

func (b build) offsets() nttest.Offset {
	types, _, _ := kernel.NTLayout(b.build, b.x64())
	return func(structName, path string) (uint64, bool) {
		f, err := types.Field(structName, path)
		return f.Offset, err == nil
	}
}

// flagsOf makes the flags of a mapping.
func (b build) flagsOf(kind, protection uint64, private bool) uint64 {
	if b.flags.kindBits == 1 && kind == vadImage {
		kind = 1
	}
	v := kind<<b.flags.kind | protection<<b.flags.protection
	if private {
		v |= 1 << b.flags.private
	}
	return v
}

const (
	disk    = `\Device\HarddiskVolume1`
	created = 0x01d8_0000_0000_0000
)

var (
	systemSID = []byte{1, 1, 0, 0, 0, 0, 0, 5, 18, 0, 0, 0}
	userSID   = []byte{1, 5, 0, 0, 0, 0, 0, 5, 21, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0xe8, 3, 0, 0}
)

// system32 is a file of Windows.
func system32(name string) string { return `\Windows\System32\` + name }

func (b build) config() nttest.Config {
	ntdll := nttest.Module{Name: "ntdll.dll", Path: `C:` + system32("ntdll.dll"), Base: 0x77000000, Size: 0x3000}
	kernel32 := nttest.Module{Name: "KERNEL32.DLL", Path: `C:` + system32("KERNEL32.DLL"), Base: 0x76000000, Size: 0x2000}
	mapped := func(start arch.GVA, size arch.GVA, file string) nttest.VAD {
		return nttest.VAD{Start: start, End: start + size, Flags: b.flagsOf(vadImage, 7, false), Device: disk, File: file}
	}
	private := func(start, size arch.GVA) nttest.VAD {
		return nttest.VAD{Start: start, End: start + size, Flags: b.flagsOf(0, 4, true), Private: true}
	}
	smss := &nttest.Process{PID: 300, PPID: 4, Name: "smss.exe", Image: disk + system32("smss.exe"), ImagePath: `\SystemRoot\System32\smss.exe`, Command: `\SystemRoot\System32\smss.exe`,
		Cwd: `C:\Windows\`, SID: systemSID, Created: created + 10, Base: 0x48580000, Threads: []nttest.Thread{{TID: 304, State: 5}},
		Libraries: []nttest.Module{{Name: "smss.exe", Path: `\SystemRoot\System32\smss.exe`, Base: 0x48580000, Size: 0x4000}, ntdll},
		VADs:      []nttest.VAD{mapped(0x48580000, 0x4000, system32("smss.exe")), mapped(0x77000000, 0x3000, system32("ntdll.dll"))},
		Handles:   []nttest.Handle{{Value: 4, Type: "Event", Access: 3}}}
	notepad := &nttest.Process{PID: 1234, PPID: 300, Name: "notepad.exe", Image: disk + `\Windows\notepad.exe`, ImagePath: `C:\Windows\notepad.exe`, Command: `"C:\Windows\notepad.exe" a\b "c d.txt"`,
		Cwd: `C:\Users\me\`, SID: userSID, Session: 1, Created: created + 20, Base: 0x400000, Threads: []nttest.Thread{{TID: 1238, State: 2}, {TID: 1242, State: 5}},
		Libraries: []nttest.Module{{Name: "notepad.exe", Path: `C:\Windows\notepad.exe`, Base: 0x400000, Size: 0x2000}, ntdll, kernel32},
		VADs: []nttest.VAD{private(0x10000, 0x10000), mapped(0x400000, 0x2000, `\Windows\notepad.exe`), mapped(0x76000000, 0x2000, system32("KERNEL32.DLL")),
			mapped(0x77000000, 0x3000, system32("ntdll.dll")), {Start: 0x50000, End: 0x58000, Flags: b.flagsOf(0, 1, false), Device: disk, File: `\Windows\Fonts\x.ttf`}, private(0x7ffd8000, 0x1000)},
		Handles: []nttest.Handle{
			{Value: 4, Type: "Key", Name: `\REGISTRY\MACHINE\SOFTWARE`, Access: 0x20019},
			{Value: 8, Type: "File", Device: disk, Name: `\Users\me\c d.txt`, Access: 0x120089, Pos: 77},
			{Value: 12, Type: "Mutant", Name: "TheMutant", Access: 0x1f0001},
			{Value: 20, Type: "Event", Access: 0x1f0003},
			{Value: 24, Type: "Process", Name: "smss.exe", Access: 0x1000},
			{Value: 2052, Type: "File", Device: `\Device\NamedPipe`, Name: `\pipe`, Access: 0x12019f}, // on the second page
		}}
	if b.x64() {
		notepad.Libs32 = []nttest.Module{{Name: "notepad.exe", Path: `C:\Windows\notepad.exe`, Base: 0x400000, Size: 0x2000},
			{Name: "wow.dll", Path: `C:\Windows\SysWOW64\wow.dll`, Base: 0x75000000, Size: 0x1000}}
	}
	return nttest.Config{Mode: b.mode, Offset: b.offsets(), Major: b.major, Minor: b.minor, Build: b.build, HandleBits: b.bits, InlineVAD: b.inline, Cookie: b.cookie,
		Processes: []*nttest.Process{
			{PID: 4, Name: "System", SID: systemSID, Created: created, Threads: []nttest.Thread{{TID: 8, State: 5}, {TID: 12, State: 5}},
				Handles: []nttest.Handle{{Value: 4, Type: "Key", Name: `\REGISTRY`, Access: 0xf003f}}},
			smss, notepad,
		},
		Drivers: []nttest.Module{{Name: "hal.dll", Path: `\SystemRoot\system32\hal.dll`, Base: 0x80010000, Size: 0x20000}, {Name: "disk.sys", Base: 0x80040000, Size: 0x5000}},
	}
}

// openFake opens the system of a guest.
func openFake(t testing.TB, g *nttest.Guest) *system {
	t.Helper()
	v := g.Guest()
	k, err := kernel.Describe(t.Context(), v, &kernel.Options{Wait: -1})
	if err != nil {
		t.Fatal(err)
	}
	sys, err := osi.Open(t.Context(), v, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sys.(*system)
}

// truth is what the suite is to find in the guest of config.
func (b build) truth(g *nttest.Guest) *providertest.Truth {
	m := func(start, size arch.GVA, perms, name string) osi.Mapping {
		return osi.Mapping{Range: osi.Range{Start: start, End: start + size}, Perms: perms, Name: name}
	}
	file := func(fd int, kind, path string, access uint32, pos int64) osi.File {
		return osi.File{FD: fd, Type: kind, Path: path, Flags: access, Pos: pos}
	}
	start := func(n uint64) time.Time { return kernel.Filetime(created + n) }
	libraries := map[int][]osi.Library{}
	for _, p := range g.Processes {
		for _, l := range append(p.Libraries, p.Libs32...) {
			if l.Base != p.Base {
				libraries[p.PID] = append(libraries[p.PID], osi.Library{Name: l.Name, Path: l.Path, Base: l.Base, Size: uint64(l.Size)})
			}
		}
	}
	byBase := func(p providertest.Process) []osi.Library {
		var out []osi.Library
		for _, base := range []arch.GVA{0x75000000, 0x76000000, 0x77000000} {
			for _, l := range libraries[p.PID] {
				if l.Base == base {
					out = append(out, l)
				}
			}
		}
		return out
	}
	return &providertest.Truth{NT: true, LibrariesOf: byBase,
		Modules: []osi.Module{{Name: "ntoskrnl.exe", Base: g.Base, Size: 0x12000}, {Name: "hal.dll", Base: 0x80010000, Size: 0x20000}, {Name: "disk.sys", Base: 0x80040000, Size: 0x5000}},
		Processes: []providertest.Process{
			{PID: 4, Name: "System", KThread: true, Threads: 2, TIDs: []int{8, 12}, Start: start(0), Files: []osi.File{file(4, "Key", `\REGISTRY`, 0xf003f, 0)}},
			{PID: 300, PPID: 4, Name: "smss.exe", Exe: disk + system32("smss.exe"), Args: []string{`\SystemRoot\System32\smss.exe`}, Threads: 1, TIDs: []int{304}, Start: start(10), Cwd: `C:\Windows\`,
				Mappings: []osi.Mapping{m(0x48580000, 0x4000, "rwxp", disk+system32("smss.exe")), m(0x77000000, 0x3000, "rwxp", disk+system32("ntdll.dll"))},
				Files:    []osi.File{file(4, "Event", "", 3, 0)}},
			{PID: 1234, PPID: 300, Name: "notepad.exe", Compat: b.x64(), Exe: disk + `\Windows\notepad.exe`, Args: []string{`C:\Windows\notepad.exe`, `a\b`, "c d.txt"}, Threads: 2, TIDs: []int{1238, 1242}, Start: start(20), Cwd: `C:\Users\me\`,
				Mappings: []osi.Mapping{m(0x10000, 0x10000, "rw-p", ""), m(0x50000, 0x8000, "r--s", disk+`\Windows\Fonts\x.ttf`), m(0x400000, 0x2000, "rwxp", disk+`\Windows\notepad.exe`),
					m(0x76000000, 0x2000, "rwxp", disk+system32("KERNEL32.DLL")), m(0x77000000, 0x3000, "rwxp", disk+system32("ntdll.dll")), m(0x7ffd8000, 0x1000, "rw-p", "")},
				Files: []osi.File{file(4, "Key", `\REGISTRY\MACHINE\SOFTWARE`, 0x20019, 0), file(8, "File", disk+`\Users\me\c d.txt`, 0x120089, 77), file(12, "Mutant", "TheMutant", 0x1f0001, 0),
					file(20, "Event", "", 0x1f0003, 0), file(24, "Process", "smss.exe(300)", 0x1000, 0), file(2052, "File", `\Device\NamedPipe\pipe`, 0x12019f, 0)}},
		}}
}

func TestSuite(t *testing.T) {
	for _, b := range builds {
		t.Run(b.name, func(t *testing.T) {
			g := nttest.New(b.config())
			providertest.Test(t, openFake(t, g), b.truth(g))
		})
	}
}

// What only NT has.
func TestProcessOfNT(t *testing.T) {
	for _, b := range builds {
		s := openFake(t, nttest.New(b.config()))
		p, err := s.ProcessByPID(t.Context(), 1234)
		want := osi.Process{CommandLine: `"C:\Windows\notepad.exe" a\b "c d.txt"`, User: "S-1-5-21-1-2-3-1000", Session: 1, WOW64: b.x64(), Handles: 6}
		got := osi.Process{CommandLine: p.CommandLine, User: p.User, Session: p.Session, WOW64: p.WOW64, Handles: p.Handles}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", b.name, err, diff)
		}
		if p, err := s.ProcessByPID(t.Context(), 4); err != nil || p.User != "S-1-5-18" || p.WOW64 || p.Handles != 1 {
			t.Errorf("%s: System: %+v, %v", b.name, p, err)
		}
	}
}

func TestCurrentOfNT(t *testing.T) {
	for _, b := range builds {
		for _, user := range []bool{false, true} {
			c := b.config()
			c.User = user
			th, err := openFake(t, nttest.New(c)).Current(t.Context(), 0)
			if err != nil || th.TID != 1238 || th.PID != 1234 || th.Name != "notepad.exe" || th.State != 'R' {
				t.Errorf("%s, user mode %v: %+v, %v", b.name, user, th, err)
			}
		}
		c := b.config()
		c.Idle = true
		th, err := openFake(t, nttest.New(c)).Current(t.Context(), 0)
		want := osi.Thread{Name: "Idle", State: 'R', KThread: true}
		if diff := cmp.Diff(want, th, cmpopts.IgnoreFields(osi.Thread{}, "Handle", "ID")); err != nil || diff != "" {
			t.Errorf("%s, idle: %v\n%s", b.name, err, diff)
		}
	}
}
