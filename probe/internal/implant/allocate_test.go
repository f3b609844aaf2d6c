package implant

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// lender is control of a guest, and facts of its kernel, whose functions return
// at once what results has for them.
type lender struct {
	*forged
	vitrine.Control
	names   map[string]arch.GVA
	results map[string]uint64
	regs    arch.Registers
	calls   []string
}

const (
	lentCode = arch.GVA(0xffffffffc0400000) // where memory for code is given
	lentData = arch.GVA(0xffffc90000400000)
)

// newLender returns one that has the functions with their results, and the
// thread to call them on.
func newLender(t *testing.T, results map[string]uint64) (*lender, *thread) {
	t.Helper()
	l := &lender{forged: newForged(t), names: map[string]arch.GVA{}, results: results}
	for name := range results {
		l.names[name] = 0xffffffff81000000 + arch.GVA(64*len(l.names))
	}
	l.space.Map(lentCode, arch.PageSize, vitrinetest.Writable|vitrinetest.NoExec)
	m := *l.m
	m.ctl, m.f = l, l
	return l, &thread{m: &m, at: 0xffffffff82000000, regs: arch.Registers{RSP: uint64(threadStack + forgedSP), CS: kernelCS}}
}

func (l *lender) Symbol(name string) (arch.GVA, bool) {
	a, ok := l.names[name]
	return a, ok
}

func (l *lender) Enum(string, string) (int64, error) { return 1, nil }

func (l *lender) PerCPU(s string, cpu int) (arch.GVA, error) { return l.forged.PerCPU(s, cpu) }

func (l *lender) Insert(arch.BreakpointKind, ...arch.GVA) error { return nil }
func (l *lender) Remove(arch.BreakpointKind, ...arch.GVA) error { return nil }
func (l *lender) Resume() error                                 { return nil }

func (l *lender) Registers(int) (*arch.Registers, error) {
	r := l.regs
	return &r, nil
}

func (l *lender) SetRegisters(_ int, r *arch.Registers) error {
	l.regs = *r
	return nil
}

// Wait lets the function that was called return.
func (l *lender) Wait(context.Context) (vitrine.Stop, error) {
	for name, a := range l.names {
		if uint64(a) == l.regs.RIP {
			l.calls = append(l.calls, fmt.Sprintf("%s(%#x)", name, l.regs.RDI))
			l.regs.RIP, l.regs.RAX = l.space.Uint64(arch.GVA(l.regs.RSP)), l.results[name]
			l.regs.RSP += 8
			return vitrine.Stop{Reason: vitrine.StopBreakpoint}, nil
		}
	}
	return vitrine.Stop{}, errors.New("a call of what is no function")
}

// A guest that has no memory to give keeps what it has: what was got before is
// given back.
func TestAllocateFails(t *testing.T) {
	const size, data, enomem = 0x3000, 0x5000, 0xfffffff4
	code := uint64(lentCode)
	old := func(alloc, setX, vzalloc uint64) map[string]uint64 {
		return map[string]uint64{"module_alloc": alloc, "set_memory_x": setX, "vzalloc": vzalloc, "module_memfree": 0, "vfree": 0}
	}
	for name, tt := range map[string]struct {
		results map[string]uint64
		calls   []string
		full    bool // the guest has no memory left
	}{
		"code":                    {old(0, 0, 0), []string{"module_alloc(0x3000)"}, true},
		"executable":              {old(code, enomem, 0), []string{"module_alloc(0x3000)", "set_memory_x(0xffffffffc0400000)", "module_memfree(0xffffffffc0400000)"}, false},
		"code that is not mapped": {old(0xffffffffc0800000, 0, 0), []string{"module_alloc(0x3000)", "module_memfree(0xffffffffc0800000)"}, false},
		"ring": {old(code, 0, 0), []string{"module_alloc(0x3000)", "set_memory_x(0xffffffffc0400000)", "vzalloc(0x5000)",
			"module_memfree(0xffffffffc0400000)"}, true},
		"code since 6.10": {map[string]uint64{"execmem_alloc": 0, "execmem_free": 0, "set_memory_x": 0, "vzalloc_noprof": 0, "vfree": 0},
			[]string{"execmem_alloc(0x1)"}, true},
		"ring since 6.10": {map[string]uint64{"execmem_alloc": code, "execmem_free": 0, "set_memory_x": 0, "vzalloc_noprof": 0, "vfree": 0},
			[]string{"execmem_alloc(0x1)", "set_memory_x(0xffffffffc0400000)", "vzalloc_noprof(0x5000)", "execmem_free(0xffffffffc0400000)"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			l, th := newLender(t, tt.results)
			p := planted{l: layout{size: data}}
			p.size = size
			err := p.allocate(th)
			var left *leftError
			if err == nil || errors.Is(err, errNoMemory) != tt.full || errors.As(err, &left) {
				t.Errorf("allocate = %v", err)
			}
			if diff := cmp.Diff(tt.calls, l.calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if p.base != 0 || p.data != 0 || th.lost {
				t.Errorf("it has memory at %v and %v, and a thread %+v", p.base, p.data, th)
			}
		})
	}
}

// Where all goes well nothing is given back before it is asked for.
func TestAllocate(t *testing.T) {
	l, th := newLender(t, map[string]uint64{
		"module_alloc": uint64(lentCode), "set_memory_x": 0, "vzalloc": uint64(lentData), "module_memfree": 0, "vfree": 0,
	})
	p := planted{l: layout{size: 0x5000}}
	p.size = 0x3000
	if err := p.allocate(th); err != nil || p.base != lentCode || p.data != lentData || len(l.calls) != 3 {
		t.Fatalf("allocate = %v: %v, %v after %q", err, p.base, p.data, l.calls)
	}
	if err := p.free(th); err != nil || p.base != 0 || p.data != 0 || len(l.calls) != 5 {
		t.Errorf("free = %v: %v, %v after %q", err, p.base, p.data, l.calls)
	}
}
