package implant

import "github.com/vitrine-vmi/vitrine/arch"

// gate is a stub's own look at the filter by processes, before anything is saved
// or called: a thread of another process goes on to the function by three short
// steps. What passes is looked at again by vt_enter, which knows all of the
// filter.
type gate struct {
	current uint32   // place of the current task in a processor's data
	tgid    uint32   // offset in task_struct
	bitmap  arch.GVA // of the processes that pass
}

const (
	// gateSize is the length of a gate's code, and of the nops where there is none:
	// so what lies behind it is at the same place in all stubs.
	gateSize = 38
	// gatePass is where a gate leads those that do not pass: the last jump of the
	// stub, from its entry.
	gatePass = gateSize + 38
)

// newGates returns the gates of a filter by processes for the functions, nil for
// another filter. Functions that tell of new processes have none: what the bitmap
// says of a new process is set there, also when its maker is not in it.
func newGates(fns []function, f *filter, values map[string]uint64, bitmap arch.GVA) []*gate {
	if len(f.tgids) == 0 {
		return nil
	}
	g := &gate{uint32(values["vt_pcpu_current"]), uint32(values["vt_task_tgid"]), bitmap}
	gates := make([]*gate, len(fns))
	for i := range fns {
		if fns[i].flags&funcFork == 0 {
			gates[i] = g
		}
	}
	return gates
}

// longNop is the recommended nop of nine bytes (Intel SDM, volume 2, NOP).
var longNop = []byte{0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0}

// gate appends g. At a function's entry rax and r10 are dead.
func (a *assembler) gate(g *gate) {
	if g == nil {
		for range gateSize / len(longNop) {
			a.emit(longNop...)
		}
		a.emit(0x66, 0x90) // nop
		return
	}
	start := len(a.buf)
	pass := func() byte { return byte(gatePass - (len(a.buf) + 2 - start)) }
	a.emit(0x49, 0xba).imm64(uint64(g.bitmap))            // movabs $bitmap, %r10
	a.emit(0x65, 0x48, 0x8b, 0x04, 0x25).imm32(g.current) // mov %gs:current, %rax
	a.emit(0x8b, 0x80).imm32(g.tgid)                      // mov tgid(%rax), %eax
	a.emit(0x3d).imm32(bitmapBits)                        // cmp $bits, %eax
	a.emit(0x73, pass())                                  // jae to the last jump
	a.emit(0x49, 0x0f, 0xa3, 0x02)                        // bt %rax, (%r10)
	a.emit(0x73, pass())                                  // jnc to it
}
