package arch

import "testing"

func TestPagingMode(t *testing.T) {
	tests := []struct {
		name      string
		cr0, cr4  uint64
		efer      uint64
		want      PagingMode
		wantNamed string
	}{
		{"reset", 0x60000010, 0, 0, PagingOff, "off"},
		{"protected mode, paging off", 0x11, 0x20, 0, PagingOff, "off"},
		{"two-level", 0x80000011, 0x10, 0, Paging32Bit, "32-bit"},
		{"PAE", 0x80000011, 0x20, 0, PagingPAE, "PAE"},
		{"LME without LMA", 0x80000011, 0x20, 0x100, PagingPAE, "PAE"},
		{"long mode", 0x80050033, 0x6f0, 0xd01, Paging4Level, "4-level"},
		{"LA57", 0x80050033, 0x16f0, 0xd01, Paging5Level, "5-level"},
	}
	for _, tt := range tests {
		r := Registers{CR0: tt.cr0, CR4: tt.cr4, EFER: tt.efer}
		if got := r.PagingMode(); got != tt.want || got.String() != tt.wantNamed {
			t.Errorf("%s: PagingMode() = %v; want %v", tt.name, got, tt.want)
		}
	}
	if got := PagingMode(99).String(); got != "paging(99)" {
		t.Errorf("PagingMode(99).String() = %q", got)
	}
}

func TestArgs(t *testing.T) {
	r := Registers{RDI: 10, RSI: 11, RDX: 12, RCX: 13, R8: 14, R9: 15}
	for i := range 6 {
		if got := r.Arg(i); got != uint64(10+i) {
			t.Errorf("Arg(%d) = %d; want %d", i, got, 10+i)
		}
		r.SetArg(i, uint64(20+i))
	}
	if want := (Registers{RDI: 20, RSI: 21, RDX: 22, RCX: 23, R8: 24, R9: 25}); r != want {
		t.Errorf("after SetArg: %+v; want %+v", r, want)
	}
	for _, i := range []int{-1, 6, 1 << 30} {
		r.SetArg(i, 99)
		if got := r.Arg(i); got != 0 {
			t.Errorf("Arg(%d) = %d; want 0", i, got)
		}
	}
}

func TestUser(t *testing.T) {
	for cs, want := range map[uint16]bool{0x10: false, 0x33: true, 0x23: true, 0xf000: false} {
		if got := (&Registers{CS: cs}).User(); got != want {
			t.Errorf("CS %#x: User() = %v; want %v", cs, got, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	if got := GVA(0xffffffff81234567).Page(); got != 0xffffffff81234000 {
		t.Errorf("GVA.Page() = %v", got)
	}
	if got := GPA(0x1234567).Frame().Addr(); got != 0x1234000 {
		t.Errorf("GPA.Frame().Addr() = %v", got)
	}
	if got := GPA(0xabc).String() + GVA(0xDEF).String() + GFN(1).String(); got != "0xabc0xdef0x1" {
		t.Errorf("String() = %q", got)
	}
	sizes := map[Arch]int{AMD64: 8, ARM64: 8, I386: 4, Unknown: 0}
	for a, want := range sizes {
		if got := a.PointerSize(); got != want {
			t.Errorf("%v.PointerSize() = %d; want %d", a, got, want)
		}
	}
	if got := Arch(77).String(); got != "arch(77)" {
		t.Errorf("Arch(77).String() = %q", got)
	}
}
