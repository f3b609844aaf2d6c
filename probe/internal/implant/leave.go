package implant

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// leaveTime is how long threads may take to come out of the implant; none
// stays there for more than its waiting time.
const leaveTime = 15 * time.Second

// leave takes the implant out: it restores the nops, sends threads that are
// blocked in wrapped functions past it, and frees its memory. The guest is
// stopped at the beginning and at the end. After an error the nops are restored
// wherever that was possible, and memory that may still be in use stays.
func (p *planted) leave(ctx context.Context, m *machine) error {
	p.stop(m)
	cpu, err := p.stopInKernel(m)
	if err != nil {
		return fmt.Errorf("take out implant: %w", err)
	}
	if err := p.unpatch(m, cpu); err != nil {
		return fmt.Errorf("take out implant: %w", err)
	}
	if err := p.drain(m); err != nil {
		return fmt.Errorf("take out implant: %w", err)
	}
	if err := m.borrow(ctx, p.free); err != nil {
		return fmt.Errorf("take out implant: its memory stays: %w", err)
	}
	return nil
}

// stop makes the stubs pass all calls on and ends all waiting. The jumps go
// next: that it cannot be written does no harm.
func (p *planted) stop(m *machine) {
	if p.m != nil {
		_ = p.m.store(hdrStop, 1)
		return
	}
	if magic, err := m.as.ReadUint64(p.data); err == nil && magic == headerMagic {
		_ = m.as.Write([]byte{1}, p.data+hdrStop)
	}
}

// stopInKernel stops the guest until a processor's page tables map the kernel.
func (p *planted) stopInKernel(m *machine) (int, error) {
	deadline := time.Now().Add(leaveTime)
	for {
		cpu, err := m.kernelCPU()
		if !errors.Is(err, errNoKernelCPU) || time.Now().After(deadline) {
			return cpu, err
		}
		if err := m.breathe(time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// drain waits until no thread is inside the implant, and rewrites the return
// addresses of those that will come back to it. The nops are restored already.
func (p *planted) drain(m *machine) error {
	s, err := newStacks(m, &p.code)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(leaveTime)
	var to [8]byte
	binary.LittleEndian.PutUint64(to[:], uint64(p.gadget))
	for {
		v, err := s.look()
		if err != nil {
			return err
		}
		for _, at := range v.returns {
			if err := m.as.Write(to[:], at); err != nil {
				return fmt.Errorf("rewrite return address at %v: %w", at, err)
			}
		}
		if len(v.busy) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("threads stay inside it: %s", strings.Join(v.busy, "; "))
		}
		if err := m.breathe(2 * time.Millisecond); err != nil {
			return err
		}
	}
}
