package trace

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
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
}

// resolve finds the kernel functions that a name means: that of the system call
// by the kernel's own interface first, and where 32-bit programs enter by one of
// their own, that too. A name that is exactly a kernel function's means that one.
func resolve(k symbols, name string) ([]entry, error) {
	if abi, call, ok := syscalls.FromSymbol(arch.AMD64, name); ok && strings.HasPrefix(name, "__") {
		if _, err := k.Symbol(name); err == nil {
			return []entry{{name, call, abi}}, nil
		}
	}
	var found []entry
	for _, abi := range []arch.Arch{arch.AMD64, arch.I386} {
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
			return entry{c, call, abi}, true
		}
	}
	return entry{}, false
}
