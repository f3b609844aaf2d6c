package qemu

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

// What QEMU 7.2 prints of a processor in a 64-bit kernel, and in 32-bit code.
const (
	registers64 = "\r\nCPU#0\r\n" +
		"RAX=0000000000000001 RBX=ffffffff82614940 RCX=0000000000000003 RDX=0000000000000004\r\n" +
		"RSI=0000000000000005 RDI=0000000000000006 RBP=0000000000000007 RSP=ffffffff82603ec8\r\n" +
		"R8 =0000000000000008 R9 =0000000000000009 R10=000000000000000a R11=000000000000000b\r\n" +
		"R12=000000000000000c R13=000000000000000d R14=000000000000000e R15=000000000000000f\r\n" +
		"RIP=ffffffff81a8d10e RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n" +
		"ES =0000 0000000000000000 ffffffff 00c00000\r\n" +
		"CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\n" +
		"SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r\n" +
		"DS =0000 0000000000000000 ffffffff 00c00000\r\n" +
		"FS =0000 00007f3b00000000 ffffffff 00c00000\r\n" +
		"GS =002b ffff88801f000000 ffffffff 00c00000\r\n" +
		"LDT=0000 0000000000000000 ffffffff 00c00000\r\n" +
		"TR =0040 fffffe3a0c6f9000 00004087 00008b00 DPL=0 TSS64-busy\r\n" +
		"GDT=     fffffe3a0c6f7000 0000007f\r\n" +
		"IDT=     fffffe0000000000 00000fff\r\n" +
		"CR0=80050033 CR2=00007f11 CR3=000000000260c000 CR4=00750ef0\r\n" +
		"DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \r\n" +
		"DR6=00000000ffff0ff0 DR7=0000000000000400\r\n" +
		"CCS=0000000000000000 CCD=ffffffff82603ec8 CCO=LOGICQ\r\n" +
		"EFER=0000000000000d01\r\n" +
		"FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\r\n" +
		"FPR0=0000000000000000 0000 FPR1=0000000000000000 0000\r\n" +
		"XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000\r\n"
	registers32 = "\r\nCPU#0\r\n" +
		"EAX=00000000 EBX=00000800 ECX=fc15f480 EDX=00010246\r\n" +
		"ESI=017c7520 EDI=00000800 EBP=9ccc2f10 ESP=000a1fbc\r\n" +
		"EIP=00012839 EFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n" +
		"ES =0010 03f3d000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r\n" +
		"CS =0008 03f3d000 ffffffff 00cf9f00 DPL=0 CS32 [CRA]\r\n" +
		"GDT=     0009cd30 00000047\r\nIDT=     03f5cfb0 000007ff\r\n" +
		"CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000\r\nEFER=0000000000000000\r\n"
)

func TestParseRegisters(t *testing.T) {
	got, err := parseRegisters(registers64)
	if err != nil {
		t.Fatal(err)
	}
	want := &arch.Registers{
		RAX: 1, RBX: 0xffffffff82614940, RCX: 3, RDX: 4, RSI: 5, RDI: 6, RBP: 7, RSP: 0xffffffff82603ec8,
		R8: 8, R9: 9, R10: 10, R11: 11, R12: 12, R13: 13, R14: 14, R15: 15, RIP: 0xffffffff81a8d10e, RFLAGS: 0x246,
		CS: 0x10, SS: 0x18, GS: 0x2b, FSBase: 0x7f3b00000000, GSBase: 0xffff88801f000000,
		CR0: 0x80050033, CR2: 0x7f11, CR3: 0x260c000, CR4: 0x750ef0, EFER: 0xd01,
		IDTBase: 0xfffffe0000000000, GDTBase: 0xfffffe3a0c6f7000,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if m := got.PagingMode(); m != arch.Paging4Level {
		t.Errorf("paging = %v", m)
	}
	got, err = parseRegisters(registers32)
	if err != nil {
		t.Fatal(err)
	}
	want = &arch.Registers{
		RBX: 0x800, RCX: 0xfc15f480, RDX: 0x10246, RSI: 0x17c7520, RDI: 0x800, RBP: 0x9ccc2f10, RSP: 0xa1fbc,
		RIP: 0x12839, RFLAGS: 0x246, CS: 8, ES: 0x10, CR0: 0x11, IDTBase: 0x3f5cfb0, GDTBase: 0x9cd30,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestParseRegistersRefuses(t *testing.T) {
	for _, text := range []string{"", "unknown command: 'info registers'\r\n", "PC=ffff800008 X00=0000\r\nX01=1 X02=2\r\n", registers32[:120],
		strings.ReplaceAll(registers32, "=0", "=x")} {
		if r, err := parseRegisters(text); err == nil {
			t.Errorf("%.40q: got %+v", text, r)
		}
	}
}

func FuzzParseRegisters(f *testing.F) {
	f.Add(registers64)
	f.Add(registers32)
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := parseRegisters(text); (err == nil) == (r == nil) {
			t.Errorf("%v and %v", r, err)
		}
	})
}

func testLayout(t testing.TB) *stubLayout {
	t.Helper()
	var regs []rsp.Register
	off := 0
	for i, r := range []struct {
		name string
		size int
	}{{"rax", 8}, {"r15", 8}, {"rip", 8}, {"eflags", 4}, {"cs", 4}, {"k_gs_base", 8}, {"st0", 10}, {"cr3", 8}, {"efer", 8}, {"xmm0", 16}} {
		regs = append(regs, rsp.Register{Name: r.name, Number: i, Size: r.size, Offset: off})
		off += r.size
	}
	l, err := newStubLayout(regs)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestStubLayout(t *testing.T) {
	l := testLayout(t)
	raw := make([]byte, l.size)
	raw[0], raw[8], raw[17], raw[24], raw[28], raw[39], raw[51], raw[58] = 1, 2, 3, 4, 5, 6, 7, 8
	got, err := l.decode(hex.AppendEncode(nil, raw))
	if err != nil {
		t.Fatal(err)
	}
	want := &arch.Registers{RAX: 1, R15: 2, RIP: 0x300, RFLAGS: 4, CS: 5, KernelGSBase: 6 << 56, CR3: 0x700, EFER: 8}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := l.regs[l.pc].write(0x1122334455667788); got != "P2=8877665544332211" {
		t.Errorf("write = %s", got)
	}
	if got := l.regs[3].write(0x246); got != "P3=46020000" {
		t.Errorf("write = %s", got)
	}
	own := ""
	for _, r := range l.regs {
		if r.own {
			own += r.Name + " "
		}
	}
	if own != "rax r15 rip eflags " {
		t.Errorf("what SetRegisters stores: %s", own)
	}
	for _, reply := range []string{"", "E22", "00", strings.Repeat("zz", l.size)} {
		if r, err := l.decode([]byte(reply)); err == nil {
			t.Errorf("%q: got %+v", reply, r)
		}
	}
	if _, err := newStubLayout([]rsp.Register{{Name: "x0", Size: 8}, {Name: "pc", Size: 8}}); err == nil {
		t.Error("an arm64 processor was taken")
	}
}
