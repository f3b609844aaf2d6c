package arch

import (
	"errors"
	"testing"
)

// Descriptors are put together by hand from the figures of the Arm ARM, not with
// the table under test.
func TestWalkARM(t *testing.T) {
	const (
		table = 3
		page  = 3
		block = 1
		user  = 1 << 6
		ro    = 1 << 7
		af    = 1 << 10
		cont  = 1 << 52
		dbm   = 1 << 51
		pxn   = 1 << 53
		uxn   = 1 << 54
	)
	m := ram{}
	// Top half, 48 bits: 0xffff800008123456 has indexes 256, 0, 64, 291.
	m.put(0x4000_1000+256*8, 8, 0x4000_2000|table)
	m.put(0x4000_2000, 8, 0x4000_3000|table)
	m.put(0x4000_3000+64*8, 8, 0x4000_4000|table)
	m.put(0x4000_4000+291*8, 8, 0x5555_5000|page|af|uxn|pxn|cont)
	m.put(0x4000_4000+292*8, 8, 0x5555_6000|page|af|ro|uxn)
	m.put(0x4000_4000+293*8, 8, 0x5555_7000|block|af) // at the last level bit 1 must be set
	m.put(0x4000_3000+65*8, 8, 0x4020_0000|block|af|ro|uxn|cont)
	m.put(0x4000_2000+1*8, 8, 0x8000_0000|block|af)
	m.put(0x4000_1000+257*8, 8, 0x80_0000_0000|block|af) // no block of 512 GiB without LPA2
	m.put(0x4000_1000+258*8, 8, 0x4000_2000|table|1<<62|1<<59)
	// Bottom half, 48 bits: 0x0000aaaabbbbcccc has indexes 341, 170, 477, 444.
	m.put(0x6000_0000+341*8, 8, 0x6000_1000|table)
	m.put(0x6000_1000+170*8, 8, 0x6000_2000|table|1<<59)
	m.put(0x6000_2000+477*8, 8, 0x6000_3000|table)
	m.put(0x6000_3000+444*8, 8, 0x7777_7000|page|af|user|ro|dbm|pxn|uxn)
	m.put(0x6000_3000+445*8, 8, 0x7777_8000|page|af|user|ro|pxn)
	m.put(0x6000_1000+171*8, 8, 0x6000_2000|table|1<<61|1<<60)
	// 39 bits: 0xffffffc008123456 has indexes 256, 64, 291.
	m.put(0x8000_0000+256*8, 8, 0x4000_3000|table)

	checkWalks(t, m, []walkTest{
		{"page", PagingARM48, 0x4000_1000, 0xffff800008123456, Mapping{0x5555_5456, 1 << 12, true, false, true}},
		{"text", PagingARM48, 0x4000_1000, 0xffff800008124456, Mapping{0x5555_6456, 1 << 12, false, false, false}},
		{"2M block", PagingARM48, 0x4000_1000, 0xffff800008323456, Mapping{0x4032_3456, 1 << 21, false, false, false}},
		{"1G block", PagingARM48, 0x4000_1000, 0xffff800048123456, Mapping{0x8812_3456, 1 << 30, true, false, false}},
		{"table forbids", PagingARM48, 0x4000_1000, 0xffff810008323456, Mapping{0x4032_3456, 1 << 21, false, false, true}},
		{"user page, not yet dirty", PagingARM48User, 0x6000_0000, 0x0000aaaabbbbcccc, Mapping{0x7777_7ccc, 1 << 12, true, true, true}},
		{"user text", PagingARM48User, 0x6000_0000, 0x0000aaaabbbbdccc, Mapping{0x7777_8ccc, 1 << 12, false, true, false}},
		{"user address with a tag", PagingARM48User, 0x6000_0000, 0x5600aaaabbbbdccc, Mapping{0x7777_8ccc, 1 << 12, false, true, false}},
		{"table forbids user", PagingARM48User, 0x6000_0000, 0x0000aaaafbbbdccc, Mapping{0x7777_8ccc, 1 << 12, false, false, true}},
		{"39 bits", PagingARM39, 0x8000_0000, 0xffffffc008123456, Mapping{0x5555_5456, 1 << 12, true, false, true}},
	})
	faults := []struct {
		name  string
		mode  PagingMode
		root  GPA
		va    GVA
		level int
	}{
		{"bottom half of the top's tables", PagingARM48, 0x4000_1000, 0x0000800008123456, 0},
		{"top half of a program's tables", PagingARM48User, 0x6000_0000, 0xffffaaaabbbbcccc, 0},
		{"bit 55 set", PagingARM48User, 0x6000_0000, 0x0080aaaabbbbcccc, 0},
		{"between the halves", PagingARM48, 0x4000_1000, 0xfff8800008123456, 0},
		{"reserved descriptor of the last level", PagingARM48, 0x4000_1000, 0xffff800008125456, 1},
		{"block at the top", PagingARM48, 0x4000_1000, 0xffff808008123456, 4},
		{"nothing there", PagingARM48, 0x4000_1000, 0xffff8000ffffffff, 3},
	}
	for _, tt := range faults {
		_, err := Walk(m, tt.mode, tt.root, tt.va)
		var f *FaultError
		if !errors.As(err, &f) || f.Level != tt.level {
			t.Errorf("%s: Walk(%v, %v, %v) = %v, want a fault of level %d", tt.name, tt.mode, tt.root, tt.va, err, tt.level)
		}
	}
}

// With LPA2 addresses have 52 bits, the top ones in odd places.
func TestWalkARM52(t *testing.T) {
	m := ram{}
	// 0xfff8000008123456 has indexes 8, 0, 0, 64, 291.
	const root = GPA(0x9_0000_0000_0040)
	m.put(root+8*8, 8, 0x1000|2<<8|3)
	m.put(0x8_0000_0000_1000, 8, 0x3_0000_0000_2000|1<<8|3)
	m.put(0x7_0000_0000_2000, 8, 0x3000|3)
	m.put(0x3000+64*8, 8, 0x4000|3)
	m.put(0x4000+291*8, 8, 0x5000|3<<8|3)
	m.put(0x8_0000_0000_1000+8, 8, 0x80_0000_0000|1) // 512 GiB
	for va, want := range map[GVA]GPA{0xfff8000008123456: 0xc_0000_0000_5456, 0xfff8008008123456: 0x80_0812_3456} {
		got, err := Walk(m, PagingARM52, root, va)
		if err != nil || got.Addr != want {
			t.Errorf("Walk(%v) = %+v, %v; want %v", va, got, err, want)
		}
	}
	// ASID 0x1234, bits 48 to 51 of the address at the bottom, CnP.
	if got := Root(PagingARM52User, 0x1234_0000_0000_0040|9<<2|1); got != root {
		t.Errorf("Root = %v, want %v", got, root)
	}
	if got := Root(PagingARM48User, 0x1234_0000_4123_4001); got != 0x4123_4000 {
		t.Errorf("Root = %v, want the address alone", got)
	}
}

// As a guest of Debian's 6.1 has them, and 6.12 on a processor with LPA2.
func TestARM64Registers(t *testing.T) {
	r := Registers{ARM64: ARM64Registers{On: true, PC: 0xffff_dbd1_e11a_8f5c, SP: 0xffff_dbd1_e1e0_3d40, PSTATE: 0x4000_00c5,
		X: [31]uint64{5, 6}, TTBR0: 0x0012_0000_4200_0001, TTBR1: 0x4197_b000, SCTLR: 1, TCR: 2<<30 | 16<<16 | 16}}
	if r.PC() != 0xffff_dbd1_e11a_8f5c || r.SP() != 0xffff_dbd1_e1e0_3d40 || r.Arg(0) != 5 || r.Arg(6) != 0 || r.Result() != 5 || r.User() {
		t.Errorf("registers say pc %v sp %v arguments %d %d result %d user %v", r.PC(), r.SP(), r.Arg(0), r.Arg(6), r.Result(), r.User())
	}
	if r.PagingMode() != PagingARM48User || r.Root() != 0x4200_0000 || r.ARM64.KernelMode() != PagingARM48 || r.ARM64.Kernel() != 0x4197_b000 {
		t.Errorf("page tables are %v at %v, %v at %v", r.PagingMode(), r.Root(), r.ARM64.KernelMode(), r.ARM64.Kernel())
	}
	// What QEMU's gdbstub tells of one.
	real := ARM64Registers{On: true, SCTLR: 0x34f4d91d, TCR: 0x00500074b5503510, TTBR0: 0x42007000, TTBR1: 0x000200004157b000}
	if real.KernelMode() != PagingARM48 || real.Kernel() != 0x4157b000 {
		t.Errorf("a real kernel's page tables are %v at %v", real.KernelMode(), real.Kernel())
	}
	r.SetArg(1, 9)
	r.SetResult(7)
	r.SetPC(0x1000)
	if r.ARM64.X[0] != 7 || r.ARM64.X[1] != 9 || r.ARM64.PC != 0x1000 || r.RAX != 0 || r.RIP != 0 {
		t.Errorf("set to %+v", r)
	}
	for psr, user := range map[uint64]bool{0x8000_0000: true, 0x10: true, 0x4: false, 0x5: false, 0x13: false} {
		r.ARM64.PSTATE = psr
		if r.User() != user {
			t.Errorf("PSTATE %#x: User is %v", psr, !user)
		}
	}
	for tcr, want := range map[uint64]PagingMode{2<<30 | 12<<16: PagingARM52, 2<<30 | 25<<16: PagingARM39, 2<<30 | 20<<16: PagingOff, 3<<30 | 16<<16: PagingOff} {
		r.ARM64.TCR = tcr
		if got := r.ARM64.KernelMode(); got != want {
			t.Errorf("TCR %#x: mode %v, want %v", tcr, got, want)
		}
	}
	r.ARM64.SCTLR = 0
	if r.PagingMode() != PagingOff {
		t.Error("paging without the MMU")
	}
	for _, m := range []PagingMode{PagingARM39, PagingARM48, PagingARM52} {
		if m.User() == m || m.User().User() != m.User() || m.User().String() != m.String()+" user" {
			t.Errorf("%v: a program's half is %v", m, m.User())
		}
	}
	if Paging4Level.User() != Paging4Level {
		t.Error("x86 has one root for both")
	}
}
