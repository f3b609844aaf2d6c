package qemu

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// parseRegisters decodes the answer of "info registers" of an x86 processor,
// in its 64-bit form (RAX=) or its 32-bit and 16-bit form (EAX=), which QEMU
// chooses by what the processor runs. KernelGSBase, CR8 of the 32-bit form and
// the segment bases that the form leaves out are zero: the monitor does not
// print them.
func parseRegisters(text string) (*arch.Registers, error) {
	var r arch.Registers
	seen := 0
	for line := range strings.Lines(text) {
		seen += parseLine(&r, strings.TrimRight(line, "\r\n"))
	}
	// The general registers, RIP, RFLAGS and CR0 to CR4 are there in every
	// form: without them the text is something else.
	if seen < 10+4 {
		return nil, fmt.Errorf("info registers: %w: %.200q", errNoRegisters, text)
	}
	return &r, nil
}

var errNoRegisters = errors.New("not the registers of an x86 processor")

// parseLine stores what a line tells and returns how many registers it knew.
func parseLine(r *arch.Registers, line string) int {
	name, value, ok := strings.Cut(line, "=")
	if !ok {
		return 0
	}
	switch name = strings.TrimSpace(name); name {
	case "ES", "CS", "SS", "DS", "FS", "GS":
		return segment(r, name, strings.Fields(value))
	case "GDT", "IDT":
		return table(r, name, strings.Fields(value))
	case "LDT", "TR":
		return 0
	}
	n := 0
	// "R8 =" has a blank before the sign; everything else is NAME=VALUE.
	for f := range strings.FieldsSeq(strings.ReplaceAll(line, " =", "=")) {
		name, value, ok := strings.Cut(f, "=")
		if p := field(r, name); ok && p != nil && hexNumber(value, p) {
			n++
		}
	}
	return n
}

// segment parses "SELECTOR BASE LIMIT FLAGS ...".
func segment(r *arch.Registers, name string, f []string) int {
	var sel, base uint64
	if len(f) < 2 || !hexNumber(f[0], &sel) || !hexNumber(f[1], &base) {
		return 0
	}
	switch name {
	case "ES":
		r.ES = uint16(sel)
	case "CS":
		r.CS = uint16(sel)
	case "SS":
		r.SS = uint16(sel)
	case "DS":
		r.DS = uint16(sel)
	case "FS":
		r.FS, r.FSBase = uint16(sel), base
	case "GS":
		r.GS, r.GSBase = uint16(sel), base
	}
	return 1
}

// table parses "BASE LIMIT".
func table(r *arch.Registers, name string, f []string) int {
	var base uint64
	if len(f) < 2 || !hexNumber(f[0], &base) {
		return 0
	}
	if name == "GDT" {
		r.GDTBase = base
	} else {
		r.IDTBase = base
	}
	return 1
}

// field returns where the register of that name is kept, nil for those that
// arch.Registers does not have.
func field(r *arch.Registers, name string) *uint64 {
	switch name {
	case "RAX", "EAX":
		return &r.RAX
	case "RBX", "EBX":
		return &r.RBX
	case "RCX", "ECX":
		return &r.RCX
	case "RDX", "EDX":
		return &r.RDX
	case "RSI", "ESI":
		return &r.RSI
	case "RDI", "EDI":
		return &r.RDI
	case "RBP", "EBP":
		return &r.RBP
	case "RSP", "ESP":
		return &r.RSP
	case "RIP", "EIP":
		return &r.RIP
	case "RFL", "EFL":
		return &r.RFLAGS
	}
	return highField(r, name)
}

func highField(r *arch.Registers, name string) *uint64 {
	switch name {
	case "R8":
		return &r.R8
	case "R9":
		return &r.R9
	case "R10":
		return &r.R10
	case "R11":
		return &r.R11
	case "R12":
		return &r.R12
	case "R13":
		return &r.R13
	case "R14":
		return &r.R14
	case "R15":
		return &r.R15
	case "CR0":
		return &r.CR0
	case "CR2":
		return &r.CR2
	case "CR3":
		return &r.CR3
	case "CR4":
		return &r.CR4
	case "CR8":
		return &r.CR8
	case "EFER":
		return &r.EFER
	}
	return nil
}

func hexNumber(s string, v *uint64) bool {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return false
	}
	*v = n
	return true
}
