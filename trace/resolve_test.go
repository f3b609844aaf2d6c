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
		if got := e.register(); got != want {
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

// placed is a kernel that has these symbols at these addresses.
type placed map[string]arch.GVA

func (s placed) Symbol(name string) (kernel.Symbol, error) {
	if a, ok := s[name]; ok {
		return kernel.Symbol{Name: name, Addr: a, Type: 'T'}, nil
	}
	return kernel.Symbol{}, kernel.ErrNoSymbol
}

// A function that serves both interfaces is hooked once.
func TestSites(t *testing.T) {
	k := placed{"__x64_sys_getuid": 1, "__ia32_sys_getuid": 1, "__x64_sys_read": 2, "__ia32_sys_read": 3, "do_exit": 4, "__ia32_sys_getuid16": 5,
		"__x64_sys_getppid": 6, "__ia32_sys_getppid": 6}
	uid64, uid32 := entry{symbol: "__x64_sys_getuid", name: "getuid", abi: arch.AMD64}, entry{symbol: "__ia32_sys_getuid", name: "getuid32", abi: arch.I386}
	read64, read32 := entry{symbol: "__x64_sys_read", name: "read", abi: arch.AMD64}, entry{symbol: "__ia32_sys_read", name: "read", abi: arch.I386}
	exit := entry{symbol: "do_exit"}
	for _, c := range []struct {
		what    string
		entries []entry
		want    []site
	}{
		{"both", []entry{uid64, exit, uid32}, []site{{entry: uid64, twin: &uid32}, {entry: exit}}},
		{"both, the other way", []entry{uid32, uid64}, []site{{entry: uid64, twin: &uid32}}},
		{"of 32 bits", []entry{uid32}, []site{{entry: uid32, only32: true}}},
		{"of 64 bits", []entry{uid64}, []site{{entry: uid64}}},
		{"two functions", []entry{read64, read32, read64}, []site{{entry: read64}, {entry: read32}}},
		{"absent", []entry{{symbol: "none", name: "none", abi: arch.AMD64}}, []site{{entry: entry{symbol: "none", name: "none", abi: arch.AMD64}}}},
	} {
		if diff := cmp.Diff(c.want, sites(k, c.entries), cmp.AllowUnexported(site{}, entry{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
	found, err := resolve(k, "getppid")
	if got := sites(k, found); err != nil || len(got) != 1 || got[0].name != "getppid" || got[0].twin == nil {
		t.Errorf("getppid: %+v, %v", got, err)
	}
}

// A 32-bit kernel has one interface, and saves registers otherwise.
func TestI386Kernel(t *testing.T) {
	k := table{"__ia32_sys_openat", "__ia32_sys_getuid", "__ia32_sys_getuid16", "ia32_sys_call", "do_exit"}
	for name, want := range map[string]entry{
		"openat": {symbol: "__ia32_sys_openat", name: "openat", abi: arch.I386}, "getuid": {symbol: "__ia32_sys_getuid16", name: "getuid", abi: arch.I386},
		"getuid32": {symbol: "__ia32_sys_getuid", name: "getuid32", abi: arch.I386}, "__ia32_sys_openat": {symbol: "__ia32_sys_openat", name: "openat", abi: arch.I386},
	} {
		got, err := resolve(k, name)
		if diff := cmp.Diff([]entry{want}, got, cmp.AllowUnexported(entry{})); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		} else if r := got[0].user(k); r != probe.UserRegsI386 {
			t.Errorf("%s: registers %v", name, r)
		}
	}
	if d := dispatchers(k); len(d) != 1 || d[0].abi != arch.I386 || d[0].user(k) != probe.UserRegsI386 {
		t.Errorf("dispatchers %+v", d)
	}
	if d := dispatchers(table{"__ia32_sys_openat"}); d != nil {
		t.Errorf("dispatchers %+v of a kernel with a table", d)
	}
}

func TestSeenBy(t *testing.T) {
	for _, c := range []struct {
		abi       arch.Arch
		ret, want int64
	}{
		{arch.AMD64, 4294967297, 4294967297}, {arch.AMD64, -2, -2}, {arch.I386, 4294967297, 1}, {arch.I386, -2, -2}, {arch.I386, 0xffffffff - 1, -2},
		{arch.I386, 0xf7f00000, 0xf7f00000}, {arch.I386, 0xfffff001, -4095}, {arch.I386, 0xfffff000, 0xfffff000}, {arch.I386, 0, 0},
	} {
		if got := seenBy(c.abi, c.ret); got != c.want {
			t.Errorf("seenBy(%v, %#x) = %#x, want %#x", c.abi, c.ret, got, c.want)
		}
	}
}
