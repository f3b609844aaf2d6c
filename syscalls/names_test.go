package syscalls

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine/arch"
)

var allArches = []arch.Arch{arch.AMD64, arch.I386, arch.ARM64}

// The numbers are from the kernel's own tables, which never change them.
func TestNumbers(t *testing.T) {
	for _, tc := range []struct {
		a    arch.Arch
		nr   int
		name string
	}{
		{arch.AMD64, 0, "read"}, {arch.AMD64, 59, "execve"}, {arch.AMD64, 257, "openat"}, {arch.AMD64, 435, "clone3"},
		{arch.I386, 3, "read"}, {arch.I386, 11, "execve"}, {arch.I386, 295, "openat"}, {arch.I386, 192, "mmap2"},
		{arch.ARM64, 63, "read"}, {arch.ARM64, 221, "execve"}, {arch.ARM64, 56, "openat"}, {arch.ARM64, 79, "newfstatat"},
	} {
		if name, ok := Name(tc.a, tc.nr); !ok || name != tc.name {
			t.Errorf("Name(%v, %d) = %q, %v, want %q", tc.a, tc.nr, name, ok, tc.name)
		}
		if nr, ok := Number(tc.a, tc.name); !ok || nr != tc.nr {
			t.Errorf("Number(%v, %q) = %d, %v, want %d", tc.a, tc.name, nr, ok, tc.nr)
		}
	}
	for _, nr := range []int{-1, 1 << 20, 400} { // 400 is a hole on x86-64
		if name, ok := Name(arch.AMD64, nr); ok {
			t.Errorf("Name(%d) = %q", nr, name)
		}
	}
	if _, ok := Number(arch.Unknown, "read"); ok {
		t.Error("an unknown architecture has numbers")
	}
	for a, want := range map[arch.Arch]int{arch.AMD64: 385, arch.I386: 461, arch.ARM64: 327} {
		if got := len(Names(a)); got != want {
			t.Errorf("%v has %d names, want %d", a, got, want)
		}
	}
}

// Every system call but those that no kernel implements has a signature.
func TestFallbackIsComplete(t *testing.T) {
	none := map[arch.Arch]string{
		// The first line of each are entries that only return ENOSYS.
		arch.AMD64: "_sysctl afs_syscall create_module epoll_wait_old get_kernel_syms getpmsg nfsservctl putpmsg query_module security tuxcall vserver " +
			"rseq_slice_yield uprobe",
		arch.I386: "_sysctl afs_syscall bdflush create_module ftime get_kernel_syms getpmsg gtty idle lock mpx nfsservctl prof profil putpmsg query_module stty ulimit vserver " +
			"rseq_slice_yield vm86 vm86old",
		arch.ARM64: "nfsservctl rseq_slice_yield",
	}
	for _, a := range allArches {
		table := Fallback(a)
		for _, name := range Names(a) {
			_, ok := table.Signature(name)
			if missing := slices.Contains(strings.Fields(none[a]), name); ok == missing {
				t.Errorf("%v %s: has a signature: %v, want %v", a, name, ok, !missing)
			}
		}
	}
}

func TestCandidates(t *testing.T) {
	for _, tc := range []struct {
		a    arch.Arch
		name string
		want []string
	}{
		{arch.AMD64, "openat", []string{"__x64_sys_openat", "sys_openat", "SyS_openat"}},
		{arch.AMD64, "sys_open", []string{"__x64_sys_open", "sys_open", "SyS_open"}},
		{arch.AMD64, "__x64_sys_open", []string{"__x64_sys_open", "sys_open", "SyS_open"}},
		{arch.AMD64, "stat", []string{"__x64_sys_newstat", "sys_newstat", "SyS_newstat"}},
		{arch.ARM64, "uname", []string{"__arm64_sys_newuname", "sys_newuname", "SyS_newuname"}},
		{arch.I386, "openat", []string{"__ia32_compat_sys_openat", "__ia32_sys_openat", "compat_sys_openat", "sys_openat", "SyS_openat"}},
		{arch.I386, "getuid", []string{"__ia32_compat_sys_getuid16", "__ia32_sys_getuid16", "compat_sys_getuid16", "sys_getuid16", "SyS_getuid16"}},
		{arch.Unknown, "openat", nil},
	} {
		if diff := cmp.Diff(tc.want, Candidates(tc.a, tc.name)); diff != "" {
			t.Errorf("Candidates(%v, %s) (-want +got):\n%s", tc.a, tc.name, diff)
		}
	}
}

// What Candidates offers leads back to the call.
func TestFromSymbolInvertsCandidates(t *testing.T) {
	for _, a := range allArches {
		for _, name := range Names(a) {
			symbol := Candidates(a, name)[0]
			gotArch, got, ok := FromSymbol(a, symbol)
			if gotArch != a || !ok {
				t.Errorf("FromSymbol(%v, %s) = %v, %q, %v", a, symbol, gotArch, got, ok)
			}
			// Several calls may share a function (32-bit umount2 and umount64).
			if got != name && Candidates(a, got)[0] != symbol && !slices.Contains(Candidates(a, got), symbol) {
				t.Errorf("FromSymbol(%v, %s) = %q, want %q", a, symbol, got, name)
			}
		}
	}
	for _, tc := range []struct {
		symbol, name string
		a            arch.Arch
		ok           bool
	}{
		{"__x64_sys_newfstat", "fstat", arch.AMD64, true},
		{"__ia32_sys_openat", "openat", arch.I386, true},
		{"__ia32_sys_getuid", "getuid32", arch.I386, true},
		{"__ia32_compat_sys_futex_time32", "futex", arch.I386, true},
		{"__do_sys_openat", "openat", arch.AMD64, true},
		{"__x64_sys_nonsense", "", arch.AMD64, false},
		{"do_sys_openat2", "", arch.Unknown, false},
		{"", "", arch.Unknown, false},
	} {
		a, name, ok := FromSymbol(arch.AMD64, tc.symbol)
		if a != tc.a || name != tc.name || ok != tc.ok {
			t.Errorf("FromSymbol(%s) = %v, %q, %v, want %v, %q, %v", tc.symbol, a, name, ok, tc.a, tc.name, tc.ok)
		}
	}
	for s, want := range map[string]bool{"__x64_sys_read": true, "sys_read": false, "__arm64_sys_read": true, "__do_sys_read": false} {
		if TakesRegisters(s) != want {
			t.Errorf("TakesRegisters(%s) = %v", s, !want)
		}
	}
}

func TestParseSet(t *testing.T) {
	known := Names(arch.AMD64)
	got, err := ParseSet("openat, close,openat", known)
	if diff := cmp.Diff([]string{"openat", "close"}, got); err != nil || diff != "" {
		t.Errorf("ParseSet: %v (-want +got):\n%s", err, diff)
	}
	if got, err = ParseSet("all", known); err != nil || len(got) != len(known) {
		t.Errorf("all = %d names, %v", len(got), err)
	}
	for _, s := range []string{"", "open,", ",", "open,,close"} {
		if got, err = ParseSet(s, known); err == nil {
			t.Errorf("ParseSet(%q) = %v, want an error", s, got)
		}
	}
	got, err = ParseSet("opneat,sys_close,close,xyzzyplugh", known)
	var unknown *UnknownError
	if got != nil || !errors.As(err, &unknown) {
		t.Fatalf("ParseSet = %v, %v, want an UnknownError", got, err)
	}
	if diff := cmp.Diff([]string{"opneat", "sys_close", "xyzzyplugh"}, unknown.Names); diff != "" {
		t.Errorf("unknown names (-want +got):\n%s", diff)
	}
	const want = `unknown system call "opneat" (did you mean openat, openat2?); unknown system call "sys_close" (did you mean close, clone, close_range?); unknown system call "xyzzyplugh"`
	if err.Error() != want {
		t.Errorf("error\n got %s\nwant %s", err, want)
	}
}

func TestNearest(t *testing.T) {
	known := Names(arch.AMD64)
	for name, first := range map[string]string{
		"opne": "open", "raed": "read", "exec": "execve", "Openat": "openat", "__x64_sys_mmap": "mmap", "getppi": "getppid",
	} {
		if got := Nearest(name, known); len(got) == 0 || got[0] != first {
			t.Errorf("Nearest(%q) = %q, want %q first", name, got, first)
		}
	}
	for _, name := range []string{"", "qqqqqqqq", strings.Repeat("a", 10000)} {
		if got := Nearest(name, known); len(got) != 0 {
			t.Errorf("Nearest(%.20q) = %q, want none", name, got)
		}
	}
}
