package trace

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
)

// table is a kernel that has these symbols.
type table []string

func (s table) Symbol(name string) (kernel.Symbol, error) {
	if slices.Contains(s, name) {
		return kernel.Symbol{Name: name, Type: 'T'}, nil
	}
	return kernel.Symbol{}, kernel.ErrNoSymbol
}

func TestResolve(t *testing.T) {
	modern := table{"__x64_sys_openat", "__ia32_sys_openat", "__ia32_compat_sys_openat", "__x64_sys_getppid", "__ia32_sys_getppid",
		"__ia32_sys_waitpid", "do_exit", "__se_sys_openat", "pause"}
	old := table{"sys_openat", "compat_sys_openat", "sys_getppid"}
	arm := table{"__arm64_sys_openat", "__arm64_sys_newfstatat", "__arm64_compat_sys_openat", "__se_sys_openat", "do_exit"}
	both := []entry{{symbol: "__x64_sys_openat", name: "openat", abi: arch.AMD64}, {symbol: "__ia32_compat_sys_openat", name: "openat", abi: arch.I386}}
	for _, c := range []struct {
		k    table
		name string
		want []entry
	}{
		{modern, "openat", both},
		{modern, "sys_openat", both},
		{modern, "__x64_sys_openat", both[:1]},
		{modern, "__ia32_sys_openat", []entry{{symbol: "__ia32_sys_openat", name: "openat", abi: arch.I386}}},
		{modern, "getppid", []entry{{symbol: "__x64_sys_getppid", name: "getppid", abi: arch.AMD64}, {symbol: "__ia32_sys_getppid", name: "getppid", abi: arch.I386}}},
		{modern, "waitpid", []entry{{symbol: "__ia32_sys_waitpid", name: "waitpid", abi: arch.I386}}},
		{modern, "do_exit", []entry{{symbol: "do_exit"}}},
		{modern, "pause", []entry{{symbol: "pause"}}},
		{old, "openat", []entry{{symbol: "sys_openat", name: "openat", abi: arch.AMD64}, {symbol: "compat_sys_openat", name: "openat", abi: arch.I386}}},
		{arm, "openat", []entry{{symbol: "__arm64_sys_openat", name: "openat", abi: arch.ARM64}}},
		{arm, "sys_openat", []entry{{symbol: "__arm64_sys_openat", name: "openat", abi: arch.ARM64}}},
		{arm, "__arm64_sys_openat", []entry{{symbol: "__arm64_sys_openat", name: "openat", abi: arch.ARM64}}},
		{arm, "newfstatat", []entry{{symbol: "__arm64_sys_newfstatat", name: "newfstatat", abi: arch.ARM64}}},
		{arm, "do_exit", []entry{{symbol: "do_exit"}}},
		{old, "sys_getppid", []entry{{symbol: "sys_getppid", name: "getppid", abi: arch.AMD64}}},
	} {
		got, err := resolve(c.k, c.name)
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(entry{})); diff != "" || err != nil {
			t.Errorf("resolve(%s): %v (-want +got):\n%s", c.name, err, diff)
		}
	}
	for _, name := range []string{"opnat", "", "sys_", "__x64_sys_nothing"} {
		if got, err := resolve(modern, name); !errors.Is(err, ErrUnknownCall) || !errors.Is(err, kernel.ErrNoSymbol) || got != nil {
			t.Errorf("resolve(%q) = %v, %v", name, got, err)
		}
	}
}

func TestUserRegs(t *testing.T) {
	for e, want := range map[entry]probe.UserRegs{
		{symbol: "x64_sys_call", abi: arch.AMD64, dispatch: true}: probe.UserRegs64,
		{symbol: "ia32_sys_call", abi: arch.I386, dispatch: true}: probe.UserRegs32,
		{symbol: "sys_openat", name: "openat", abi: arch.AMD64}:   probe.NoUserRegs,
		{symbol: "do_exit"}: probe.NoUserRegs,
		{symbol: "__arm64_sys_openat", name: "openat", abi: arch.ARM64}: probe.UserRegsARM64,
	} {
		if got := e.user(); got != want {
			t.Errorf("%s: %d, want %d", e.symbol, got, want)
		}
	}
}

func TestDispatchers(t *testing.T) {
	if got := dispatchers(table{"x64_sys_call", "ia32_sys_call"}); len(got) != 2 || !got[0].dispatch || !got[1].dispatch {
		t.Errorf("dispatchers = %+v", got)
	}
	if got := dispatchers(table{"x64_sys_call"}); got != nil {
		t.Errorf("dispatchers of a kernel that lacks one = %+v", got)
	}
}

// A kernel of arm64 has one interface, by which what it says of its calls is read.
func TestInterfaces(t *testing.T) {
	if got := interfaces(table{"__arm64_sys_openat", "invoke_syscall"}); !slices.Equal(got, []arch.Arch{arch.ARM64}) {
		t.Errorf("interfaces of arm64: %v", got)
	}
	if got := interfaces(table{"__x64_sys_openat"}); !slices.Equal(got, []arch.Arch{arch.AMD64, arch.I386}) {
		t.Errorf("interfaces of x86-64: %v", got)
	}
	if got := dispatchers(table{"__arm64_sys_openat", "invoke_syscall"}); got != nil {
		t.Errorf("dispatchers of arm64: %v", got)
	}
}

func TestARMRegisters(t *testing.T) {
	r := &arch.ARM64Registers{On: true, SP: 1, PC: 2, PSTATE: 3, SPEL0: 4, TTBR0: 5, TTBR1: 6, TCR: 7, SCTLR: 8}
	r.X[0], r.X[30] = 100, 130
	for name, want := range map[string]uint64{"x0": 100, "x30": 130, "lr": 130, "sp": 1, "pc": 2, "pstate": 3, "cpsr": 3, "sp_el0": 4,
		"ttbr0_el1": 5, "ttbr1_el1": 6, "tcr_el1": 7, "sctlr_el1": 8} {
		if got, err := armRegister(r, name); err != nil || got != want {
			t.Errorf("%s = %d, %v; want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"", "x", "x31", "x-1", "0", "rax", "y0"} {
		if got, err := armRegister(r, name); err == nil {
			t.Errorf("%s = %d", name, got)
		}
	}
}

func TestWithout(t *testing.T) {
	e := func(names ...string) (out []entry) {
		for _, n := range names {
			out = append(out, entry{symbol: n})
		}
		return out
	}
	got := without(e("a", "b", "a", "c"), e("b", "x"))
	if diff := cmp.Diff(e("a", "c"), got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
