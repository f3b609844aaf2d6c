package syscalls_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/qemu"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// TestRealKernels holds the generated tables against what kernels say of
// themselves: the metadata of their system calls, and their symbols.
func TestRealKernels(t *testing.T) {
	for _, name := range []string{"5.10-cloud", "7.2-cloud"} {
		t.Run(name, func(t *testing.T) {
			vm := vmtest.Shared(t, &testvm.Options{Kernel: name})
			g, err := qemu.Attach(t.Context(), vm.QMP, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			k, err := kernel.Describe(t.Context(), g, nil)
			if err != nil {
				t.Fatal(err)
			}
			last := 0 // the highest number of this kernel
			t.Run("signatures", func(t *testing.T) { last = checkSignatures(t, k) })
			t.Run("candidates", func(t *testing.T) { checkCandidates(t, k, last) })
		})
	}
}

// differences are the calls whose arguments are not the same in all kernels.
var differences = map[string]bool{"bpf": true} // two more in 7.2

// unimplemented are the calls that have a number and no function, or had
// none when the oldest of these kernels was made.
const unimplemented = "_sysctl afs_syscall bdflush break create_module epoll_ctl_old epoll_wait_old ftime " +
	"get_kernel_syms getpmsg gtty idle lock lookup_dcookie mpx nfsservctl prof profil putpmsg query_module security " +
	"stty tuxcall ulimit uprobe uretprobe vserver"

func checkSignatures(t *testing.T, k *kernel.Kernel) (last int) {
	own, err := k.Syscalls()
	if err != nil {
		t.Fatal(err)
	}
	var defs []syscalls.Definition
	for _, s := range own {
		d := syscalls.Definition{NR: s.NR, Signature: syscalls.Signature{Name: s.Name}}
		for _, a := range s.Args {
			d.Params = append(d.Params, syscalls.Param{Name: a.Name, Type: a.Type})
		}
		defs = append(defs, d)
	}
	table, fallback := syscalls.NewTable(arch.AMD64, defs), syscalls.Fallback(arch.AMD64)
	compared := 0
	for _, d := range defs {
		last = max(last, d.NR)
		name, ok := syscalls.Name(arch.AMD64, d.NR)
		if !ok {
			t.Errorf("%d %s is not in the table of numbers", d.NR, d.Name)
			continue
		}
		got, ok := table.Signature(name)
		if !ok || !slices.Equal(got.Params, d.Params) {
			t.Errorf("%s: the guest's own arguments %v were refused", name, d.Params)
		}
		want, _ := fallback.Signature(name)
		if !slices.EqualFunc(got.Params, want.Params, func(a, b syscalls.Param) bool { return shape(a) == shape(b) }) && !differences[name] {
			t.Errorf("%s: the kernel has %v, the fallback %v", name, got.Params, want.Params)
		}
		compared++
	}
	if compared < 300 {
		t.Errorf("only %d calls compared", compared)
	}
	return last
}

// shape is what a parameter is shown by: pointer or number.
func shape(p syscalls.Param) bool { return strings.Contains(p.Type, "*") }

// checkCandidates looks for the function of every system call that a kernel
// with that last number has. From 403 on, numbers are the same on all
// architectures.
func checkCandidates(t *testing.T, k *kernel.Kernel, last int) {
	symbols := map[string]bool{}
	for s := range k.Symbols() {
		symbols[s.Name] = true
	}
	found := 0
	for _, a := range []arch.Arch{arch.AMD64, arch.I386} {
		for _, name := range syscalls.Names(a) {
			var symbol string
			for _, c := range syscalls.Candidates(a, name) {
				if symbols[c] {
					symbol = c
					break
				}
			}
			if symbol == "" {
				if nr, _ := syscalls.Number(a, name); nr <= last && !slices.Contains(strings.Fields(unimplemented), name) {
					t.Errorf("%v %s: the kernel has none of %v", a, name, syscalls.Candidates(a, name))
				}
				continue
			}
			found++
			if gotArch, got, ok := syscalls.FromSymbol(arch.AMD64, symbol); !ok || gotArch != a {
				t.Errorf("%v %s is %s, which is said to be %v %s", a, name, symbol, gotArch, got)
			}
			if !syscalls.TakesRegisters(symbol) {
				t.Errorf("%v %s is %s, which takes no registers", a, name, symbol)
			}
		}
	}
	if found < 740 {
		t.Errorf("found the functions of %d calls, want at least 740", found)
	}
}
