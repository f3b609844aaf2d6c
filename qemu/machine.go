package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/hmp"
	"github.com/vitrine-vmi/vitrine/qemu/internal/host"
)

// machine is the backend: one QEMU.
type machine struct {
	mon       monitor
	timeout   time.Duration
	allowSlow bool
	mem       memory
	life      hub
	closed    atomic.Bool

	controlled atomic.Bool             // OpenControl is in force, or Repair
	wrap       func(net.Conn) net.Conn // nil but in tests that break the gdbstub's connection
	ctl        atomic.Pointer[control] // what wants run state events, nil when nobody does
	timer      string                  // see findTimer; of who has set controlled

	// Immutable after attach.
	name  string
	cpus  []int // QEMU's index of each virtual processor
	tids  []int // host thread of each, in QEMU's pid namespace
	arch  arch.Arch
	accel string
}

var (
	_ vitrine.Backend        = (*machine)(nil)
	_ vitrine.PhysicalMapper = (*machine)(nil)
	_ vitrine.PhysicalWriter = (*machine)(nil)
	_ vitrine.RegisterSource = (*machine)(nil)
	_ vitrine.DataFinder     = (*machine)(nil)
	_ vitrine.StatusSource   = (*machine)(nil)
	_ vitrine.LifeWatcher    = (*machine)(nil)
)

func (m *machine) isClosed() bool { return m.closed.Load() }

// ReadPhysical fills p from guest-physical address a.
func (m *machine) ReadPhysical(p []byte, a arch.GPA) (int, error) { return m.mem.read(p, uint64(a)) }

// WritePhysical stores p at guest-physical address a: data, never code.
func (m *machine) WritePhysical(p []byte, a arch.GPA) error { return m.mem.write(p, uint64(a)) }

// MapPhysical returns n mapped bytes at a, nil when they are not mapped in one
// piece. Every page of them that is touched is allocated in the host; to look
// through much memory, read it. Should somebody truncate the file behind the
// guest's RAM, touching the slice is a fault (see debug.SetPanicOnFault), which
// ReadPhysical turns into an error.
func (m *machine) MapPhysical(a arch.GPA, n uint64) []byte { return m.mem.slice(uint64(a), n) }

// NextData implements vitrine.DataFinder: what the guest never touched of RAM
// that is a file are holes of it.
func (m *machine) NextData(a arch.GPA) arch.GPA { return arch.GPA(m.mem.nextData(uint64(a))) }

// Regions returns the guest's RAM.
func (m *machine) Regions() []vitrine.Region { return m.mem.regions() }

// Close ends the connection and unmaps guest RAM.
func (m *machine) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	return errors.Join(m.mon.close(), m.mem.close())
}

// Registers returns what "info registers" prints, which does not stop the
// guest. The monitor offers neither KernelGSBase nor CR8, and of AArch64 no system
// register: they are zero.
func (m *machine) Registers(ctx context.Context, cpu int) (*arch.Registers, error) {
	if cpu < 0 || cpu >= len(m.cpus) {
		return nil, fmt.Errorf("read registers: no virtual processor %d, there are %d", cpu, len(m.cpus))
	}
	parse := parseRegisters
	switch m.arch {
	case arch.AMD64, arch.I386:
	case arch.ARM64:
		parse = parseARMRegisters
	default:
		return nil, fmt.Errorf("read registers of %v: %w", m.arch, errors.ErrUnsupported)
	}
	text, err := m.hmp(ctx, m.cpus[cpu], "info registers")
	if err != nil {
		return nil, err
	}
	return parse(text)
}

// Status returns the run state.
func (m *machine) Status(ctx context.Context) (vitrine.Status, error) {
	s, err := m.runState(ctx)
	if err != nil {
		return "", err
	}
	switch s {
	case "running":
		return vitrine.StatusRunning, nil
	case "paused", "prelaunch", "debug", "finish-migrate", "save-vm", "restore-vm":
		return vitrine.StatusPaused, nil
	case "shutdown":
		return vitrine.StatusShutdown, nil
	}
	return vitrine.StatusOther, nil
}

// runState returns QEMU's own word for the run state: "running", "paused",
// "debug" (a breakpoint stopped it), ...
func (m *machine) runState(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := m.execute(ctx, "query-status", nil, &s)
	return s.Status, err
}

// readByMonitor fills p by the monitor's xp command: a round trip for each 4 KiB.
func (m *machine) readByMonitor(p []byte, gpa uint64) (int, error) {
	const chunk = 4096
	done := 0
	for done < len(p) {
		n := min(len(p)-done, chunk)
		text, err := m.hmp(context.Background(), -1, fmt.Sprintf("xp/%dxg %#x", (n+7)/8, gpa+uint64(done)))
		if err != nil {
			return done, err
		}
		k, err := hmp.ParseXP(text, p[done:done+n])
		done += k
		if err != nil {
			return done, err
		}
		if k < n {
			return done, fmt.Errorf("xp: answer of %d bytes, %d were asked for", k, n)
		}
	}
	return done, nil
}

// process returns the QEMU process, 0 when it is not one of this host or
// cannot be told. The one that listens on the monitor's socket is not believed
// blindly: libvirt and systemd hand QEMU sockets that they listen on, and the
// socket may be a forwarded one. A thread of the process must be the one that
// QEMU says its virtual processor runs in.
func (m *machine) process(ctx context.Context) host.Process {
	var candidates []host.Process
	switch mon := m.mon.(type) {
	case *socket:
		peer, err := host.Peer(mon.conn)
		if err != nil {
			return 0
		}
		candidates = append(candidates, peer)
	case *virsh:
		if p, ok := mon.process(ctx); ok {
			candidates = append(candidates, p)
		}
	}
	if owner, err := host.ThreadOwner(m.tids[0]); err == nil {
		candidates = append(candidates, owner)
	}
	for _, p := range candidates {
		if p.HasThread(m.tids[0]) && isQEMU(p) {
			return p
		}
	}
	return 0
}
