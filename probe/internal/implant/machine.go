package implant

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// machine is a guest under control, for as long as it takes to change it. It
// belongs to one goroutine.
type machine struct {
	g   *vitrine.Guest
	as  *vitrine.AddressSpace
	f   Facts
	ctl vitrine.Control

	places  []arch.GVA // where threads may be caught
	stopped bool
	since   time.Time
	stood   time.Duration // how long the guest has stood still
}

// take stops the guest.
func take(ctx context.Context, g *vitrine.Guest, f Facts) (*machine, error) {
	m := &machine{g: g, as: f.Space(), f: f, stopped: true}
	m.places = m.findPlaces()
	m.since = time.Now()
	var err error
	m.ctl, err = g.OpenControl(ctx)
	if err != nil {
		return nil, err
	}
	m.as.Invalidate()
	return m, nil
}

// release lets the guest run and gives control back.
func (m *machine) release() error {
	err := m.ctl.Close()
	m.went()
	if s, ok := m.ctl.(vitrine.Stood); ok {
		m.stood = s.Stood()
	}
	return err
}

func (m *machine) went() {
	if m.stopped {
		m.stopped = false
		m.stood += time.Since(m.since)
	}
}

func (m *machine) resume() error {
	if err := m.ctl.Resume(); err != nil {
		return fmt.Errorf("resume guest: %w", err)
	}
	m.went()
	return nil
}

// wait waits for the next stop. What was cached before may be mapped otherwise
// now: a kernel stack lies in memory that is unmapped when its thread has ended,
// and the next thread's stack comes to the same address with other pages. By an
// old translation a thread inside the implant would not be seen, and the return
// address of a borrowed call would be written into somebody else's page.
func (m *machine) wait(ctx context.Context) (vitrine.Stop, error) {
	s, err := m.ctl.Wait(ctx)
	m.as.Invalidate()
	if err == nil {
		m.stopped, m.since = true, time.Now()
	}
	return s, err
}

// next lets the guest run until something stops it. When ctx ends before, the
// guest is stopped and ctx's error returned.
func (m *machine) next(ctx context.Context) (vitrine.Stop, error) {
	if err := m.resume(); err != nil {
		return vitrine.Stop{}, err
	}
	s, err := m.wait(ctx)
	if err != nil && ctx.Err() != nil {
		if stopErr := m.halt(); stopErr != nil {
			return s, errors.Join(err, stopErr)
		}
	}
	return s, err
}

// haltTime is how long a running guest may take to stop.
const haltTime = 30 * time.Second

// halt stops a running guest.
func (m *machine) halt() error {
	if m.stopped {
		return nil
	}
	if err := m.ctl.Interrupt(); err != nil {
		return fmt.Errorf("stop guest: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), haltTime)
	defer cancel()
	_, err := m.wait(ctx)
	return err
}

// breathe lets the guest run for a moment.
func (m *machine) breathe(d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if _, err := m.next(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// kernelCPU returns a stopped virtual processor whose page tables map the
// kernel: with page-table isolation those of a thread in user mode do not.
func (m *machine) kernelCPU() (int, error) {
	text, _, err := first(m.f, "_stext", "_text")
	if err != nil {
		return 0, err
	}
	for cpu := range m.g.CPUs() {
		r, err := m.ctl.Registers(cpu)
		if err != nil {
			return 0, err
		}
		if _, err := m.g.AddressSpace(r.PagingMode(), r.Root()).Walk(text); err == nil {
			return cpu, nil
		}
	}
	return 0, errNoKernelCPU
}

var errNoKernelCPU = errors.New("no virtual processor maps the kernel just now")

// word reads a number of the guest's kernel, 0 when it cannot be read.
func (m *machine) word(a arch.GVA) uint64 {
	v, _ := m.as.ReadUint64(a)
	return v
}
