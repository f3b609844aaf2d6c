package syscalls

import (
	"slices"
	"sync"

	"github.com/vitrine-vmi/vitrine/arch"
)

// numbers returns the generated names by number; holes are empty strings.
func numbers(a arch.Arch) []string {
	switch a {
	case arch.AMD64:
		return amd64Numbers[:]
	case arch.I386:
		return i386Numbers[:]
	case arch.ARM64:
		return arm64Numbers[:]
	}
	return nil
}

// Name returns the name of system call nr, and false if there is none.
func Name(a arch.Arch, nr int) (string, bool) {
	n := numbers(a)
	if nr < 0 || nr >= len(n) || n[nr] == "" {
		return "", false
	}
	return n[nr], true
}

// Number returns the number of a system call by its name without prefix
// ("openat"), and false if there is none.
func Number(a arch.Arch, name string) (int, bool) {
	nr, ok := byName[a]
	if !ok {
		return 0, false
	}
	n, ok := nr()[name]
	return n, ok
}

var byName = map[arch.Arch]func() map[string]int{
	arch.AMD64: sync.OnceValue(func() map[string]int { return invert(amd64Numbers[:]) }),
	arch.I386:  sync.OnceValue(func() map[string]int { return invert(i386Numbers[:]) }),
	arch.ARM64: sync.OnceValue(func() map[string]int { return invert(arm64Numbers[:]) }),
}

func invert(names []string) map[string]int {
	m := make(map[string]int, len(names))
	for nr, name := range names {
		if name != "" {
			m[name] = nr
		}
	}
	return m
}

// Names returns the names of all system calls, sorted.
func Names(a arch.Arch) []string {
	out := slices.DeleteFunc(slices.Clone(numbers(a)), func(s string) bool { return s == "" })
	slices.Sort(out)
	return out
}
