package tests

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/ostruth"
	"github.com/vitrine-vmi/vitrine/internal/testvm/seen"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/linux"
	"github.com/vitrine-vmi/vitrine/vitrinetest/providertest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// matrix holds each value of each dimension, and each kernel with each CPU: kernel, CPU, number of vCPUs, kind of RAM,
// machine, and memory with and without a part above the hole that ends at 4 GiB.
var matrix = []testvm.Options{
	{Kernel: "6.1-cloud", CPU: "max", CPUs: 1, Machine: "pc", RAM: testvm.Private, Also32: true},
	{Kernel: "6.1-cloud", CPU: "qemu64", CPUs: 2, Machine: "q35", RAM: testvm.SharedMemfd, Memory: 5120},
	{Kernel: "6.12", CPU: "max", CPUs: 2, Machine: "q35", RAM: testvm.Private, Memory: 5120},
	{Kernel: "6.12", CPU: "qemu64", CPUs: 1, Machine: "pc", RAM: testvm.SharedFile, Also32: true},
}

func describeOptions(o testvm.Options) string {
	ram := map[testvm.RAM]string{testvm.Private: "private"}[o.RAM]
	if ram == "" {
		ram = string(o.RAM)
	}
	return fmt.Sprintf("%s %s %d vCPU %s %s %d MiB", o.Kernel, o.CPU, o.CPUs, o.Machine, ram, max(o.Memory, 512))
}

// Everything that is read of a guest is what the guest says of itself, on every kind of guest, and reading never stops
// it, not for a moment.
func TestMatrix(t *testing.T) {
	for _, o := range matrix {
		t.Run(describeOptions(o), func(t *testing.T) {
			vm := vmtest.Boot(t, &o)
			populate(t, vm)
			truth := ostruth.Of(t, vm)
			noStops := vmtest.NoStops(t, vm)
			begin := time.Now()
			g, k, sys := seen.Open(t, vm)
			t.Logf("attached and identified in %v", time.Since(begin))
			t.Run("kernel", func(t *testing.T) { checkKernel(t, vm, k) })
			t.Run("memory", func(t *testing.T) { checkMemory(t, vm, g, sys) })
			providertest.Test(t, sys, truth)
			t.Run("load", func(t *testing.T) { checkUnderLoad(t, vm, sys) })
			noStops()
			if o.Kernel == "6.1-cloud" { // one with five levels of page tables, and one with four
				t.Run("walk", func(t *testing.T) { checkWalk(t, vm, g, k.Paging()) })
			}
			vmtest.Healthy(t, vm)
		})
	}
}

// populate starts processes that have something to be seen.
func populate(t *testing.T, vm *testvm.VM) {
	t.Helper()
	vmtest.Spawn(t, vm, "files", "files")
	vmtest.Spawn(t, vm, "maps", "maps")
	vmtest.Spawn(t, vm, "threads", "threads", "12")
	vmtest.Spawn(t, vm, "procs", "procs", "40")
	if vm.Options.Also32 {
		for _, kind := range []string{"files", "maps", "threads"} {
			vmtest.SpawnWith(t, vm, wire.SpawnArgs{Kind: kind, Name: kind + "32", Bits32: true})
		}
	}
	// Dynamically linked ones, and one whose name and arguments are as odd as they can be.
	vmtest.SpawnWith(t, vm, wire.SpawnArgs{Kind: "program", Name: "tail", Path: "/usr/bin/tail", Argv: []wire.Text{
		wire.Text("/usr/bin/tail"), wire.Text("-f"), wire.Text("/etc/hostname"),
	}, Dir: "/tmp", UID: 1000, GID: 100})
	vmtest.SpawnWith(t, vm, wire.SpawnArgs{Kind: "program", Name: "sed", Path: "/bin/sed", Argv: []wire.Text{
		wire.Text("sed"), wire.Text("-n"), wire.Text("p"),
	}})
	if _, err := vm.Run(t.Context(), "ln", "-s", "/bin/busybox", "/tmp/a) S 1 (\nb"); err != nil {
		t.Fatal(err)
	}
	vmtest.SpawnWith(t, vm, wire.SpawnArgs{Kind: "program", Name: "odd", Path: "/tmp/a) S 1 (\nb", Argv: []wire.Text{
		wire.Text("sleep"), wire.Text("100000"),
	}})
	long := []wire.Text{wire.Text("sh"), wire.Text("-c"), wire.Text("read x"), {}, {0xff, 0x1b, '['}}
	for i := range 300 {
		long = append(long, wire.Text(fmt.Sprintf("argument-%d-%s", i, strings.Repeat("x", i%50))))
	}
	vmtest.SpawnWith(t, vm, wire.SpawnArgs{Kind: "program", Name: "long", Path: "/bin/sh", Argv: long})
}

// checkKernel compares a few symbols of all sorts with the guest's own, and the paging mode with its CPU.
func checkKernel(t *testing.T, vm *testvm.VM, k *kernel.Kernel) {
	// By fixed strings: regular expressions take a guest under TCG half a minute.
	args := []string{"grep", "-F"}
	some := []string{"_text", "_stext", "_etext", "init_task", "init_top_pgt", "do_exit", "vfs_read", "sys_call_table", "__x64_sys_openat"}
	for _, name := range some {
		args = append(args, "-e", " "+name)
	}
	out, err := vm.Run(t.Context(), append(args, "/proc/kallsyms")...)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		var addr uint64
		var letter, name string
		if n, err := fmt.Sscanf(line, "%x %s %s", &addr, &letter, &name); n != 3 || strings.Contains(line, "[") {
			t.Logf("%q: %v", line, err)
			continue
		}
		if !slices.Contains(some, name) {
			continue // it only begins like one
		}
		s, err := k.Symbol(name)
		if err != nil || s.Addr != arch.GVA(addr) {
			t.Errorf("symbol %s is at %v (%v), the guest says %#x", name, s.Addr, err, addr)
		}
		seen++
	}
	if seen < 5 {
		t.Errorf("compared %d symbols, want at least 5:\n%s", seen, out)
	}
	cpuinfo, err := vm.ReadFile(t.Context(), "/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	if five := strings.Contains(string(cpuinfo), " la57"); five != (k.Paging() == arch.Paging5Level) {
		t.Errorf("paging is %v, the guest's CPU has la57: %v", k.Paging(), five)
	}
	if k.Release() != vm.Hello.Release || k.CPUs() < vm.Options.CPUs {
		t.Errorf("release %q with %d CPUs, the guest says %q with %d", k.Release(), k.CPUs(), vm.Hello.Release, vm.Options.CPUs)
	}
}

// checkMemory reads known bytes of a process, and wants memory above 4 GiB to be used where there is some.
func checkMemory(t *testing.T, vm *testvm.VM, g *vitrine.Guest, sys osi.System) {
	s := vmtest.Spawn(t, vm, "maps", "known")
	p, err := sys.ProcessByPID(t.Context(), s.PID)
	if err != nil {
		t.Fatal(err)
	}
	as, err := sys.AddressSpace(t.Context(), p.Handle)
	if err != nil {
		t.Fatal(err)
	}
	var addr uint64
	if _, err := fmt.Sscanf(s.Info["anon"], "%v", &addr); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	if n, err := as.Read(b, arch.GVA(addr)); err != nil || string(b[:n]) != "vitrine was here" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if got, want := g.MemoryBytes(), uint64(vm.Options.Memory)<<20; got != want {
		t.Errorf("guest has %d bytes, want %d", got, want)
	}
	high := 0
	for p, err := range sys.Processes(t.Context()) {
		if err == nil && p.ASID >= 4<<30 {
			high++
		}
	}
	if wants := vm.Options.Memory > 4096; wants != (high > 0) {
		t.Errorf("%d page tables lie above 4 GiB in a guest of %d MiB", high, vm.Options.Memory)
	}
}

// checkUnderLoad lists a guest that forks, opens and exits on every vCPU: entries may be torn, each list is complete as
// to what stays, and nothing hangs.
func checkUnderLoad(t *testing.T, vm *testvm.VM, sys osi.System) {
	resident := vmtest.Spawn(t, vm, "procs", "resident", "20")
	vmtest.Spawn(t, vm, "load", "load")
	for round := range 20 {
		seen := map[int]bool{}
		torn := 0
		for p, err := range sys.Processes(t.Context()) {
			if err != nil {
				torn++
				continue
			}
			seen[p.PID] = true
		}
		for _, pid := range resident.TIDs {
			if !seen[pid] {
				t.Errorf("round %d: pid %d, which stays, is not listed (%d torn entries)", round, pid, torn)
			}
		}
		for cpu := range vm.Options.CPUs {
			if _, err := sys.Current(t.Context(), cpu); err != nil {
				t.Logf("round %d: current of vCPU %d: %v", round, cpu, err)
			}
		}
	}
	vmtest.Goes(t, vm, "load")
}
