package qemu

import (
	"bytes"
	"errors"

	"github.com/vitrine-vmi/vitrine/arch"
)

// KVM holds a software breakpoint by writing an int3 into guest memory, through
// the page tables that one processor has in use. A processor that runs user
// code under page-table isolation (KPTI) does not map the kernel: there QEMU
// fails to plant the byte, or, when it takes a breakpoint out, forgets it and
// leaves the byte. So a processor that maps the address is chosen before, and
// the byte is looked at afterwards. An emulating QEMU (TCG) writes nothing.

// On arm64 the same holds, with an instruction of four bytes and the page tables of
// the kernel's half.

// int3 is what KVM writes on x86.
const int3 = 0xcc

// planted is where KVM has written a breakpoint.
type planted struct {
	at   arch.GPA
	orig []byte
}

// trapCode returns what KVM writes for a breakpoint.
func trapCode(a arch.Arch) []byte {
	if a == arch.ARM64 {
		return []byte{0x00, 0x00, 0x20, 0xd4} // brk #0
	}
	return []byte{int3}
}

// tables returns the page tables by which a processor maps a.
func tables(r *arch.Registers, a arch.GVA) (arch.PagingMode, arch.GPA) {
	if r.ARM64.On && int64(a) < 0 {
		return r.ARM64.KernelMode(), r.ARM64.Kernel()
	}
	return r.PagingMode(), r.Root()
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
		mode, root := tables(r, a)
		m, err := arch.Walk(c.m, mode, root, a)
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
	b := make([]byte, len(trapCode(c.m.arch)))
	if _, err := c.m.ReadPhysical(b, at); err != nil {
		return err
	}
	if c.planted == nil {
		c.planted = map[arch.GVA]planted{}
	}
	c.planted[a] = planted{at, b}
	return nil
}

// removed puts back what a breakpoint that was taken out has left behind.
func (c *control) removed(a arch.GVA) error {
	p, ok := c.planted[a]
	if !ok {
		return nil
	}
	delete(c.planted, a)
	b, trap := make([]byte, len(p.orig)), trapCode(c.m.arch)
	if _, err := c.m.ReadPhysical(b, p.at); err != nil || !bytes.Equal(b, trap) || bytes.Equal(p.orig, trap) {
		return err
	}
	// The processors of KVM see memory as it is, code included.
	return c.m.WritePhysical(p.orig, p.at)
}

// removedAll does so for all breakpoints, after the stub has dropped them.
func (c *control) removedAll() error {
	var errs []error
	for a := range c.planted {
		errs = append(errs, c.removed(a))
	}
	return errors.Join(errs...)
}
