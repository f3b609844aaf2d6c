package qemu

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

// registersARM is what QEMU 7.2 prints of an idle Cortex-A72.
const registersARM = `
CPU#0
 PC=ffffdbd1e11a8f5c X00=0000000000000005 X01=ffff3027d3f0c550
X02=00000000000e6d71 X03=0000000000000000 X04=ffff5455f2444000
X05=4000000000000000 X06=000000005666ac9c X07=0000000000000000
X08=ffffdbd1e1e198a0 X09=ffffdbd1e06f8128 X10=0000000000000bc0
X11=00000000000000c0 X12=0000000000000001 X13=ffffdbd1e1e0e9b0
X14=0000000000000000 X15=0000000000000000 X16=0000000000000000
X17=0000000000000000 X18=0000000000000000 X19=ffffdbd1e1ab8008
X20=ffffdbd1e1ab8008 X21=ffffdbd1e1e0e888 X22=ffffdbd1e1aca340
X23=ffffdbd1e1e0e9cc X24=0000000000000000 X25=0000000000000000
X26=ffffdbd1e1e18c80 X27=0000000000000000 X28=0000000041588d60
X29=ffffdbd1e1e03d40 X30=ffffdbd1e11a8f74  SP=ffffdbd1e1e03d40
PSTATE=400000c5 -Z-- EL1h     FPCR=00000000 FPSR=00000010
Q00=0000000000000000:0000000000000000 Q01=706172776f672e65:767265732e6e6961
`

func TestParseARMRegisters(t *testing.T) {
	r, err := parseARMRegisters(registersARM)
	if err != nil {
		t.Fatal(err)
	}
	a := r.ARM64
	if !a.On || r.PC() != 0xffffdbd1e11a8f5c || r.SP() != 0xffffdbd1e1e03d40 || a.PSTATE != 0x400000c5 || r.User() {
		t.Errorf("pc %v, sp %v, pstate %#x, user %v", r.PC(), r.SP(), a.PSTATE, r.User())
	}
	if a.X[0] != 5 || a.X[1] != 0xffff3027d3f0c550 || a.X[9] != 0xffffdbd1e06f8128 || a.X[28] != 0x41588d60 || a.X[30] != 0xffffdbd1e11a8f74 {
		t.Errorf("general registers %x", a.X)
	}
	if a.TTBR1 != 0 || r.PagingMode() != arch.PagingOff {
		t.Error("system registers out of nowhere")
	}
	for _, text := range []string{"", registers64, registersARM[:600], strings.ReplaceAll(registersARM, "=0", "=x")} {
		if r, err := parseARMRegisters(text); err == nil {
			t.Errorf("%.40q: got %+v", text, r)
		}
	}
	if r, err := parseRegisters(registersARM); err == nil {
		t.Errorf("taken for an x86 processor: %+v", r)
	}
}

func FuzzParseARMRegisters(f *testing.F) {
	f.Add(registersARM)
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := parseARMRegisters(text); (err == nil) == (r == nil) {
			t.Errorf("%v and %v", r, err)
		}
	})
}

// armTarget is the target description of QEMU 7.2, shortened.
func armTarget(name string) ([]byte, error) {
	core := &strings.Builder{}
	for n := range 31 {
		fmt.Fprintf(core, `<reg name="x%d" bitsize="64"/>`, n)
	}
	core.WriteString(`<reg name="sp" bitsize="64" type="data_ptr"/><reg name="pc" bitsize="64" type="code_ptr"/><reg name="cpsr" bitsize="32"/>`)
	files := map[string]string{
		"target.xml": `<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><architecture>aarch64</architecture>` +
			`<xi:include href="aarch64-core.xml"/><xi:include href="aarch64-fpu.xml"/><xi:include href="system-registers.xml"/></target>`,
		"aarch64-core.xml": `<feature name="org.gnu.gdb.aarch64.core">` + core.String() + `</feature>`,
		"aarch64-fpu.xml":  `<feature name="org.gnu.gdb.aarch64.fpu"><reg name="v0" bitsize="128" regnum="34"/><reg name="fpsr" bitsize="32"/></feature>`,
		"system-registers.xml": `<feature name="org.qemu.gdb.arm.sys.regs"><reg name="SCTLR" bitsize="64" regnum="74" group="cp_regs"/>` +
			`<reg name="SP_EL0" bitsize="64" regnum="116"/><reg name="TTBR0_EL1" bitsize="64" regnum="146"/><reg name="TCR_EL1" bitsize="64" regnum="149"/>` +
			`<reg name="TTBR1_EL1" bitsize="64" regnum="150"/><reg name="SP_EL1" bitsize="64" regnum="160"/></feature>`,
	}
	return []byte(files[name]), nil
}

func armLayout(t *testing.T) *stubLayout {
	t.Helper()
	regs, err := rsp.ParseTarget(armTarget)
	if err != nil {
		t.Fatal(err)
	}
	l, err := newStubLayout(regs)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestARMLayout(t *testing.T) {
	l := armLayout(t)
	if l.size != 33*8+4 || len(l.more) != 5 || l.unit != 4 {
		t.Fatalf("g has %d bytes, %d registers beside it, breakpoints have %d bytes", l.size, len(l.more), l.unit)
	}
	raw := make([]byte, l.size)
	for n := range 33 {
		binary.LittleEndian.PutUint64(raw[8*n:], uint64(n)+100)
	}
	binary.LittleEndian.PutUint32(raw[33*8:], 0x80000005)
	got, err := l.decode(hex.AppendEncode(nil, raw))
	if err != nil {
		t.Fatal(err)
	}
	want := &arch.Registers{ARM64: arch.ARM64Registers{On: true, SP: 131, PC: 132, PSTATE: 0x80000005}}
	for n := range want.ARM64.X {
		want.ARM64.X[n] = uint64(n) + 100
	}
	for i, v := range map[string]string{"SP_EL0": "00aabbccddeeff11", "TTBR0_EL1": "0100000000000000", "TTBR1_EL1": "0200000000000000", "TCR_EL1": "0300000000000000", "SCTLR": "0400000000000000"} {
		for j := range l.more {
			if l.more[j].Name == i {
				if err := l.more[j].decode([]byte(v), got); err != nil {
					t.Error(err)
				}
			}
		}
	}
	want.ARM64.SPEL0, want.ARM64.TTBR0, want.ARM64.TTBR1, want.ARM64.TCR, want.ARM64.SCTLR = 0x11ffeeddccbbaa00, 1, 2, 3, 4
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := l.regs[l.pc].write(0x1122334455667788); got != "P20=8877665544332211" {
		t.Errorf("write = %s", got)
	}
	for _, r := range append(l.regs[:len(l.regs):len(l.regs)], l.more...) {
		if general := r.Number <= 33; r.own != general {
			t.Errorf("SetRegisters stores %s: %v", r.Name, r.own)
		}
	}
	for _, reply := range []string{"", "E22", "00", strings.Repeat("z", 16), strings.Repeat("0", 32)} {
		if err := l.more[0].decode([]byte(reply), got); err == nil {
			t.Errorf("%q was taken", reply)
		}
	}
}

// Without its system registers an AArch64 processor cannot be understood.
func TestARMLayoutRefuses(t *testing.T) {
	regs, err := rsp.ParseTarget(func(name string) ([]byte, error) {
		if name == "system-registers.xml" {
			return []byte("<feature/>"), nil
		}
		return armTarget(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newStubLayout(regs); err == nil || !strings.Contains(err.Error(), "system registers") {
		t.Errorf("got %v", err)
	}
}

// A request for registers asks for those that g leaves out in the same write, and
// takes the answers in order.
func TestARMExpectations(t *testing.T) {
	l := armLayout(t)
	s := new(snapshot)
	g := expectation{what: "g", regs: s}
	if err := g.accept([]byte(strings.Repeat("0", 2*l.size)), l); err != nil {
		t.Fatal(err)
	}
	for i := range l.more {
		e := expectation{what: "p", regs: s, one: &l.more[i]}
		if err := e.accept([]byte("0700000000000000"), l); err != nil {
			t.Fatal(err)
		}
	}
	if a := s.regs.ARM64; a.SPEL0 != 7 || a.TTBR0 != 7 || a.TTBR1 != 7 || a.TCR != 7 || a.SCTLR != 7 {
		t.Errorf("system registers %+v", a)
	}
	refused := expectation{what: "p74", regs: new(snapshot), one: &l.more[0]} // its g was refused
	if err := refused.accept([]byte("0700000000000000"), l); err == nil {
		t.Error("a register of no snapshot was taken")
	}
}

// KVM plants through the page tables of the half that the address is in.
func TestARMTables(t *testing.T) {
	r := &arch.Registers{ARM64: arch.ARM64Registers{On: true, SCTLR: 1, TCR: 2<<30 | 16<<16, TTBR0: 0x42007000, TTBR1: 0x000200004157b000}}
	for a, want := range map[arch.GVA]arch.GPA{0xffff800008000000: 0x4157b000, 0xaaaa0000: 0x42007000} {
		if _, root := tables(r, a); root != want {
			t.Errorf("%v is mapped by %v, want %v", a, root, want)
		}
	}
	x86 := &arch.Registers{CR0: arch.CR0PG, CR4: arch.CR4PAE, EFER: arch.EFERLMA, CR3: 0x1000}
	if mode, root := tables(x86, 0xffffffff81000000); mode != arch.Paging4Level || root != 0x1000 {
		t.Errorf("x86: %v at %v", mode, root)
	}
	if n, m := len(trapCode(arch.AMD64)), len(trapCode(arch.ARM64)); n != 1 || m != 4 {
		t.Errorf("breakpoints are %d and %d bytes long", n, m)
	}
}
