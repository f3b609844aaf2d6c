// Package vitrinetest makes guests out of nothing, for tests: sparse physical
// memory, page tables, registers, a log of every call, and faults on demand.
//
//	b := vitrinetest.New()
//	s := b.NewSpace(arch.Paging4Level)
//	s.Map(0xffffffff81000000, 0x2000, vitrinetest.Writable)
//	s.PutString(0xffffffff81000000, "Linux version 6.1")
//	g := b.Guest()
//
// The builder panics on a mistake of the test (memory that does not exist, an
// address that is not mapped): a test has nobody else to tell. What the guest
// under test does through the vitrine interfaces never panics.
package vitrinetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Op names a call of the backend interface, for the log and for faults.
type Op string

// The operations of a Backend.
const (
	OpRead      Op = "read"
	OpWrite     Op = "write"
	OpRegisters Op = "registers"
	OpStatus    Op = "status"
	OpClose     Op = "close"
)

// Call is one entry of the log.
type Call struct {
	Op   Op
	Addr arch.GPA // OpRead and OpWrite
	Len  int      // OpRead and OpWrite
	CPU  int      // OpRegisters
}

// DefaultSize is the RAM of a guest made by New without regions, in bytes.
// Pages that nobody wrote take no host memory.
const DefaultSize = 64 << 20

// firstFree is where Alloc begins: page 0 stays empty, so that a zero physical
// address in a table is always a mistake.
const firstFree = 0x10000

// Backend is a guest that exists in the test only. It implements
// vitrine.Backend and, beside it, PhysicalWriter, RegisterSource and
// StatusSource. Its methods may be called concurrently.
type Backend struct {
	regions []vitrine.Region

	mu sync.Mutex
	// Protected by mu.
	pages  map[arch.GFN]*[arch.PageSize]byte
	next   arch.GPA
	regs   []arch.Registers
	status vitrine.Status
	calls  []Call
	logOff bool
	count  map[Op]int
	faults map[Op]map[int]error
	hook   func(Call)
}

var (
	_ vitrine.Backend        = (*Backend)(nil)
	_ vitrine.PhysicalWriter = (*Backend)(nil)
	_ vitrine.RegisterSource = (*Backend)(nil)
	_ vitrine.StatusSource   = (*Backend)(nil)
)

// New returns a guest with one virtual processor and RAM in the given regions,
// which must be sorted, page-aligned and without overlap; DefaultSize bytes
// from address 0 when none is given.
func New(regions ...vitrine.Region) *Backend {
	if len(regions) == 0 {
		regions = []vitrine.Region{{Start: 0, Size: DefaultSize}}
	}
	return &Backend{
		regions: regions,
		pages:   map[arch.GFN]*[arch.PageSize]byte{},
		next:    max(firstFree, regions[0].Start),
		regs:    make([]arch.Registers, 1),
		status:  vitrine.StatusRunning,
		count:   map[Op]int{},
		faults:  map[Op]map[int]error{},
	}
}

// Guest returns a new x86-64 guest on top of the backend.
func (b *Backend) Guest() *vitrine.Guest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return vitrine.New(b, vitrine.Info{Name: "fake", Backend: "fake", Arch: arch.AMD64, CPUs: len(b.regs), Live: true})
}

// SetRegisters gives the guest as many virtual processors as there are
// register files. Call it before Guest.
func (b *Backend) SetRegisters(regs ...arch.Registers) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.regs = slices.Clone(regs)
}

// SetStatus changes the run state.
func (b *Backend) SetStatus(s vitrine.Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status = s
}

// FailNth makes the nth call of op from now on fail with err; 1 is the next
// one. Later calls succeed again.
func (b *Backend) FailNth(op Op, n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.faults[op] == nil {
		b.faults[op] = map[int]error{}
	}
	b.faults[op][b.count[op]+n] = err
}

// OnCall makes f run before every call, from its goroutine and without a lock
// held: a test changes memory from it, to tear what is being read. Nil
// takes the function away.
func (b *Backend) OnCall(f func(Call)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hook = f
}

// Calls returns the log since the beginning or the last ResetCalls.
func (b *Backend) Calls() []Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.calls)
}

// ResetCalls empties the log.
func (b *Backend) ResetCalls() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = nil
}

// SetLog turns the log on (as it is at first) or off, for benchmarks.
func (b *Backend) SetLog(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.logOff = !on
}

// Count returns how often op was called.
func (b *Backend) Count(op Op) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count[op]
}

// called logs a call, runs the hook, and returns the fault planted for it.
func (b *Backend) called(c Call) error {
	b.mu.Lock()
	b.count[c.Op]++
	if !b.logOff {
		b.calls = append(b.calls, c)
	}
	err := b.faults[c.Op][b.count[c.Op]]
	hook := b.hook
	b.mu.Unlock()
	if hook != nil {
		hook(c)
	}
	return err
}

// Regions implements vitrine.Backend.
func (b *Backend) Regions() []vitrine.Region { return b.regions }

// ReadPhysical implements vitrine.Backend. It stops at the end of RAM with a
// *vitrine.PhysicalError; a planted fault reads nothing.
func (b *Backend) ReadPhysical(p []byte, a arch.GPA) (int, error) {
	if err := b.called(Call{Op: OpRead, Addr: a, Len: len(p)}); err != nil {
		return 0, &vitrine.PhysicalError{Addr: a, Err: err}
	}
	return silent{b}.ReadPhysical(p, a)
}

// WritePhysical implements vitrine.PhysicalWriter.
func (b *Backend) WritePhysical(p []byte, a arch.GPA) error {
	if err := b.called(Call{Op: OpWrite, Addr: a, Len: len(p)}); err != nil {
		return &vitrine.PhysicalError{Addr: a, Err: err}
	}
	return b.put(p, a)
}

// PutPhysical stores p at a, without a log entry. It panics where there is no RAM.
func (b *Backend) PutPhysical(a arch.GPA, p []byte) {
	if err := b.put(p, a); err != nil {
		panic(fmt.Sprintf("vitrinetest: put %d bytes at %v: %v", len(p), a, err))
	}
}

// PutUint64Physical stores a little-endian number at a. It panics where there is no RAM.
func (b *Backend) PutUint64Physical(a arch.GPA, v uint64) {
	b.PutPhysical(a, binary.LittleEndian.AppendUint64(nil, v))
}

func (b *Backend) put(p []byte, a arch.GPA) error {
	_, err := b.each(p, a, func(part []byte, frame arch.GFN, off int) {
		if b.pages[frame] == nil {
			b.pages[frame] = new([arch.PageSize]byte)
		}
		copy(b.pages[frame][off:], part)
	})
	return err
}

// each calls f for every page that p covers from a on, with the lock held.
func (b *Backend) each(p []byte, a arch.GPA, f func(part []byte, frame arch.GFN, off int)) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	done := 0
	for done < len(p) {
		at := a + arch.GPA(done)
		if !b.hasRAM(at) {
			return done, &vitrine.PhysicalError{Addr: at}
		}
		off := int(at % arch.PageSize)
		n := min(len(p)-done, arch.PageSize-off)
		f(p[done:done+n], at.Frame(), off)
		done += n
	}
	return done, nil
}

func (b *Backend) hasRAM(a arch.GPA) bool {
	for _, r := range b.regions {
		if r.Start <= a && a < r.End() {
			return true
		}
	}
	return false
}

// Alloc returns the address of n fresh, zeroed, contiguous pages. It panics
// when the first region is full.
func (b *Backend) Alloc(n int) arch.GPA {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.next
	b.next += arch.GPA(n) * arch.PageSize
	if b.next > b.regions[0].End() {
		panic(fmt.Sprintf("vitrinetest: out of memory for %d pages", n))
	}
	return a
}

// Registers implements vitrine.RegisterSource.
func (b *Backend) Registers(_ context.Context, cpu int) (*arch.Registers, error) {
	if err := b.called(Call{Op: OpRegisters, CPU: cpu}); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if cpu < 0 || cpu >= len(b.regs) {
		return nil, fmt.Errorf("read registers: no virtual processor %d", cpu)
	}
	r := b.regs[cpu]
	return &r, nil
}

// Status implements vitrine.StatusSource.
func (b *Backend) Status(context.Context) (vitrine.Status, error) {
	if err := b.called(Call{Op: OpStatus}); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status, nil
}

// Close implements vitrine.Backend.
func (b *Backend) Close() error { return b.called(Call{Op: OpClose}) }
