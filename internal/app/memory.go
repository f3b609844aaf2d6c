package app

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// MemoryOptions say which memory of a guest is meant.
type MemoryOptions struct {
	Addr     string // a number, or a kernel symbol with an offset: "init_task+0x10"
	Physical bool   // Addr is guest-physical
	Process  bool   // Addr is an address of process PID
	PID      int
}

// Check reports whether Addr can be understood, as far as that can be said
// without a guest.
func (o *MemoryOptions) Check() error {
	a, err := parseAddress(o.Addr)
	if err == nil && a.symbol != "" && (o.Physical || o.Process) {
		return fmt.Errorf("address %q: symbols are names of kernel memory; give a number", o.Addr)
	}
	return err
}

// Memory is some memory of a guest, and an address in it.
type Memory struct {
	Start uint64 // the address that was asked for
	read  func(p []byte, a uint64) (int, error)
}

// ReadAt fills p from address a. It returns how many bytes it filled; fewer
// than len(p) comes with an error.
func (m *Memory) ReadAt(p []byte, a uint64) (int, error) { return m.read(p, a) }

// Memory returns the memory that o describes. But for physical memory the
// guest has to be identified.
func (s *Session) Memory(ctx context.Context, o MemoryOptions) (*Memory, error) {
	a, err := parseAddress(o.Addr)
	if err != nil {
		return nil, err
	}
	switch {
	case o.Physical:
		return &Memory{Start: a.offset, read: func(p []byte, at uint64) (int, error) {
			return s.guest.ReadPhysical(p, arch.GPA(at))
		}}, nil
	case o.Process:
		return s.processMemory(ctx, o.PID, a.offset)
	}
	start := a.offset
	if a.symbol != "" {
		sym, err := s.kernel.Symbol(a.symbol)
		if err != nil {
			return nil, err
		}
		start += uint64(sym.Addr)
	}
	return virtualMemory(s.kernel.AddressSpace(), start), nil
}

func (s *Session) processMemory(ctx context.Context, pid int, start uint64) (*Memory, error) {
	h, err := s.process(ctx, pid)
	if err != nil {
		return nil, err
	}
	as, err := s.sys.AddressSpace(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("read process %d: %w", pid, err)
	}
	return virtualMemory(as, start), nil
}

func virtualMemory(as *vitrine.AddressSpace, start uint64) *Memory {
	return &Memory{Start: start, read: func(p []byte, at uint64) (int, error) {
		return as.Read(p, arch.GVA(at))
	}}
}

// address is a parsed address: symbol+offset, or offset alone.
type address struct {
	symbol string
	offset uint64 // modulo 2^64, so that it may count backwards
}

// parseAddress parses a number, or NAME, NAME+N, NAME-N.
func parseAddress(s string) (address, error) {
	if s != "" && s[0] >= '0' && s[0] <= '9' {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			return address{}, fmt.Errorf("address %q: %w", s, errNumber)
		}
		return address{offset: n}, nil
	}
	name, offset, sign := s, uint64(0), uint64(1)
	if i := strings.LastIndexAny(s, "+-"); i >= 0 {
		n, err := strconv.ParseUint(s[i+1:], 0, 64)
		if err != nil {
			return address{}, fmt.Errorf("address %q: offset: %w", s, errNumber)
		}
		if name, offset = s[:i], n; s[i] == '-' {
			sign = ^uint64(0)
		}
	}
	if name == "" {
		return address{}, fmt.Errorf("address %q: want a number or a kernel symbol", s)
	}
	return address{symbol: name, offset: offset * sign}, nil
}

var errNumber = fmt.Errorf("not a number of 64 bits: want 0x..., or decimal")
