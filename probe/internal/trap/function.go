package trap

import (
	"strings"

	"golang.org/x/arch/x86/x86asm"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/probe/internal/x86dec"
)

// Bounds of following a function: a body beyond them has its calls watched at
// the return address. The largest system call function of Debian's 6.12 has
// fewer than 100 ways out.
const (
	maxDepth  = 4         // tail calls of tail calls
	maxRanges = 64        // functions and parts of functions
	maxBody   = 128 << 10 // bytes of one of them
	maxExits  = 256
)

// exitKind says how an exit leaves.
type exitKind uint8

const (
	exitRet   exitKind = iota // returns to the caller
	exitJump                  // jumps where only the processor knows; perhaps away
	exitWatch                 // not in the function: where a call returns to
)

// way is one way out of a function.
type way struct {
	addr arch.GVA
	kind exitKind
	inst x86dec.Inst
}

// ways is how a function can be left.
type ways struct {
	out    []way
	ranges []engine.Range // all code that it may run by jumps, the function itself first
	static int            // how many of ranges were there before indirect jumps added theirs
	opaque bool           // it could not all be followed
}

// within reports whether a is in code that the function may be running by
// jumps alone.
func (w *ways) within(a arch.GVA) bool {
	for _, r := range w.ranges {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// followed reports whether a is in code that direct jumps lead to.
func (w *ways) followed(a arch.GVA) bool {
	first := ways{ranges: w.ranges[:w.static]}
	return first.within(a)
}

// leavesAt reports whether a is one of the ways out.
func (w *ways) leavesAt(a arch.GVA) bool {
	for i := range w.out {
		if w.out[i].addr == a {
			return true
		}
	}
	return false
}

// tracer follows a function's jumps.
type tracer struct {
	cfg   *Config
	w     ways
	depth []int // of each range
}

// follow disassembles a function and what it jumps to, and finds the ways out.
func follow(cfg *Config, body []engine.Range) ways {
	t := &tracer{cfg: cfg}
	for _, r := range body {
		t.add(r, 0)
	}
	for i := 0; i < len(t.w.ranges) && !t.w.opaque; i++ {
		t.sweep(t.w.ranges[i], t.depth[i])
	}
	t.w.opaque = t.w.opaque || len(t.w.out) > maxExits
	t.w.static = len(t.w.ranges)
	return t.w
}

func (t *tracer) add(r engine.Range, depth int) {
	if depth > maxDepth || len(t.w.ranges) >= maxRanges || r.Size == 0 || r.Size > maxBody {
		t.w.opaque = true
		return
	}
	t.w.ranges = append(t.w.ranges, r)
	t.depth = append(t.depth, depth)
}

// sweep decodes a range from its start to its end: compilers put no data
// between the instructions of kernel functions.
func (t *tracer) sweep(r engine.Range, depth int) {
	code, err := readCode(t.cfg.Kernel, r.Start, int(r.Size))
	if err != nil || uint64(len(code)) < r.Size {
		t.w.opaque = true
		return
	}
	for off := 0; off < len(code) && !t.w.opaque; {
		pc := r.Start + arch.GVA(off)
		in, err := x86dec.Decode(code[off:], uint64(pc))
		if err != nil {
			t.w.opaque = true
			return
		}
		t.take(pc, &in, depth)
		off += in.Len
	}
}

// take notes an instruction that leads away.
func (t *tracer) take(pc arch.GVA, in *x86dec.Inst, depth int) {
	switch in.Kind {
	case x86dec.Ret:
		t.out(pc, exitRet, *in)
	case x86dec.JmpInd:
		t.out(pc, exitJump, *in)
	case x86dec.JmpRel, x86dec.CondJmp:
		if to := arch.GVA(in.Target); !t.w.within(to) {
			t.leave(pc, in, to, depth)
		}
	}
}

func (t *tracer) out(pc arch.GVA, k exitKind, in x86dec.Inst) {
	t.w.out = append(t.w.out, way{addr: pc, kind: k, inst: in})
}

// leave follows a jump out of what is known: into a thunk that stands for a
// return or an indirect jump, or into another function or a part of this one.
func (t *tracer) leave(pc arch.GVA, in *x86dec.Inst, to arch.GVA, depth int) {
	name, r, ok := t.cfg.SymbolAt(to)
	switch reg := thunkRegister(name); {
	case !ok:
		t.w.opaque = true
	case strings.HasSuffix(name, "return_thunk") && in.Kind == x86dec.JmpRel:
		t.out(pc, exitRet, x86dec.Inst{Kind: x86dec.Ret, Len: in.Len, Src: -1, Dst: -1})
	case reg >= 0 && in.Kind == x86dec.JmpRel:
		t.out(pc, exitJump, x86dec.Inst{Kind: x86dec.JmpInd, Len: in.Len, Src: reg, Dst: -1})
	case reg >= 0 || strings.HasSuffix(name, "return_thunk"):
		t.w.opaque = true // a conditional jump to a thunk: no compiler makes it
	case strings.Contains(name, ".cold"):
		t.add(r, depth)
	default:
		t.add(r, depth+1)
	}
}

// thunkRegister returns the register that an indirect-branch thunk jumps
// through, -1 when name is not one: __x86_indirect_thunk_rax (Linux 4.15),
// __x86_indirect_jump_thunk_rax (6.2), __x86_indirect_its_thunk_rax (6.15).
func thunkRegister(name string) int {
	_, reg, ok := strings.Cut(name, "_thunk_")
	if !ok || !strings.HasPrefix(name, "__x86_indirect_") {
		return -1
	}
	for r := x86asm.RAX; r <= x86asm.R15; r++ {
		if strings.EqualFold(r.String(), reg) {
			return int(r - x86asm.RAX)
		}
	}
	return -1
}
