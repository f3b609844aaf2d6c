package trace

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// ErrUnknownCall is returned for names that are neither a system call nor a
// function of the guest's kernel. It comes with kernel.ErrNoSymbol.
var ErrUnknownCall = errors.New("no such system call in this guest")

// entry is one kernel function and what it stands for.
type entry struct {
	symbol string
	name   string    // the system call, "" for other functions
	abi    arch.Arch // interface by which the call is made
	// dispatch says that the function is called for every system call, with its
	// number as second argument.
	dispatch bool
}

// user says where the function finds a system call's arguments.
func (e entry) user() probe.UserRegs {
	switch {
	case !e.dispatch && (e.name == "" || !syscalls.TakesRegisters(e.symbol)):
		return probe.NoUserRegs
	case e.abi == arch.I386:
		return probe.UserRegs32
	case e.abi == arch.ARM64:
		return probe.UserRegsARM64
	}
	return probe.UserRegs64
}

// dispatchers returns the functions through which the kernel makes all system
// calls, one for each interface: since Linux 6.9, and in stable kernels from
// May 2024 on. It returns nil for kernels that call through a table.
func dispatchers(k symbols) []entry {
	out := []entry{{symbol: "x64_sys_call", abi: arch.AMD64, dispatch: true}, {symbol: "ia32_sys_call", abi: arch.I386, dispatch: true}}
	for _, e := range out {
		if _, err := k.Symbol(e.symbol); err != nil {
			return nil
		}
	}
	return out
}

// interfaces returns those by which programs make system calls of the kernel, its
// own first. A kernel of arm64 is told by the names of its functions; its 32-bit
// interface is not known.
func interfaces(k symbols) []arch.Arch {
	if _, err := k.Symbol("__arm64_sys_openat"); err == nil {
		return []arch.Arch{arch.ARM64}
	}
	return []arch.Arch{arch.AMD64, arch.I386}
}

// resolve finds the kernel functions that a name means: that of the system call
// by the kernel's own interface first, and where 32-bit programs enter by one of
// their own, that too. A name that is exactly a kernel function's means that one.
func resolve(k symbols, name string) ([]entry, error) {
	if abi, call, ok := syscalls.FromSymbol(interfaces(k)[0], name); ok && strings.HasPrefix(name, "__") {
		if _, err := k.Symbol(name); err == nil {
			return []entry{{symbol: name, name: call, abi: abi}}, nil
		}
	}
	var found []entry
	for _, abi := range interfaces(k) {
		if e, ok := firstOf(k, abi, name); ok && (len(found) == 0 || e.symbol != found[0].symbol) {
			found = append(found, e)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	if _, err := k.Symbol(name); err != nil {
		return nil, fmt.Errorf("trace %s: %w: %w", name, ErrUnknownCall, err)
	}
	return []entry{{symbol: name}}, nil
}

// symbols is the part of *kernel.Kernel that names are looked up in.
type symbols interface {
	Symbol(name string) (kernel.Symbol, error)
}

var _ symbols = (*kernel.Kernel)(nil)

func firstOf(k symbols, abi arch.Arch, name string) (entry, bool) {
	for _, c := range syscalls.Candidates(abi, name) {
		if _, err := k.Symbol(c); err != nil {
			continue
		}
		if at, call, ok := syscalls.FromSymbol(abi, c); ok && at == abi {
			return entry{symbol: c, name: call, abi: abi}, true
		}
	}
	return entry{}, false
}
