package syscalls

import (
	"strings"
	"sync"

	"github.com/vitrine-vmi/vitrine/arch"
)

// functions holds the calls whose kernel function has another name than the
// call: SYSCALL_DEFINE's name differs from that in the table of numbers.
var functions = map[string]string{
	"fstat":    "newfstat",
	"lstat":    "newlstat",
	"sendfile": "sendfile64",
	"stat":     "newstat",
	"umount2":  "umount",
	"uname":    "newuname",
}

// functionsI386 are those of 32-bit x86 (arch/x86/entry/syscalls/syscall_32.tbl
// names the functions); it wins over functions.
var functionsI386 = map[string][]string{
	"umount":          {"oldumount"},
	"mmap":            {"ia32_mmap", "x86_mmap", "old_mmap"},
	"mmap2":           {"mmap_pgoff"},
	"select":          {"old_select"},
	"_newselect":      {"select"},
	"_llseek":         {"llseek"},
	"nanosleep":       {"nanosleep_time32", "nanosleep"},
	"olduname":        {"uname"},
	"oldolduname":     {"olduname"},
	"oldstat":         {"stat"},
	"oldlstat":        {"lstat"},
	"oldfstat":        {"fstat"},
	"readdir":         {"old_readdir"},
	"ugetrlimit":      {"getrlimit"},
	"getrlimit":       {"old_getrlimit"},
	"sendfile":        {"sendfile"},
	"clone":           {"ia32_clone", "x86_clone", "clone"},
	"stat64":          {"ia32_stat64", "x86_stat64", "stat64"},
	"lstat64":         {"ia32_lstat64", "x86_lstat64", "lstat64"},
	"fstat64":         {"ia32_fstat64", "x86_fstat64", "fstat64"},
	"fstatat64":       {"ia32_fstatat64", "x86_fstatat", "fstatat64"},
	"truncate64":      {"ia32_truncate64", "x86_truncate64", "truncate64"},
	"ftruncate64":     {"ia32_ftruncate64", "x86_ftruncate64", "ftruncate64"},
	"pread64":         {"ia32_pread64", "x86_pread", "pread64"},
	"pwrite64":        {"ia32_pwrite64", "x86_pwrite", "pwrite64"},
	"readahead":       {"ia32_readahead", "x86_readahead", "readahead"},
	"fadvise64":       {"ia32_fadvise64", "x86_fadvise64", "fadvise64"},
	"fadvise64_64":    {"ia32_fadvise64_64", "x86_fadvise64_64", "fadvise64_64"},
	"sync_file_range": {"ia32_sync_file_range", "x86_sync_file_range", "sync_file_range"},
	"fallocate":       {"ia32_fallocate", "x86_fallocate", "fallocate"},
	"chown":           {"chown16"},
	"lchown":          {"lchown16"},
	"fchown":          {"fchown16"},
	"getuid":          {"getuid16"},
	"geteuid":         {"geteuid16"},
	"getgid":          {"getgid16"},
	"getegid":         {"getegid16"},
	"setuid":          {"setuid16"},
	"setgid":          {"setgid16"},
	"setreuid":        {"setreuid16"},
	"setregid":        {"setregid16"},
	"setresuid":       {"setresuid16"},
	"setresgid":       {"setresgid16"},
	"getresuid":       {"getresuid16"},
	"getresgid":       {"getresgid16"},
	"getgroups":       {"getgroups16"},
	"setgroups":       {"setgroups16"},
	"setfsuid":        {"setfsuid16"},
	"setfsgid":        {"setfsgid16"},
}

// prefixes are what stands before the name of a system call's function, newest
// first. Wrappers that take only a pointer to the registers came with 4.17 on
// x86 and 4.19 on arm64; before, sys_ and SyS_ took the arguments themselves.
var prefixes = map[arch.Arch][]string{
	arch.AMD64: {"__x64_sys_", "sys_", "SyS_"},
	arch.I386:  {"__ia32_compat_sys_", "__ia32_sys_", "compat_sys_", "sys_", "SyS_"},
	arch.ARM64: {"__arm64_sys_", "sys_", "SyS_"},
}

// Candidates returns the names of the kernel functions that may implement a
// system call, in the order in which to try them: the first that the kernel
// has a symbol for is the one. It accepts names with and without one of the
// usual prefixes ("openat", "sys_openat", "__x64_sys_openat").
func Candidates(a arch.Arch, name string) []string {
	name = trimPrefix(name)
	var out []string
	for _, p := range prefixes[a] {
		for _, f := range functionNames(a, name) {
			out = append(out, p+f)
		}
	}
	return out
}

// functionNames returns what SYSCALL_DEFINE may call a system call.
func functionNames(a arch.Arch, name string) []string {
	if a == arch.I386 {
		if f := functionNamesI386(name); f != nil {
			return f
		}
	}
	if f, ok := functions[name]; ok {
		return []string{f}
	}
	return []string{name}
}

func functionNamesI386(name string) []string {
	if f, ok := functionsI386[name]; ok {
		return f
	}
	// Since 5.1 clock_gettime64 is the function clock_gettime, and the call
	// with 32-bit times is clock_gettime32; futex_time64 and futex likewise.
	if f, ok := strings.CutSuffix(name, "_time64"); ok {
		return []string{f}
	}
	if f, ok := strings.CutSuffix(name, "64"); ok && (strings.HasPrefix(f, "clock_") || strings.HasPrefix(f, "timer")) {
		return []string{f}
	}
	if _, ok := Number(arch.I386, name+"_time64"); ok {
		return []string{name + "_time32", name}
	}
	if _, ok := Number(arch.I386, name+"64"); ok && (strings.HasPrefix(name, "clock_") || strings.HasPrefix(name, "timer")) {
		return []string{name + "32", name}
	}
	// getuid32 is the function getuid, and getuid is getuid16.
	if f, ok := strings.CutSuffix(name, "32"); ok {
		return []string{f}
	}
	return nil
}

// TakesRegisters reports whether the kernel function is a wrapper whose only
// argument is a pointer to the saved user registers (since 4.17).
func TakesRegisters(symbol string) bool {
	for _, p := range []string{"__x64_sys_", "__ia32_sys_", "__ia32_compat_sys_", "__arm64_sys_"} {
		if strings.HasPrefix(symbol, p) {
			return true
		}
	}
	return false
}

// symbolPrefixes are the prefixes that name an interface, longest first.
var symbolPrefixes = []struct {
	prefix string
	arch   arch.Arch // Unknown: whatever the kernel's is
}{
	{"__ia32_compat_sys_", arch.I386},
	{"__arm64_sys_", arch.ARM64},
	{"__ia32_sys_", arch.I386},
	{"compat_sys_", arch.I386},
	{"__x64_sys_", arch.AMD64},
	{"__do_sys_", arch.Unknown},
	{"__se_sys_", arch.Unknown},
	{"SyS_", arch.Unknown},
	{"sys_", arch.Unknown},
}

func trimPrefix(symbol string) string {
	for _, p := range symbolPrefixes {
		if s, ok := strings.CutPrefix(symbol, p.prefix); ok {
			return s
		}
	}
	return symbol
}

// FromSymbol returns the system call that a kernel function implements, and by
// which interface it is called. Where the symbol does not tell, the interface
// is the kernel's own, given by a. It returns false for other functions.
func FromSymbol(a arch.Arch, symbol string) (arch.Arch, string, bool) {
	for _, p := range symbolPrefixes {
		f, ok := strings.CutPrefix(symbol, p.prefix)
		if !ok {
			continue
		}
		if p.arch != arch.Unknown {
			a = p.arch
		}
		name, ok := nameOf(a, f)
		return a, name, ok
	}
	return arch.Unknown, "", false
}

// nameOf is the inverse of functionNames.
func nameOf(a arch.Arch, function string) (string, bool) {
	m, ok := byFunction[a]
	if !ok {
		return "", false
	}
	name, ok := m()[function]
	return name, ok
}

var byFunction = map[arch.Arch]func() map[string]string{
	arch.AMD64: sync.OnceValue(func() map[string]string { return invertFunctions(arch.AMD64) }),
	arch.I386:  sync.OnceValue(func() map[string]string { return invertFunctions(arch.I386) }),
	arch.ARM64: sync.OnceValue(func() map[string]string { return invertFunctions(arch.ARM64) }),
}

// invertFunctions maps functions to calls. Where two calls may have the same
// function, the one that names it first has it.
func invertFunctions(a arch.Arch) map[string]string {
	m := map[string]string{}
	for rank := range 4 {
		for _, name := range Names(a) {
			f := functionNames(a, name)
			if rank >= len(f) {
				continue
			}
			if _, taken := m[f[rank]]; !taken {
				m[f[rank]] = name
			}
		}
	}
	return m
}
