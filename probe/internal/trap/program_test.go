package trap

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sort"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// program assembles simulated kernel text.
type program struct {
	m    *machine
	at   uint64
	syms []symbol // in address order
}

type symbol struct {
	name string
	addr uint64
}

func newProgram(m *machine) *program {
	p := &program{m: m, at: uint64(textBase)}
	p.begin("__x86_return_thunk")
	p.emit(0xc3)
	p.begin("__x86_indirect_thunk_r11")
	p.emit(0x41, 0xff, 0xe3)
	return p
}

// begin starts a function, padded as compilers do.
func (p *program) begin(name string) uint64 {
	for p.at%16 != 0 {
		p.emit(0xcc)
	}
	p.syms = append(p.syms, symbol{name, p.at})
	return p.at
}

func (p *program) emit(b ...byte) {
	p.m.space.Put(arch.GVA(p.at), b)
	p.at += uint64(len(b))
}

func (p *program) imm32(v uint64) { p.emit(binary.LittleEndian.AppendUint32(nil, uint32(v))...) }

// rel emits an opcode with a 32-bit relative target.
func (p *program) rel(to uint64, op ...byte) {
	p.emit(op...)
	p.imm32(to - p.at - 4)
}

func (p *program) addr(name string) uint64 {
	for _, s := range p.syms {
		if s.name == name {
			return s.addr
		}
	}
	panic("no symbol " + name)
}

// end closes the last function.
func (p *program) end() { p.begin("_etext") }

func (p *program) symbolAt(a arch.GVA) (string, engine.Range, bool) {
	i := sort.Search(len(p.syms), func(i int) bool { return p.syms[i].addr > uint64(a) }) - 1
	if i < 0 || i+1 >= len(p.syms) {
		return "", engine.Range{}, false
	}
	return p.syms[i].name, engine.Range{Start: arch.GVA(p.syms[i].addr), Size: p.syms[i+1].addr - p.syms[i].addr}, true
}

func (p *program) point(name string) *engine.Point {
	_, r, ok := p.symbolAt(arch.GVA(p.addr(name)))
	if !ok {
		panic("no function " + name)
	}
	return &engine.Point{Name: name, Body: []engine.Range{r}}
}

func (p *program) config() Config {
	return Config{Guest: p.m.g, Kernel: p.m.as, SymbolAt: p.symbolAt, Current: currentAt, StackField: stackAt, StackSize: stackLen}
}

func pick(r *rand.Rand, choices ...[]byte) []byte { return choices[r.IntN(len(choices))] }

var (
	endbr   = []byte{0xf3, 0x0f, 0x1e, 0xfa}
	sealed  = []byte{0x0f, 0x1f, 0x40, 0xd6}
	nop5    = []byte{0x0f, 0x1f, 0x44, 0x00, 0x00}
	oldNop5 = []byte{0x66, 0x66, 0x66, 0x66, 0x90}
)

// randomProgram makes n functions f0, f1, ... of all shapes that the engine has
// to cope with. Each calls and tail-calls only ones before it; f0 recurses.
func randomProgram(m *machine, r *rand.Rand, n int) *program {
	p := newProgram(m)
	f0 := p.begin("f0")
	p.emit(nop5...)
	p.emit(0x48, 0x83, 0xef, 0x01) // sub rdi, 1
	p.emit(0x74, 0x05)             // je over the call
	p.rel(f0, 0xe8)
	p.result(r)
	p.emit(0xc3)
	funcs := []uint64{f0}
	for i := 1; i < n; i++ {
		funcs = append(funcs, p.randomFunction(r, fmt.Sprintf("f%d", i), funcs))
	}
	p.end()
	return p
}

// result emits mov rax, imm32.
func (p *program) result(r *rand.Rand) {
	p.emit(0x48, 0xc7, 0xc0)
	p.imm32(uint64(r.Uint32N(1 << 30)))
}

func (p *program) randomFunction(r *rand.Rand, name string, callees []uint64) uint64 {
	at := p.begin(name)
	p.emit(pick(r, nil, endbr, sealed)...)
	p.emit(pick(r, nil, nop5, nop5, oldNop5)...)
	framed := r.IntN(2) == 0
	if framed {
		p.emit(pick(r, []byte{0x53}, []byte{0x55})...)
		push := p.last()
		p.emit(0x48, 0x83, 0xec, 0x10) // sub rsp, 16
		p.body(r, callees)
		p.emit(0x48, 0x83, 0xc4, 0x10) // add rsp, 16
		p.emit(push + 8)               // the matching pop
	} else {
		p.body(r, callees)
	}
	p.leave(r, name, callees)
	return at
}

func (p *program) last() byte {
	var b [1]byte
	if _, err := p.m.as.Read(b[:], arch.GVA(p.at-1)); err != nil {
		panic(err)
	}
	return b[0]
}

// body emits calls, jumps within the function, and an indirect one.
func (p *program) body(r *rand.Rand, callees []uint64) {
	for range r.IntN(3) {
		p.emit(0x48, 0xc7, 0xc7) // mov rdi, 1 to 4: the depth for f0
		p.imm32(uint64(1 + r.IntN(4)))
		p.rel(callees[r.IntN(len(callees))], 0xe8)
	}
	switch r.IntN(4) {
	case 0:
		p.emit(0xeb, 0x01, 0x90) // jmp over a nop
	case 1:
		p.emit(0x49, 0xc7, 0xc3) // mov r11, behind the jump
		p.imm32(p.at + 4 + 3)
		p.emit(0x41, 0xff, 0xe3) // jmp r11
	}
	p.emit(0x48, 0xc7, 0xc7, 1, 0, 0, 0) // mov rdi, 1: for a tail call of f0
	p.result(r)
}

// leave emits one of the ways out.
func (p *program) leave(r *rand.Rand, name string, callees []uint64) {
	to := callees[r.IntN(len(callees))]
	switch r.IntN(8) {
	case 0, 1:
		p.emit(0xc3)
	case 2:
		p.rel(p.addr("__x86_return_thunk"), 0xe9)
	case 3:
		p.rel(to, 0xe9)
	case 4:
		p.emit(0x49, 0xc7, 0xc3)
		p.imm32(to)
		p.emit(0x41, 0xff, 0xe3)
	case 5:
		p.emit(0x49, 0xc7, 0xc3)
		p.imm32(to)
		p.rel(p.addr("__x86_indirect_thunk_r11"), 0xe9)
	case 6:
		p.rel(p.at+5+11, 0xe9) // into the padding behind: moved below
		p.cold(name)
	case 7:
		p.emit(0xff, 0x25, 0, 0, 0, 0) // jmp [rip]: the pointer follows as data,
		p.emit(binary.LittleEndian.AppendUint64(nil, to)...)
	}
}

// cold ends a function in a part of its own, as compilers do with unlikely code.
func (p *program) cold(name string) {
	jump := p.at - 5
	at := p.begin(name + ".cold")
	p.emit(0x90, 0xc3)
	end := p.at
	p.at = jump
	p.rel(at, 0xe9)
	p.at = end
}
