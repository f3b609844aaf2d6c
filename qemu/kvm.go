package qemu

import (
	"errors"

	"github.com/vitrine-vmi/vitrine/arch"
)

// KVM holds a software breakpoint by writing an int3 into guest memory, through
// the page tables that one processor has in use. A processor that runs user
// code under page-table isolation (KPTI) does not map the kernel: there QEMU
// fails to plant the byte, or, when it takes a breakpoint out, forgets it and
// leaves the byte. So a processor that maps the address is chosen before, and
// the byte is looked at afterwards. An emulating QEMU (TCG) writes nothing.

// int3 is what KVM writes.
const int3 = 0xcc

// planted is where KVM has written a breakpoint.
type planted struct {
	at   arch.GPA
	orig byte
}

// choose makes the stub plant and remove breakpoints through a processor that
// maps a, and returns where a is. It returns a *vitrine.FaultError when none
// does, which may be different after the guest has run on.
func (c *control) choose(a arch.GVA) (arch.GPA, error) {
	var last error
	for cpu := range c.m.cpus {
		r, err := c.Registers(cpu)
		if err != nil {
			return 0, err
		}
		m, err := arch.Walk(c.m, r.PagingMode(), r.Root(), a)
		if err == nil {
			c.queue("Hc" + c.thread(cpu))
			return m.Addr, nil
		}
		last = err
	}
	return 0, last
}

// prepare chooses the processor for a software breakpoint under KVM, and notes
// what is in the guest's memory before it is planted.
func (c *control) prepare(op byte, kind arch.BreakpointKind, a arch.GVA) error {
	if c.m.accel != "kvm" || kind != arch.BreakSoftware {
		return nil
	}
	at, err := c.choose(a)
	if err != nil || op != 'Z' {
		return err
	}
	var b [1]byte
	if _, err := c.m.ReadPhysical(b[:], at); err != nil {
		return err
	}
	if c.planted == nil {
		c.planted = map[arch.GVA]planted{}
	}
	c.planted[a] = planted{at, b[0]}
	return nil
}

// removed puts back what a breakpoint that was taken out has left behind.
func (c *control) removed(a arch.GVA) error {
	p, ok := c.planted[a]
	if !ok {
		return nil
	}
	delete(c.planted, a)
	var b [1]byte
	if _, err := c.m.ReadPhysical(b[:], p.at); err != nil || b[0] != int3 || p.orig == int3 {
		return err
	}
	// The processors of KVM see memory as it is, code included.
	return c.m.WritePhysical([]byte{p.orig}, p.at)
}

// removedAll does so for all breakpoints, after the stub has dropped them.
func (c *control) removedAll() error {
	var errs []error
	for a := range c.planted {
		errs = append(errs, c.removed(a))
	}
	return errors.Join(errs...)
}
