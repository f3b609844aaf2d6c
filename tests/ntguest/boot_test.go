package ntguest

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/qemu"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// reader reads what a guest has laid out, by the offsets of its layout: independently of what reads NT guests in earnest.
type reader struct {
	t     *testing.T
	l     *layout
	g     *vitrine.Guest
	truth *Truth
	as    *vitrine.AddressSpace
}

func newReader(t *testing.T, g *Guest) *reader {
	t.Helper()
	data, err := DataDir()
	if err != nil {
		t.Fatal(err)
	}
	l, err := readLayout(data, g.Layout)
	if err != nil {
		t.Fatal(err)
	}
	truth, err := g.Truth(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vg, err := qemu.Attach(t.Context(), g.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vg.Close() })
	r := &reader{t: t, l: l, g: vg, truth: truth}
	r.as = vg.AddressSpace(r.mode(), arch.GPA(truth.Kernel.DTB))
	return r
}

func (r *reader) mode() arch.PagingMode {
	switch {
	case r.truth.Kernel.Arch == "x64":
		return arch.Paging4Level
	case r.truth.Kernel.PAE:
		return arch.PagingPAE
	}
	return arch.Paging32Bit
}

// of returns a reader in a process's address space.
func (r *reader) of(p *Process) *reader {
	c := *r
	c.as = r.g.AddressSpace(r.mode(), arch.GPA(p.DTB))
	return &c
}

func (r *reader) off(s, f string) Addr {
	raw, ok := r.l.Structs[s].Fields[f]
	if !ok {
		r.t.Fatalf("%s has no %s.%s", r.l.name, s, f)
	}
	offset, _ := field(raw)
	return Addr(offset)
}

func (r *reader) bytes(a Addr, n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := r.as.Read(b, arch.GVA(a)); err != nil {
		r.t.Fatalf("read %#x: %v", a, err)
	}
	return b
}

func (r *reader) u32(a Addr) uint32 { return binary.LittleEndian.Uint32(r.bytes(a, 4)) }

func (r *reader) size() Addr {
	if r.l.Arch == "x64" {
		return 8
	}
	return 4
}

func (r *reader) ptr(a Addr) Addr {
	if r.size() == 8 {
		return Addr(binary.LittleEndian.Uint64(r.bytes(a, 8)))
	}
	return Addr(r.u32(a))
}

// str reads a UNICODE_STRING.
func (r *reader) str(a Addr) string {
	b := r.bytes(r.ptr(a+r.size()), int(r.u32(a)&0xffff))
	var u []uint16
	for ; len(b) > 1; b = b[2:] {
		u = append(u, binary.LittleEndian.Uint16(b))
	}
	return string(utf16.Decode(u))
}

// list returns the entries of a list.
func (r *reader) list(head, link Addr) []Addr {
	var all []Addr
	for e := r.ptr(head); e != head && len(all) < 1000; e = r.ptr(e) {
		all = append(all, e-link)
	}
	return all
}

// Each layout boots, and what the guest tells is where it says, in the way of that build.
func TestLayouts(t *testing.T) {
	for _, name := range Layouts() {
		t.Run(name, func(t *testing.T) {
			g := Boot(t, name, nil)
			r := newReader(t, g)
			if k := r.truth.Kernel; k.Layout != name || len(k.CPUs) != 2 || len(r.truth.Processes) < 10 {
				t.Fatalf("layout %q, %d processors, %d processes", k.Layout, len(k.CPUs), len(r.truth.Processes))
			}
			t.Run("image", r.sub(checkImage))
			t.Run("processors", r.sub(checkProcessors))
			t.Run("processes", r.sub(checkProcesses))
			t.Run("user", r.sub(checkUser))
			t.Run("drivers", r.sub(checkDrivers))
			t.Run("calls", func(t *testing.T) { checkCalls(t, g, r) })
			t.Run("life", func(t *testing.T) { checkLife(t, g, r) })
		})
	}
}

func (r *reader) sub(f func(*testing.T, *reader)) func(*testing.T) {
	return func(t *testing.T) {
		c := *r
		c.t = t
		f(t, &c)
	}
}

func checkImage(t *testing.T, r *reader) {
	k := r.truth.Kernel
	nt := k.Base + Addr(r.u32(k.Base+0x3c))
	if mz, pe := string(r.bytes(k.Base, 2)), string(r.bytes(nt, 4)); mz != "MZ" || pe != "PE\x00\x00" {
		t.Errorf("image begins with %q and %q", mz, pe)
	}
	if got := Addr(r.u32(nt + 24 + 56)); got != k.Size {
		t.Errorf("size of image %#x, want %#x", got, k.Size)
	}
	phys := make([]byte, 64)
	if _, err := r.g.AddressSpace(arch.PagingOff, 0).Read(phys, arch.GVA(k.Physical)); err != nil || !slices.Equal(phys, r.bytes(k.Base, 64)) {
		t.Errorf("image is not at %#x of RAM: %v", k.Physical, err)
	}
	var fault *vitrine.FaultError
	if _, err := r.as.Read(make([]byte, 1), arch.GVA(k.PagedPage)); !errors.As(err, &fault) {
		t.Errorf("page that is paged out: %v", err)
	}
	if tag := string(r.bytes(k.KDBG+0x10, 4)); (tag == "KDBG") == k.KDBGEncoded {
		t.Errorf("debugger data has tag %q, encoded: %v", tag, k.KDBGEncoded)
	}
	if !k.KDBGEncoded {
		if got := r.ptr(k.KDBG + 0x50); got != k.PsActiveProcessHead {
			t.Errorf("debugger data has process list %#x, want %#x", got, k.PsActiveProcessHead)
		}
	}
	for name, at := range k.Functions {
		if got := r.service(r.l.services[name]); got != at {
			t.Errorf("service table has %s at %#x, want %#x", name, got, at)
		}
	}
}

// service decodes an entry of the service table.
func (r *reader) service(nr int) Addr {
	table := r.truth.Kernel.KiServiceTable
	e := r.u32(table + Addr(4*nr))
	if r.size() == 4 {
		return Addr(e)
	}
	return table + Addr(int64(int32(e)>>4))
}

func checkProcessors(t *testing.T, r *reader) {
	threads := map[Addr]bool{}
	for _, p := range r.truth.Processes {
		for _, th := range p.Threads {
			threads[th.ETHREAD] = true
		}
	}
	self := "Self"
	if r.l.Arch == "x86" {
		self = "SelfPcr"
	}
	for i, c := range r.truth.Kernel.CPUs {
		if got := r.ptr(c.KPCR + r.off("_KPCR", self)); got != c.KPCR {
			t.Errorf("processor %d: KPCR at %#x says %#x", i, c.KPCR, got)
		}
		if got := r.ptr(c.KPRCB + r.off("_KPRCB", "CurrentThread")); !threads[got] {
			t.Errorf("processor %d: current thread %#x is none", i, got)
		}
		if got := r.ptr(c.KPRCB + r.off("_KPRCB", "IdleThread")); got != c.IdleThread {
			t.Errorf("processor %d: idle thread %#x, want %#x", i, got, c.IdleThread)
		}
	}
}

// seen is what is compared of a process.
type seen struct {
	PID, PPID, Threads int
	Image, Path        string
	Created, DTB       Addr
}

func checkProcesses(t *testing.T, r *reader) {
	var want, got []seen
	for _, p := range r.truth.Processes[1:] {
		path := ""
		if len(p.Path) > 2 && p.Path[1] == ':' {
			path = `\Device\HarddiskVolume2` + p.Path[2:]
		}
		want = append(want, seen{p.PID, p.PPID, len(p.Threads), p.Image, path, p.Created, p.DTB})
	}
	for _, e := range r.list(r.truth.Kernel.PsActiveProcessHead, r.off("_EPROCESS", "ActiveProcessLinks")) {
		got = append(got, r.process(e))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("processes (-told +read):\n%s", d)
	}
	if got := r.ptr(r.truth.Kernel.PsInitialSystemProcess + r.off("_EPROCESS", "UniqueProcessId")); got != 4 {
		t.Errorf("initial process has id %d", got)
	}
}

func (r *reader) process(e Addr) seen {
	image := r.bytes(e+r.off("_EPROCESS", "ImageFileName"), 15)
	return seen{
		PID:     int(r.ptr(e + r.off("_EPROCESS", "UniqueProcessId"))),
		PPID:    int(r.ptr(e + r.off("_EPROCESS", "InheritedFromUniqueProcessId"))),
		Threads: len(r.list(e+r.off("_EPROCESS", "ThreadListHead"), 0)),
		Image:   string(image[:slices.Index(image, 0)]),
		Path:    r.str(r.ptr(e + r.off("_EPROCESS", "SeAuditProcessCreationInfo"))),
		Created: Addr(binary.LittleEndian.Uint64(r.bytes(e+r.off("_EPROCESS", "CreateTime"), 8))),
		DTB:     r.ptr(e + r.off("_KPROCESS", "DirectoryTableBase")),
	}
}

func checkUser(t *testing.T, r *reader) {
	for i := range r.truth.Processes {
		p := &r.truth.Processes[i]
		if p.PEB == 0 {
			continue
		}
		u := r.of(p)
		params := u.ptr(p.PEB + r.off("_PEB", "ProcessParameters"))
		if got := u.str(params + r.off("_RTL_USER_PROCESS_PARAMETERS", "CommandLine")); got != p.CommandLine {
			t.Errorf("pid %d: command line %q, want %q", p.PID, got, p.CommandLine)
		}
		ldr := u.ptr(p.PEB + r.off("_PEB", "Ldr"))
		checkModules(t, u, ldr, p)
	}
}

func checkModules(t *testing.T, u *reader, ldr Addr, p *Process) {
	var want []Module
	for _, m := range p.Modules {
		if !m.WOW64 {
			want = append(want, m)
		}
	}
	got := u.list(ldr+u.off("_PEB_LDR_DATA", "InLoadOrderModuleList"), 0)
	if len(got) != len(want) {
		t.Errorf("pid %d: %d modules, want %d", p.PID, len(got), len(want))
		return
	}
	for i, e := range got {
		if base := u.ptr(e + u.off("_LDR_DATA_TABLE_ENTRY", "DllBase")); base != want[i].Base {
			t.Errorf("pid %d: module %d at %#x, want %#x", p.PID, i, base, want[i].Base)
		}
		name := e + u.off("_LDR_DATA_TABLE_ENTRY", "FullDllName")
		if want[i].Held != "" {
			if _, err := u.as.Read(make([]byte, 2), arch.GVA(u.ptr(name+u.size()))); err == nil {
				t.Errorf("pid %d: the name of module %d is there", p.PID, i)
			}
		} else if path := u.str(name); path != want[i].Path {
			t.Errorf("pid %d: module %q, want %q", p.PID, path, want[i].Path)
		}
	}
}

func checkDrivers(t *testing.T, r *reader) {
	got := r.list(r.truth.Kernel.PsLoadedModuleList, 0)
	if len(got) != len(r.truth.Drivers) {
		t.Fatalf("%d drivers, want %d", len(got), len(r.truth.Drivers))
	}
	for i, e := range got {
		want := r.truth.Drivers[i]
		base, size := r.ptr(e+r.off("_LDR_DATA_TABLE_ENTRY", "DllBase")), Addr(r.u32(e+r.off("_LDR_DATA_TABLE_ENTRY", "SizeOfImage")))
		if base != want.Base || size != want.Size {
			t.Errorf("driver %s at %#x of %#x bytes, want %#x of %#x", want.Name, base, size, want.Base, want.Size)
		}
		if want.Held == "" {
			if name := r.str(e + r.off("_LDR_DATA_TABLE_ENTRY", "BaseDllName")); name != want.Name {
				t.Errorf("driver %q, want %q", name, want.Name)
			}
		}
	}
}

// roundOf is what one round of calls of a worker is: names and statuses.
var roundOf = []struct {
	name   string
	status Addr
}{
	{"NtCreateFile", 0}, {"NtOpenKey", 0}, {"NtAllocateVirtualMemory", 0}, {"NtCreateFile", 0xc0000034}, {"NtClose", 0}, {"NtClose", 0},
	{"NtClose", 0xc0000008}, {"NtFreeVirtualMemory", 0},
}

// Programs make calls through ntdll and the processor's own entry, and the kernel's variables move with them.
func checkCalls(t *testing.T, g *Guest, r *reader) {
	const rounds = 3
	hash := textHash(t, g)
	before, ticks := r.bytes(r.truth.Kernel.CountersAt, 4*5), r.u32(r.truth.Kernel.TicksAt)
	calls, err := g.Calls(t.Context(), rounds)
	if err != nil {
		t.Fatal(err)
	}
	after := r.bytes(r.truth.Kernel.CountersAt, 4*5)
	for i, each := range []uint32{2, 1, 3, 1, 1} {
		n := binary.LittleEndian.Uint32(after[4*i:]) - binary.LittleEndian.Uint32(before[4*i:])
		if n != 2*rounds*each { // two workers
			t.Errorf("counter %d advanced by %d, want %d", i, n, 2*rounds*each)
		}
	}
	if now := r.u32(r.truth.Kernel.TicksAt); now == ticks {
		t.Error("the clock stands still")
	}
	for _, name := range []string{"worker1.exe", "worker2.exe"} {
		checkRounds(t, r.truth.Process(name), calls, rounds)
	}
	if now := textHash(t, g); now != hash {
		t.Errorf("kernel text changed from %#x to %#x", hash, now)
	}
	kernel, err := g.KernelCalls(t.Context(), 2)
	if err != nil || len(kernel) != 4 || !kernel[0].Kernel || kernel[0].Name != "NtOpenKey" || kernel[1].Name != "NtClose" || kernel[0].PID != 4 {
		t.Errorf("calls from the kernel: %v, %v", kernel, err)
	}
}

func checkRounds(t *testing.T, p *Process, calls []Call, rounds int) {
	t.Helper()
	calls = slices.DeleteFunc(slices.Clone(calls), func(c Call) bool { return c.PID != p.PID })
	if len(calls) != rounds*len(roundOf) {
		t.Errorf("%s made %d calls, want %d", p.Image, len(calls), rounds*len(roundOf))
		return
	}
	for i, c := range calls {
		want := roundOf[i%len(roundOf)]
		if c.Name != want.name || c.Status != want.status || c.Kernel {
			t.Errorf("%s: call %d is %s with %#x, want %s with %#x", p.Image, i, c.Name, c.Status, want.name, want.status)
		}
	}
	if want := `\??\C:\work\` + p.Image; calls[0].Object != want || calls[0].Args[1] != 0x120089 || calls[0].Out != 4 {
		t.Errorf("first call is %+v, want %s", calls[0], want)
	}
	if calls[5].Args[0] != calls[0].Out || calls[4].Args[0] != calls[1].Out {
		t.Errorf("handles %#x and %#x are closed by %#x and %#x", calls[0].Out, calls[1].Out, calls[5].Args[0], calls[4].Args[0])
	}
}

func textHash(t *testing.T, g *Guest) Addr {
	t.Helper()
	lines, err := g.Do(t.Context(), "hash")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Hash Addr `json:"text_hash"`
	}
	if err := lines[len(lines)-1].Decode(&v); err != nil || v.Hash == 0 {
		t.Fatalf("hash: %v %v", v, err)
	}
	return v.Hash
}

// Processes start and end, in the lists too.
func checkLife(t *testing.T, g *Guest, r *reader) {
	listed := func(pid int) bool {
		return slices.ContainsFunc(r.list(r.truth.Kernel.PsActiveProcessHead, r.off("_EPROCESS", "ActiveProcessLinks")), func(e Addr) bool {
			return int(r.ptr(e+r.off("_EPROCESS", "UniqueProcessId"))) == pid
		})
	}
	for range 3 {
		p, err := g.Spawn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !listed(p.PID) {
			t.Errorf("new process %d is not in the list", p.PID)
		}
		if err := g.Exit(t.Context(), p.PID); err != nil {
			t.Fatal(err)
		}
		if listed(p.PID) {
			t.Errorf("ended process %d is in the list", p.PID)
		}
	}
	current, err := g.Current(t.Context())
	if err != nil || len(current) != 2 || current[0].ETHREAD == 0 {
		t.Errorf("current: %+v, %v", current, err)
	}
}

// Where the kernel lies, how calls are made, which build it claims and how many processes there are can be chosen.
func TestOptions(t *testing.T) {
	for _, c := range []struct {
		layout string
		o      Options
	}{
		{Win10, Options{CPUs: 1, Base: 0xfffff80613a00000, Pool: 0xffffb30c00000000, Build: 19999, Processes: 60}},
		{XP2003, Options{CPUs: 1, Base: 0x80800000, INT2E: true}},
	} {
		t.Run(c.layout, func(t *testing.T) {
			g := Boot(t, c.layout, &c.o)
			r := newReader(t, g)
			k := r.truth.Kernel
			if k.Base != Addr(c.o.Base) || (c.o.Build != 0 && k.Build != c.o.Build) || len(r.truth.Processes) < c.o.Processes {
				t.Errorf("kernel at %#x of build %d with %d processes", k.Base, k.Build, len(r.truth.Processes))
			}
			checkImage(t, r)
			checkProcesses(t, r)
			if calls, err := g.Calls(t.Context(), 1); err != nil || len(calls) != 2*len(roundOf) {
				t.Errorf("%d calls, %v", len(calls), err)
			}
		})
	}
}
