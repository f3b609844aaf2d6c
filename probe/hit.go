package probe

import (
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// Hit is one entry into a probed function, or one return from it. It is valid
// only during the callback that it was given to, and not for concurrent use.
type Hit struct {
	Probe  *Probe
	Func   string // the kernel function's symbol
	CPU    int    // the vCPU, 0-based
	Return bool   // false at entry
	Thread Thread
	// Time is the guest's wall-clock time in UTC; host time where the guest's
	// kernel does not tell.
	Time time.Time
	// Ran is how long the guest has run since Session.Run began, with the time
	// left out that it stood still for hits. Its difference between entry and
	// return is how long the call took.
	Ran time.Duration

	raw      *engine.Hit
	captures []int // positions in raw.Captured of Probe.Capture
	spaces   *spaces
	kern     *vitrine.AddressSpace
	// kernStale says that the guest has run since kern was last asked for.
	kernStale bool
	facts     *facts
}

// Sync reports whether the guest waits for the callback; only then may it
// change anything.
func (h *Hit) Sync() bool { return h.raw.Regs != nil }

// Arg returns integer argument i (0 to 5) as it was at entry; 0 for any other
// i, and at return, where the registers hold other things by then.
func (h *Hit) Arg(i int) uint64 {
	if h.raw.Return || i < 0 || i >= len(h.raw.Args) {
		return 0
	}
	return h.raw.Args[i]
}

// Result returns what the function returned; 0 at entry.
func (h *Hit) Result() uint64 { return h.raw.Result }

// Registers returns a copy of the vCPU's registers: at entry, before anything
// of the function has run but a landing pad; at return, just before its return
// instruction, on arm64 just behind it. Stream engines do not record them.
func (h *Hit) Registers() (arch.Registers, error) {
	if !h.Sync() {
		return arch.Registers{}, unsupported("read registers")
	}
	return *h.raw.Regs, nil
}

// Kernel returns the guest kernel's address space. Under sync delivery it knows
// nothing of what was mapped before this hit: the guest waits, and what a
// callback writes must not go where another thread's stack was once.
func (h *Hit) Kernel() *vitrine.AddressSpace {
	if h.kernStale && h.Sync() {
		h.kern.Invalidate()
	}
	h.kernStale = false
	return h.kern
}

// Process returns the address space in use at the hit: the process's memory and
// the kernel's. It is valid until the callback returns. With page-table
// isolation it is the kernel's half of the pair, which maps both. On arm64, where
// each half has page tables of its own, it is the process's memory alone.
func (h *Hit) Process() *vitrine.AddressSpace { return h.spaces.at(h.raw.Root) }

// Captured returns what a stream engine copied for Probe.Capture[i], at entry
// or at return, nil where it could not or it was not its time, and whether this engine captures at all: if not, read
// the memory itself.
func (h *Hit) Captured(i int) ([]byte, bool) {
	if h.raw.Captured == nil || i < 0 || i >= len(h.captures) {
		return nil, false
	}
	if n := h.captures[i]; n < len(h.raw.Captured) {
		return h.raw.Captured[n], true
	}
	return nil, true
}

// UserArg returns argument i (0 to 5) of the system call whose function was
// entered, for a probe with User set: from the record, or from the saved user
// registers in the guest's memory. It works at entry.
func (h *Hit) UserArg(i int) (uint64, error) {
	switch {
	case i < 0 || i > 5 || h.raw.Return || h.Probe.User == NoUserRegs:
		return 0, fmt.Errorf("read user argument %d: not at entry to a system call, or no such argument", i)
	case h.raw.User != nil:
		return h.raw.User[i], nil
	}
	// struct pt_regs of arch/x86/include/asm/ptrace.h, an ABI: byte offsets of
	// the registers that hold arguments.
	offset := [6]arch.GVA{112, 104, 96, 56, 72, 64}[i]
	switch h.Probe.User {
	case UserRegsI386:
		v, err := h.kern.ReadUint32(arch.GVA(h.raw.Args[0]) + arch.GVA(4*i))
		if err != nil {
			return 0, fmt.Errorf("read user argument %d: %w", i, err)
		}
		return uint64(v), nil
	case UserRegs32:
		offset = [6]arch.GVA{40, 88, 96, 104, 112, 32}[i]
	case UserRegsARM64: // user_pt_regs of arch/arm64/include/uapi/asm/ptrace.h starts with x0 to x30
		offset = arch.GVA(8 * i)
	}
	v, err := h.kern.ReadUint64(arch.GVA(h.raw.Args[0]) + offset)
	if err != nil {
		return 0, fmt.Errorf("read user argument %d: %w", i, err)
	}
	if h.Probe.User == UserRegs32 {
		v &= 0xffffffff
	}
	return v, nil
}

// SkipWith makes the guest not run the function: its caller gets v, and there
// is no return hit for this call. It works at entry under sync delivery. With
// several probes on the function all Enter callbacks still run, and the first
// one to skip decides the value.
func (h *Hit) SkipWith(v uint64) error {
	switch {
	case !h.Sync():
		return unsupported("skip function")
	case h.raw.Return:
		return errors.New("skip function: it has already run")
	case h.facts.nt != nil && !h.facts.nt.x64:
		return fmt.Errorf("skip function: it is not known how many arguments it takes off the stack: %w", errors.ErrUnsupported)
	case !h.raw.Skip:
		h.raw.Skip, h.raw.SkipValue = true, v
	}
	return nil
}

// DropReturn makes this probe's Return not be called for this call. It works
// at entry.
func (h *Hit) DropReturn() { h.raw.Drop = true }

// SetArg replaces integer argument i (0 to 5) of the function. It works at
// entry under sync delivery.
func (h *Hit) SetArg(i int, v uint64) error {
	switch {
	case !h.Sync():
		return unsupported("change argument")
	case h.raw.Return || i < 0 || i >= len(h.raw.Args):
		return fmt.Errorf("change argument %d: not at entry, or no such argument", i)
	}
	var err error
	switch {
	case h.facts.nt != nil:
		err = h.facts.nt.setArg(h.raw.Regs, i, v)
	case h.facts.i386 != nil:
		err = h.facts.i386.setArg(h.raw.Regs, i, v)
	default:
		h.raw.Regs.SetArg(i, v)
	}
	if err != nil {
		return fmt.Errorf("change argument %d: %w", i, err)
	}
	h.raw.Args[i] = v
	return nil
}

// SetResult replaces what the function returns. It works at return under sync
// delivery.
func (h *Hit) SetResult(v uint64) error {
	switch {
	case !h.Sync():
		return unsupported("change result")
	case !h.raw.Return:
		return errors.New("change result: the function has not run yet; see SkipWith")
	}
	h.raw.Result = v
	h.raw.Regs.SetResult(v)
	return nil
}

func unsupported(what string) error {
	return fmt.Errorf("%s: the guest does not wait under stream delivery: %w", what, errors.ErrUnsupported)
}
