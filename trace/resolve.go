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
func (e entry) user(k symbols) probe.UserRegs {
	if r := e.register(); r != probe.UserRegs32 || interfaces(k)[0] != arch.I386 {
		return r
	}
	return probe.UserRegsI386
}

// register is user for a 64-bit kernel.
func (e entry) register() probe.UserRegs {
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
	if interfaces(k)[0] == arch.I386 {
		if _, err := k.Symbol("ia32_sys_call"); err != nil {
			return nil
		}
		return []entry{{symbol: "ia32_sys_call", abi: arch.I386, dispatch: true}}
	}
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
	has := func(name string) bool {
		_, err := k.Symbol(name)
		return err == nil
	}
	switch {
	case has("__arm64_sys_openat"):
		return []arch.Arch{arch.ARM64}
	case has("__ia32_sys_openat") && !has("__x64_sys_openat"): // a 32-bit kernel
		return []arch.Arch{arch.I386}
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

// site is a kernel function to hook, and what calls of it are. A function without
// arguments serves both interfaces of x86 (SYSCALL_DEFINE0, since 5.7).
type site struct {
	entry
	twin   *entry // what it is for 32-bit programs, where that is another call; may be nil
	only32 bool   // what 64-bit programs call by it was not asked for
}

// sites puts together the entries that are one function.
func sites(k symbols, entries []entry) []site {
	out := make([]site, 0, len(entries))
	at := map[arch.GVA]int{}
	for _, e := range entries {
		s, err := k.Symbol(e.symbol)
		if err != nil || e.name == "" || e.dispatch {
			out = append(out, site{entry: e})
			continue
		}
		i, there := at[s.Addr]
		switch {
		case !there:
			at[s.Addr] = len(out)
			out = append(out, site{entry: e, only32: e.abi == arch.I386 && servesBoth(k, s)})
		case out[i].abi == arch.I386 && e.abi != arch.I386:
			twin := out[i].entry
			out[i] = site{entry: e, twin: &twin}
		case out[i].abi != arch.I386 && e.abi == arch.I386:
			out[i].twin = &e
		}
	}
	return out
}

// servesBoth reports whether a function of 32-bit calls is one of 64-bit calls too.
func servesBoth(k symbols, s kernel.Symbol) bool {
	name, ok := strings.CutPrefix(s.Name, "__ia32_sys_")
	if !ok {
		return false
	}
	other, err := k.Symbol("__x64_sys_" + name)
	return err == nil && other.Addr == s.Addr
}

// savedNumber is where struct pt_regs of x86-64 has the number of the system call
// (orig_ax).
const savedNumber = 0x78

// of returns what a hit is a call of, and false for one that was not asked for. A
// function that serves both interfaces has another number in each. It can be read
// only while the guest waits: else the call is taken for a 64-bit one.
func (s *site) of(h *probe.Hit) (entry, bool) {
	if s.twin == nil && !s.only32 || !h.Sync() {
		return s.entry, true
	}
	name32 := s.name
	if s.twin != nil {
		name32 = s.twin.name
	}
	want, _ := syscalls.Number(arch.I386, name32)
	nr, err := h.Kernel().ReadUint32(arch.GVA(h.Arg(0)) + savedNumber)
	is32 := err == nil && int(nr) == want
	if is32 && s.twin != nil {
		return *s.twin, true
	}
	return s.entry, is32 || !s.only32
}
