package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Options are the choices of attaching. The zero value, and nil, are the default.
type Options struct {
	// BusyWait is how long to wait for a monitor that another client holds; 0
	// is 2 s. It bounds the error, it does not make success likelier.
	BusyWait time.Duration
	// Timeout bounds each command to QEMU; 0 is 10 s.
	Timeout time.Duration
	// AllowSlow lets memory be read through the monitor, some MiB a second at
	// best, where the host forbids reading the QEMU process. Without it that
	// is vitrine.ErrPermission. A QEMU of another host is always read so.
	AllowSlow bool
	// Wait is how long Attach and AttachName wait for a QEMU that is only being
	// started; the context may end it before. 0 is not at all.
	Wait time.Duration
}

func (o *Options) orDefault() Options {
	var out Options
	if o != nil {
		out = *o
	}
	out.BusyWait = cmp.Or(out.BusyWait, 2*time.Second)
	out.Timeout = cmp.Or(out.Timeout, 10*time.Second)
	return out
}

// Attach reaches the guest whose QMP socket is at qmpPath; "tcp:HOST:PORT" names
// one that listens on TCP. The guest is not stopped. The socket is held until
// the guest is closed.
//
// The error wraps vitrine.ErrNotFound, ErrBusy, ErrPermission or ErrGone.
func Attach(ctx context.Context, qmpPath string, opts *Options) (*vitrine.Guest, error) {
	return whenThere(ctx, opts, func() (*vitrine.Guest, error) { return attach(ctx, qmpPath, opts) })
}

func attach(ctx context.Context, qmpPath string, opts *Options) (*vitrine.Guest, error) {
	o := opts.orDefault()
	m := &machine{timeout: o.Timeout, allowSlow: o.AllowSlow}
	s, err := dialMonitor(ctx, qmpPath, o.BusyWait, m.onEvent)
	if err != nil {
		return nil, err
	}
	m.mon = s
	return m.open(ctx, qmpPath)
}

// whenThere tries to attach until there is something to attach to, or the time
// to wait for it is over; the error is then that of the last try.
func whenThere(ctx context.Context, opts *Options, try func() (*vitrine.Guest, error)) (*vitrine.Guest, error) {
	over := time.Now().Add(opts.orDefault().Wait)
	for {
		g, err := try()
		if !errors.Is(err, vitrine.ErrNotFound) || !time.Now().Before(over) {
			return g, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// open learns what QEMU is and where its memory is. It owns the monitor: after
// an error it is closed.
func (m *machine) open(ctx context.Context, target string) (*vitrine.Guest, error) {
	go m.watchEnd()
	err := m.identify(ctx)
	if err == nil {
		err = m.openMemory(ctx)
	}
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("attach to %s: %w", target, err)
	}
	return vitrine.New(m, vitrine.Info{
		Name:    m.name,
		Backend: "qemu",
		Arch:    m.arch,
		CPUs:    len(m.cpus),
		Accel:   m.accel,
		Live:    true,
		Access:  m.mem.access(),
	}), nil
}

// watchEnd makes everything fail with ErrGone when QEMU ends: what is still
// mapped then is the memory of a guest that no longer exists.
func (m *machine) watchEnd() {
	<-m.mon.done()
	if !m.isClosed() {
		m.mem.fail(vitrine.ErrGone)
	}
	m.life.end()
	if c := m.ctl.Load(); c != nil {
		c.event(vitrine.LifeGone)
	}
}

func (m *machine) openMemory(ctx context.Context) error {
	spans, err := m.layout(ctx)
	if err != nil {
		return err
	}
	return m.reach(ctx, spans, m.process(ctx))
}

// identify asks QEMU for the guest's name, processors and accelerator.
func (m *machine) identify(ctx context.Context) error {
	var name struct {
		Name string `json:"name"`
	}
	var kvm struct {
		Enabled bool `json:"enabled"`
	}
	if err := m.execute(ctx, "query-name", nil, &name); err != nil {
		return err
	}
	if err := m.execute(ctx, "query-kvm", nil, &kvm); err != nil {
		return err
	}
	m.name, m.accel = name.Name, "tcg"
	if kvm.Enabled {
		m.accel = "kvm"
	}
	return m.identifyCPUs(ctx)
}

func (m *machine) identifyCPUs(ctx context.Context) error {
	var cpus []struct {
		Index  int    `json:"cpu-index"`
		Thread int    `json:"thread-id"`
		Target string `json:"target"`
	}
	if err := m.execute(ctx, "query-cpus-fast", nil, &cpus); err != nil {
		return err
	}
	if len(cpus) == 0 {
		return errors.New("query-cpus-fast: QEMU has no virtual processor")
	}
	slices.SortFunc(cpus, func(a, b struct {
		Index  int    `json:"cpu-index"`
		Thread int    `json:"thread-id"`
		Target string `json:"target"`
	}) int {
		return cmp.Compare(a.Index, b.Index)
	})
	for _, c := range cpus {
		m.cpus = append(m.cpus, c.Index)
		m.tids = append(m.tids, c.Thread)
	}
	for _, a := range []arch.Arch{arch.AMD64, arch.I386, arch.ARM64} {
		if a.String() == cpus[0].Target {
			m.arch = a
		}
	}
	return nil
}
