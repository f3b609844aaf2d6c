//go:build linux

package kernel_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// armGuest is a guest, its page-table format, and what cannot be learnt of it.
type armGuest struct {
	vm      testvm.Options
	paging  arch.PagingMode
	missing []string
}

// arm64Guests are a kernel with symbols of functions only, and one that uses 52
// bits of address where the processor has them.
var arm64Guests = []armGuest{
	{testvm.Options{Kernel: "6.1-cloud-arm64", CPUs: 2}, arch.PagingARM48, []string{"system call metadata", "per-CPU"}},
	{testvm.Options{Kernel: "6.12-cloud-arm64", CPUs: 2, RAM: testvm.SharedMemfd}, arch.PagingARM48, nil},
	{testvm.Options{Kernel: "6.12-cloud-arm64", CPUs: 2, CPU: "max,pauth-impdef=on"}, arch.PagingARM52, nil},
}

// TestRealARM64 compares what is known of arm64 kernels with what the guests say.
func TestRealARM64(t *testing.T) {
	if os.Getenv("VITRINE_TEST_ARM64") != "" {
		testARM64(t, arm64Guests)
		return
	}
	vmtest.Skip(t, "osi/linux and trace boot a guest of arm64, these are more", "with VITRINE_TEST_ARM64=1")
}

func testARM64(t *testing.T, guests []armGuest) {
	for _, c := range guests {
		t.Run(c.vm.Kernel+" "+c.paging.String(), func(t *testing.T) {
			vm := vmtest.Shared(t, &c.vm)
			g := attach(t, vm)
			unstopped := vmtest.NoStops(t, vm)
			k := describe(t, g, nil)
			unstopped()
			if k.Release() != vm.Hello.Release || k.Paging() != c.paging {
				t.Errorf("release %q, the guest says %q; paging %v, want %v", k.Release(), vm.Hello.Release, k.Paging(), c.paging)
			}
			if version, err := vm.ReadFile(t.Context(), "/proc/version"); err != nil || k.Banner() != strings.TrimSpace(string(version)) {
				t.Errorf("banner %q, the guest says %q (%v)", k.Banner(), version, err)
			}
			if len(k.Missing()) != len(c.missing) {
				t.Errorf("missing: %q, want %q", k.Missing(), c.missing)
			}
			for _, m := range c.missing {
				if !strings.Contains(strings.Join(k.Missing(), "\n"), m) {
					t.Errorf("missing: %q, want %q", k.Missing(), m)
				}
			}
			t.Run("symbols", func(t *testing.T) { checkSymbols(t, vm, k) })
			t.Run("modules", func(t *testing.T) { checkModules(t, vm, k) })
			if c.missing == nil {
				t.Run("types", func(t *testing.T) { checkTypes(t, k) })
				t.Run("percpu", func(t *testing.T) { checkPerCPU(t, k, c.vm.CPUs) })
				t.Run("syscalls", func(t *testing.T) { checkARMSyscalls(t, k) })
			}
		})
	}
}

func checkARMSyscalls(t *testing.T, k *kernel.Kernel) {
	calls, err := k.Syscalls()
	i := slices.IndexFunc(calls, func(c kernel.Syscall) bool { return c.NR == 56 })
	if err != nil || len(calls) < 300 || i < 0 {
		t.Fatalf("%d system calls: %v", len(calls), err)
	}
	if got, want := fmt.Sprint(calls[i].Name, calls[i].Args), "openat[{dfd int} {filename const char *} {flags int} {mode umode_t}]"; got != want {
		t.Errorf("system call 56 is %s, want %s", got, want)
	}
}
