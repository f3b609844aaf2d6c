// Package kallsymstest writes kernel symbol tables in the layouts of several
// kernels, for tests. It shares nothing with the package that reads them.
package kallsymstest

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Symbol is a symbol to write; Addr must not fall from one to the next.
type Symbol struct {
	Addr uint64
	Type byte
	Name string
}

// Layout is the shape of a table, named after a kernel that has it.
type Layout string

// The layouts.
const (
	Linux510 Layout = "5.10" // offsets first, absolute per-CPU symbols, parts aligned to 8
	Linux62  Layout = "6.2"  // the same with the table of sequence numbers before the tokens
	Linux612 Layout = "6.12" // offsets behind the token index
	Linux615 Layout = "6.15" // the same without absolute symbols
	Linux72  Layout = "7.2"  // offsets count from their own place, parts aligned to 4

	I386Linux61 Layout = "6.1 i386" // offsets first, pointers and parts of 4 bytes
	I386Linux64 Layout = "6.4 i386" // the same with the offsets behind the token index
)

// I386 are the layouts of 32-bit kernels.
var I386 = []Layout{I386Linux61, I386Linux64}

// Layouts are those of 64-bit kernels.
var Layouts = []Layout{Linux510, Linux62, Linux612, Linux615, Linux72}

// common are the tokens of more than one character, from code 0x80 on.
var common = []string{"__x64_sys_", "init_", "_table", "per_cpu", "vmcoreinfo"}

// writer appends parts to a table.
type writer struct {
	b     []byte
	align int
}

func (w *writer) pad() {
	for len(w.b)%w.align != 0 {
		w.b = append(w.b, 0)
	}
}

func (w *writer) u16(v uint16) { w.b = binary.LittleEndian.AppendUint16(w.b, v) }
func (w *writer) u32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }

// Build returns a table as it stands in memory at address va, with some other
// bytes around it. base is what relative_base is to be.
func Build(l Layout, va, base uint64, symbols []Symbol) []byte {
	w := &writer{align: 8}
	if l == Linux72 || l.is32() {
		w.align = 4
	}
	w.b = append(w.b, strings.Repeat("constant\x00", 7)...)
	w.pad()
	early := l == Linux510 || l == Linux62 || l == I386Linux61
	if early {
		w.offsets(l, va, base, symbols)
		w.pad()
		w.pointer(l, base)
	}
	w.pad()
	w.u32(uint32(len(symbols)))
	w.pad()
	marks := w.names(symbols)
	w.pad()
	for _, m := range marks {
		w.u32(m)
	}
	w.pad()
	if l == Linux62 {
		w.b = append(w.b, make([]byte, 3*len(symbols))...)
		w.pad()
	}
	w.tokens()
	if !early {
		w.pad()
		w.offsets(l, va, base, symbols)
		w.pad()
		if l != Linux72 {
			w.pointer(l, base)
		}
		w.b = append(w.b, make([]byte, 3*len(symbols))...)
	}
	w.b = append(w.b, strings.Repeat("\x01other", 9)...)
	return w.b
}

func (l Layout) is32() bool { return l == I386Linux61 || l == I386Linux64 }

func (w *writer) pointer(l Layout, v uint64) {
	if l.is32() {
		w.u32(uint32(v))
		return
	}
	w.u64(v)
}

func (w *writer) offsets(l Layout, va, base uint64, symbols []Symbol) {
	for _, s := range symbols {
		switch {
		case l == Linux72:
			w.u32(uint32(s.Addr - va - uint64(len(w.b))))
		case l == Linux615 || l.is32():
			w.u32(uint32(s.Addr - base))
		case s.Addr < 1<<31:
			w.u32(uint32(s.Addr))
		default:
			w.u32(uint32(base - 1 - s.Addr))
		}
	}
}

// names writes the names and returns the markers.
func (w *writer) names(symbols []Symbol) []uint32 {
	var marks []uint32
	start := len(w.b)
	for i, s := range symbols {
		if i%256 == 0 {
			marks = append(marks, uint32(len(w.b)-start))
		}
		code := encode(string(s.Type) + s.Name)
		if len(code) < 0x80 {
			w.b = append(w.b, byte(len(code)))
		} else {
			w.b = append(w.b, byte(len(code))|0x80, byte(len(code)>>7))
		}
		w.b = append(w.b, code...)
	}
	return marks
}

func encode(s string) []byte {
	var out []byte
next:
	for len(s) > 0 {
		for i, c := range common {
			if strings.HasPrefix(s, c) {
				out, s = append(out, byte(0x80+i)), s[len(c):]
				continue next
			}
		}
		if s[0] >= 0x80 {
			panic(fmt.Sprintf("symbol with byte %#x", s[0]))
		}
		out, s = append(out, s[0]), s[1:]
	}
	return out
}

func (w *writer) tokens() {
	var index []uint16
	start := len(w.b)
	for i := range 256 {
		index = append(index, uint16(len(w.b)-start))
		switch {
		case i >= 0x80 && i-0x80 < len(common):
			w.b = append(w.b, common[i-0x80]...)
		case i > ' ' && i < 0x7f:
			w.b = append(w.b, byte(i))
		default: // real tables have tokens of several characters here
			w.b = append(w.b, "tok"...)
		}
		w.b = append(w.b, 0)
	}
	w.pad()
	for _, v := range index {
		w.u16(v)
	}
}

// Many returns n symbols from base on, 16 bytes apart, after a few absolute
// ones where the layout has them; some names are long, some equal.
func Many(l Layout, base uint64, n int) []Symbol {
	var out []Symbol
	if l == Linux510 || l == Linux62 || l == Linux612 {
		out = append(out, Symbol{0, 'A', "__per_cpu_start"}, Symbol{0x1fb80, 'A', "current_task"}, Symbol{0x34000, 'A', "__per_cpu_end"})
	}
	out = append(out, Symbol{base, 'T', "_text"}, Symbol{base, 'T', "_stext"})
	for i := 1; len(out) < n; i++ {
		s := Symbol{base + 16*uint64(i), "tTdDbBrR"[i%8], fmt.Sprintf("init_function_%d_table", i)}
		if i%100 == 0 {
			s.Name = fmt.Sprintf("long_%d_%s", i, strings.Repeat("x", 300))
		}
		if i%64 == 0 {
			s.Name = "same_name"
		}
		out = append(out, s)
	}
	return out
}
