package linux_test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/ostruth"
	"github.com/vitrine-vmi/vitrine/internal/testvm/seen"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/linux"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/vitrinetest/providertest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// guests are the guests of the conformance test. VITRINE_TEST_KERNELS, names of
// testvm separated by commas, replaces the kernels and keeps the rest.
func guests() []testvm.Options {
	all := []testvm.Options{
		{Kernel: "6.1-cloud", CPUs: 2},
		{Kernel: "6.12", CPU: "qemu64", Machine: "q35", RAM: testvm.SharedMemfd},
		{Kernel: "5.10-cloud", CPUs: 2},
		{Kernel: "7.2-cloud", CPUs: 2},
		{Kernel: "6.1-rt", CPUs: 2}, // its locks are larger
		{Kernel: "6.1-cloud-arm64", CPUs: 2},
	}
	if os.Getenv("VITRINE_TEST_MATRIX") != "" {
		all = append(all, otherGuests...)
	}
	if os.Getenv("VITRINE_TEST_ARM64") != "" {
		all = append(all, arm64Guests...)
	}
	if os.Getenv("VITRINE_TEST_I386") != "" {
		all = append(all, i386Guests...)
	}
	names := os.Getenv("VITRINE_TEST_KERNELS")
	if names == "" {
		return all
	}
	return slices.DeleteFunc(all, func(o testvm.Options) bool {
		return !slices.Contains(strings.Split(names, ","), o.Kernel)
	})
}

// otherGuests are the other kernels that Debian ships for x86-64.
var otherGuests = []testvm.Options{
	{Kernel: "5.10", CPUs: 2}, {Kernel: "6.1", CPUs: 2}, {Kernel: "6.12-cloud", CPUs: 2}, {Kernel: "7.2", CPUs: 2},
}

// arm64Guests are the other kernels and processors of arm64.
var arm64Guests = []testvm.Options{
	{Kernel: "6.12-cloud-arm64", CPUs: 2, RAM: testvm.SharedMemfd},
	{Kernel: "6.12-arm64", CPU: "max,pauth-impdef=on"}, // 52 bits of address
}

// i386Guests have no BTF, and no implants.
var i386Guests = []testvm.Options{{Kernel: "6.1-686-pae", CPUs: 2}}

func TestRealGuests(t *testing.T) {
	for _, o := range guests() {
		t.Run(o.Kernel, func(t *testing.T) {
			if o.Kernel == "6.1-cloud" && os.Getenv("VITRINE_TEST_EVENTS") != "" {
				o.Memory = 1024 // for thousands of processes
			}
			vm := vmtest.Boot(t, &o)
			g, k, sys := seen.Open(t, vm)
			t.Run("conformance", func(t *testing.T) { testConformance(t, vm, g, sys) })
			if o.Kernel == "6.1-cloud" || os.Getenv("VITRINE_TEST_EVENTS") != "" && g.Arch() != arch.ARM64 {
				t.Run("confinement", func(t *testing.T) { testConfinement(t, vm, sys) })
				t.Run("many processes", func(t *testing.T) { testManyProcesses(t, vm, sys) })
				t.Run("lives", func(t *testing.T) { testLives(t, vm, g) })
				t.Run("lists agree with events", func(t *testing.T) { testListsAgree(t, vm, g, count(1000, 20)) })
			}
			if k.Arch() != arch.AMD64 {
				t.Run("events by trap", func(t *testing.T) { testLoops(t, vm, g, probe.Trap, 10, 4) })
				return
			}
			t.Run("events by implant", func(t *testing.T) { testLoops(t, vm, g, probe.Implant, 200, 40) })
			if o.Kernel == "6.1-cloud" { // each hit stops the guest
				t.Run("events by trap", func(t *testing.T) { testLoops(t, vm, g, probe.Trap, 20, 6) })
			}
		})
	}
}

// testConformance compares what is seen of a guest with what the guest says.
func testConformance(t *testing.T, vm *testvm.VM, g *vitrine.Guest, sys osi.System) {
	dynamic, err := vm.SpawnProgram(t.Context(), "dynamic", "/usr/bin/tail", "-f", "--pid=1", "/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Spawn(t, vm, "files", "files")
	vmtest.Spawn(t, vm, "maps", "maps")
	vmtest.Spawn(t, vm, "threads", "threads", "20")
	unmoved := vmtest.NoStops(t, vm)
	truth := ostruth.Of(t, vm)
	providertest.Test(t, sys, truth)
	hasLibraries(t, truth, dynamic.PID)
	for cpu := range g.CPUs() {
		vmtest.Spawn(t, vm, "getppid", "busy"+strconv.Itoa(cpu))
	}
	for cpu := range g.CPUs() {
		currentAgrees(t, g, sys, cpu)
	}
	unmoved()
}

// hasLibraries makes sure that the comparison of libraries had something to
// compare.
func hasLibraries(t *testing.T, truth *providertest.Truth, pid int) {
	t.Helper()
	for _, p := range truth.Processes {
		if p.PID == pid {
			if libs := providertest.LibrariesOf(p); len(libs) < 2 {
				t.Errorf("the dynamic program has the libraries %+v, want libc and its linker at least", libs)
			}
			return
		}
	}
	t.Errorf("the guest does not tell of pid %d", pid)
}

// currentAgrees waits until a processor is seen in user code while it runs the
// same thread before and after; its page tables must be that thread's. Another
// thread may have run in between on a busy host, but not each time.
func currentAgrees(t *testing.T, g *vitrine.Guest, sys osi.System, cpu int) {
	t.Helper()
	busy, others := 0, 0
	for start := time.Now(); time.Since(start) < 3*time.Minute; {
		before, err := sys.Current(t.Context(), cpu)
		if err != nil {
			t.Fatal(err)
		}
		regs, err := g.Registers(t.Context(), cpu)
		if err != nil {
			t.Fatal(err)
		}
		after, err := sys.Current(t.Context(), cpu)
		if err != nil || before.ID != after.ID || !regs.User() {
			continue
		}
		if regs.ARM64.On { // QEMU's monitor does not print TTBR0
			return
		}
		// Under page-table isolation user code runs on the second table of the pair.
		if root := regs.Root(); root != before.ASID && root != before.ASID+arch.PageSize {
			if others++; others > busy+3 {
				t.Fatalf("processor %d runs on page table %v, its thread %+v", cpu, root, before)
			}
			continue
		}
		if busy++; busy == 5 {
			return
		}
	}
	t.Errorf("processor %d was seen in user code %d times in 3 minutes, want 5", cpu, busy)
}
