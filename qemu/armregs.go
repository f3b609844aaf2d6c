package qemu

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

// isARM reports whether a target description is that of an AArch64 processor.
func isARM(all []rsp.Register) bool {
	has := func(name string) bool {
		return slices.ContainsFunc(all, func(r rsp.Register) bool { return r.Name == name })
	}
	return has("x0") && has("x30") && has("cpsr")
}

// systemRegisters are those that introspection needs, by the gdbstub's names:
// SCTLR had no _EL1 until QEMU 8.
var systemRegisters = map[string]func(*arch.Registers) *uint64{
	"SP_EL0":    func(r *arch.Registers) *uint64 { return &r.ARM64.SPEL0 },
	"TTBR0_EL1": func(r *arch.Registers) *uint64 { return &r.ARM64.TTBR0 },
	"TTBR1_EL1": func(r *arch.Registers) *uint64 { return &r.ARM64.TTBR1 },
	"TCR_EL1":   func(r *arch.Registers) *uint64 { return &r.ARM64.TCR },
	"SCTLR":     func(r *arch.Registers) *uint64 { return &r.ARM64.SCTLR },
	"SCTLR_EL1": func(r *arch.Registers) *uint64 { return &r.ARM64.SCTLR },
}

// armAccessor returns how arch.Registers holds a general register of the
// gdbstub's name.
func armAccessor(name string) (stubReg, bool) {
	switch name {
	case "sp":
		return wide(true, func(r *arch.Registers) *uint64 { return &r.ARM64.SP }), true
	case "pc":
		return wide(true, func(r *arch.Registers) *uint64 { return &r.ARM64.PC }), true
	case "cpsr":
		return wide(true, func(r *arch.Registers) *uint64 { return &r.ARM64.PSTATE }), true
	}
	n, err := strconv.Atoi(strings.TrimPrefix(name, "x"))
	if err != nil || name[0] != 'x' || n < 0 || n > 30 {
		return stubReg{}, false
	}
	return wide(true, func(r *arch.Registers) *uint64 { return &r.ARM64.X[n] }), true
}

// newARMLayout picks the registers out of a target description of AArch64.
func newARMLayout(all []rsp.Register) (*stubLayout, error) {
	l := &stubLayout{pc: -1, unit: 4}
	for _, r := range all {
		if r.Size != 4 && r.Size != 8 {
			continue
		}
		if p := systemRegisters[r.Name]; p != nil && r.Size == 8 {
			s := wide(false, p)
			s.Register = r
			l.more = append(l.more, s)
			continue
		}
		s, ok := armAccessor(r.Name)
		if !ok {
			continue
		}
		s.Register = r
		if r.Name == "pc" {
			l.pc = len(l.regs)
		}
		l.size = max(l.size, r.Offset+r.Size)
		l.regs = append(l.regs, s)
	}
	switch {
	case l.pc < 0:
		return nil, errors.New("the gdbstub's AArch64 processor has no pc")
	case len(l.more) < 5:
		return nil, errors.New("the gdbstub's AArch64 processor does not show its system registers (it needs QEMU 4.0)")
	}
	return l, nil
}

// decode decodes the answer of a p request into r.
func (s *stubReg) decode(payload []byte, r *arch.Registers) error {
	var raw [8]byte
	if len(payload) != 16 {
		return fmt.Errorf("read register %s: gdbstub answered %.40q", s.Name, payload)
	}
	if _, err := hex.Decode(raw[:], payload); err != nil {
		return fmt.Errorf("read register %s: %w", s.Name, err)
	}
	s.set(r, binary.LittleEndian.Uint64(raw[:]))
	return nil
}

// parseARMRegisters decodes the answer of "info registers" of an AArch64
// processor. The monitor prints no system register.
func parseARMRegisters(text string) (*arch.Registers, error) {
	r := &arch.Registers{ARM64: arch.ARM64Registers{On: true}}
	seen := 0
	for f := range strings.FieldsSeq(text) {
		name, value, ok := strings.Cut(f, "=")
		if !ok {
			continue
		}
		if p := armField(&r.ARM64, name); p != nil && hexNumber(value, p) {
			seen++
		}
	}
	if seen < len(r.ARM64.X)+3 {
		return nil, fmt.Errorf("info registers: not the registers of an AArch64 processor: %.200q", text)
	}
	return r, nil
}

// armField returns where the register of the monitor's name is kept, nil for
// those that arch.ARM64Registers does not have.
func armField(r *arch.ARM64Registers, name string) *uint64 {
	switch name {
	case "PC":
		return &r.PC
	case "SP":
		return &r.SP
	case "PSTATE":
		return &r.PSTATE
	}
	digits, ok := strings.CutPrefix(name, "X")
	n, err := strconv.ParseUint(digits, 10, 8)
	if !ok || err != nil || n >= uint64(len(r.X)) {
		return nil
	}
	return &r.X[n]
}
