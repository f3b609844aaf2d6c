package tests

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

// emulatorWalk is what QEMU's own page walkers say of a stopped guest: gva2gpa,
// info tlb (one row a page, with the flags of its last entry) and info mem
// (ranges, with the permissions of all levels together).
type emulatorWalk struct {
	vm   *testvm.VM
	t    *testing.T
	rows []tlbRow
	mem  []memRange
}

type tlbRow struct {
	va                       arch.GVA
	pa                       arch.GPA
	noExec, large, user, wrt bool // of the last entry
}

type memRange struct {
	start, last arch.GVA
	user, wrt   bool
}

// askEmulator asks for it all, but for info mem of five levels: QEMU 7.2 does
// not come back from that.
func askEmulator(t *testing.T, vm *testvm.VM, mode arch.PagingMode) *emulatorWalk {
	t.Helper()
	w := &emulatorWalk{vm: vm, t: t}
	for line := range strings.Lines(w.hmp("info tlb")) {
		// "ffffffff81000000: 0000000001000000 XG-DA---W"; X stands for no-execute, P for a large page.
		va, rest, ok := strings.Cut(strings.TrimSpace(line), ": ")
		pa, flags, ok2 := strings.Cut(rest, " ")
		if !ok || !ok2 || len(flags) != 9 {
			t.Fatalf("info tlb: %q", line)
		}
		w.rows = append(w.rows, tlbRow{va: arch.GVA(w.hex(va)), pa: arch.GPA(w.hex(pa) &^ (1 << 63)), // of PAE it prints the no-execute bit too

			noExec: flags[0] == 'X', large: flags[2] == 'P', user: flags[7] == 'U', wrt: flags[8] == 'W'})
	}
	if mode == arch.Paging5Level {
		return w
	}
	for line := range strings.Lines(w.hmp("info mem")) {
		// "ffff888000000000-ffff888000099000 0000000000099000 -rw"; the end is the first byte behind.
		f := strings.Fields(line)
		start, end, ok := strings.Cut(f[0], "-")
		if !ok || len(f) != 3 || len(f[2]) != 3 {
			t.Fatalf("info mem: %q", line)
		}
		w.mem = append(w.mem, memRange{start: arch.GVA(w.hex(start)), last: arch.GVA(w.hex(end) - 1), user: f[2][0] == 'u', wrt: f[2][2] == 'w'})
	}
	if len(w.rows) == 0 || len(w.mem) == 0 {
		t.Fatalf("QEMU sees %d pages in %d ranges", len(w.rows), len(w.mem))
	}
	return w
}

func (w *emulatorWalk) hmp(line string) string {
	w.t.Helper()
	out, err := w.vm.HMP(w.t.Context(), line)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.ReplaceAll(out, "\r", "")
}

func (w *emulatorWalk) hex(s string) uint64 {
	w.t.Helper()
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// translate asks gva2gpa.
func (w *emulatorWalk) translate(va arch.GVA) (arch.GPA, bool) {
	w.t.Helper()
	out := strings.TrimSpace(w.hmp(fmt.Sprintf("gva2gpa %#x", uint64(va))))
	if out == "Unmapped" {
		return 0, false
	}
	hex, ok := strings.CutPrefix(out, "gpa: ")
	if !ok {
		w.t.Fatalf("gva2gpa: %q", out)
	}
	return arch.GPA(w.hex(strings.TrimPrefix(hex, "0x"))), true
}

// sameAddress checks one address, mapped or not, and its neighbourhood.
func (w *emulatorWalk) sameAddress(g *vitrine.Guest, mode arch.PagingMode, root arch.GPA, va arch.GVA) {
	w.t.Helper()
	want, mapped := w.translate(va)
	got, err := arch.Walk(g, mode, root, va)
	var fault *arch.FaultError
	if mapped && (err != nil || got.Addr != want) || !mapped && !errors.As(err, &fault) {
		w.t.Errorf("Walk(%v) = %v, %v; QEMU says %v, mapped %v", va, got.Addr, err, want, mapped)
	}
}

// samePage compares one row: the address, the page's size, and permissions, by
// the last entry alone and by all levels together.
func (w *emulatorWalk) samePage(g *vitrine.Guest, mode arch.PagingMode, root arch.GPA, r tlbRow) arch.Mapping {
	w.t.Helper()
	m, err := arch.Walk(g, mode, root, r.va)
	addr := m.Addr
	if mode == arch.Paging32Bit {
		addr &= math.MaxUint32 // info tlb does not know PSE-36, gva2gpa does
	}
	if err != nil || addr != r.pa {
		w.t.Errorf("Walk(%v) = %+v, %v; info tlb says %v", r.va, m, err, r.pa)
		return m
	}
	if large := m.Size > arch.PageSize; large != r.large {
		w.t.Errorf("Walk(%v): page of %#x bytes; info tlb: large %v", r.va, m.Size, r.large)
	}
	if r.noExec && !m.NoExec || m.User && !r.user || m.Writable && !r.wrt {
		w.t.Errorf("Walk(%v) = %+v allows what the last entry does not: %+v", r.va, m, r)
	}
	if mode == arch.Paging5Level {
		return m
	}
	i := slices.IndexFunc(w.mem, func(a memRange) bool { return r.va >= a.start && r.va <= a.last })
	if i < 0 {
		w.t.Errorf("%v is in no range of info mem", r.va)
	} else if a := w.mem[i]; a.user != m.User || a.wrt != m.Writable {
		w.t.Errorf("Walk(%v): user %v, writable %v; info mem: user %v, writable %v", r.va, m.User, m.Writable, a.user, a.wrt)
	}
	return m
}

// compare checks every page that QEMU sees, and asks for translations on both
// sides of the borders of as many pages of each kind as given. It returns how
// many pages there were of each size, for user and kernel.
func (w *emulatorWalk) compare(g *vitrine.Guest, mode arch.PagingMode, root arch.GPA, each int) map[string]int {
	w.t.Helper()
	kinds, sizes := map[arch.Mapping]int{}, map[string]int{}
	for _, r := range w.rows {
		m := w.samePage(g, mode, root, r)
		if w.t.Failed() {
			w.t.FailNow() // one is enough of thousands
		}
		sizes[fmt.Sprintf("%d KiB user %v", m.Size>>10, m.User)]++
		kind := m
		kind.Addr = 0
		if kinds[kind]++; kinds[kind] > each {
			continue
		}
		end := r.va + arch.GVA(m.Size)
		for _, va := range []arch.GVA{r.va, r.va + 0x123, end - 1, r.va - 1, end} {
			if mode == arch.Paging32Bit || mode == arch.PagingPAE {
				va &= math.MaxUint32
			}
			w.sameAddress(g, mode, root, va)
		}
	}
	w.t.Logf("%v: %d pages in %d ranges: %v", mode, len(w.rows), len(w.mem), sizes)
	return sizes
}

// checkWalk holds that each page of a running Debian guest that QEMU sees in the
// page tables of a program is the one that we see.
func checkWalk(t *testing.T, vm *testvm.VM, g *vitrine.Guest, mode arch.PagingMode) {
	for cpu := range vm.Options.CPUs {
		vmtest.Spawn(t, vm, "getppid", fmt.Sprint("caller", cpu))
	}
	r := stopInProgram(t, vm, g)
	defer vm.Cont(t.Context())
	if r.PagingMode() != mode {
		t.Fatalf("paging mode is %v, want %v", r.PagingMode(), mode)
	}
	sizes := askEmulator(t, vm, mode).compare(g, mode, r.Root(), 6)
	for _, want := range []string{"4 KiB user true", "4 KiB user false", "2048 KiB user false"} { // where 1 GiB pages fit is up to KASLR
		if sizes[want] == 0 {
			t.Errorf("no page of %s among %v", want, sizes)
		}
	}
}

// stopInProgram stops the guest while its first processor runs a program: the
// program's page tables are in use then.
func stopInProgram(t *testing.T, vm *testvm.VM, g *vitrine.Guest) *arch.Registers {
	t.Helper()
	for range 500 {
		if err := vm.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		r, err := g.Registers(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if r.User() {
			return r
		}
		if err := vm.Cont(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the first processor runs no program")
	return nil
}
