package vitrine

import (
	"context"
	"encoding/binary"
	"io"
	"sync"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Info is what a backend knows of a guest without looking into it.
type Info struct {
	Name    string    // the guest's name, "" when it has none
	Backend string    // "qemu", "dump", ...
	Arch    arch.Arch // instruction set of the virtual processors
	CPUs    int       // virtual processors, at least 1
	Accel   string    // "kvm", "tcg", "" when unknown
	Live    bool      // it may run while it is being read
	Access  string    // how its memory is read, in words; "" when there is only one way
}

// Guest is one virtual machine, or a memory image of one. Its methods may be
// called concurrently.
type Guest struct {
	// Immutable fields, may be shared.
	info    Info
	backend Backend
	mapper  PhysicalMapper // nil where the backend lacks the ability; likewise below
	writer  PhysicalWriter
	regs    RegisterSource
	status  StatusSource
	life    LifeWatcher
	control Controller
	repair  Repairer

	closeOnce sync.Once
	closeErr  error
}

// New returns a guest reached through b, which the guest then owns.
func New(b Backend, info Info) *Guest {
	g := &Guest{info: info, backend: b}
	g.mapper, _ = b.(PhysicalMapper)
	g.writer, _ = b.(PhysicalWriter)
	g.regs, _ = b.(RegisterSource)
	g.status, _ = b.(StatusSource)
	g.life, _ = b.(LifeWatcher)
	g.control, _ = b.(Controller)
	g.repair, _ = b.(Repairer)
	return g
}

// Info returns what the backend knows of the guest.
func (g *Guest) Info() Info { return g.info }

// Name returns the guest's name, "" when it has none.
func (g *Guest) Name() string { return g.info.Name }

// Arch returns the instruction set of the virtual processors.
func (g *Guest) Arch() arch.Arch { return g.info.Arch }

// CPUs returns the number of virtual processors, at least 1.
func (g *Guest) CPUs() int { return g.info.CPUs }

// Regions returns the guest's RAM, sorted by address, without overlap.
func (g *Guest) Regions() []Region { return g.backend.Regions() }

// MemoryBytes returns the size of the guest's RAM in bytes.
func (g *Guest) MemoryBytes() uint64 {
	var n uint64
	for _, r := range g.Regions() {
		n += r.Size
	}
	return n
}

// Close undoes what was done to the guest and releases it. Calls after the
// first do nothing and return the first's error.
func (g *Guest) Close() error {
	g.closeOnce.Do(func() { g.closeErr = g.backend.Close() })
	return g.closeErr
}

// ReadPhysical fills p from guest-physical address a. It returns how many bytes
// it filled; fewer than len(p) comes with an error.
func (g *Guest) ReadPhysical(p []byte, a arch.GPA) (int, error) {
	return g.backend.ReadPhysical(p, a)
}

// MapPhysical returns n bytes of guest RAM at a without copying, or nil when
// the backend does not have them mapped in one piece. The slice stays valid
// until Close; the guest writes to it at any time.
func (g *Guest) MapPhysical(a arch.GPA, n uint64) []byte {
	if g.mapper == nil {
		return nil
	}
	return g.mapper.MapPhysical(a, n)
}

// WritePhysical stores p at guest-physical address a: data, never code.
func (g *Guest) WritePhysical(p []byte, a arch.GPA) error {
	if g.writer == nil {
		return unsupported("write guest memory", g.info.Backend)
	}
	return g.writer.WritePhysical(p, a)
}

// Registers returns a snapshot of a virtual processor's registers, without
// stopping it. A field that the backend does not offer is zero.
func (g *Guest) Registers(ctx context.Context, cpu int) (*arch.Registers, error) {
	if g.regs == nil {
		return nil, unsupported("read registers", g.info.Backend)
	}
	return g.regs.Registers(ctx, cpu)
}

// Status returns the run state; a memory image is paused.
func (g *Guest) Status(ctx context.Context) (Status, error) {
	if g.status == nil {
		return StatusPaused, nil
	}
	return g.status.Status(ctx)
}

// WatchLife returns changes of the run state until ctx ends. The channel of a
// backend that reports none is closed at ctx's end and never sends.
func (g *Guest) WatchLife(ctx context.Context) <-chan LifeEvent {
	if g.life != nil {
		return g.life.WatchLife(ctx)
	}
	ch := make(chan LifeEvent)
	context.AfterFunc(ctx, func() { close(ch) })
	return ch
}

// CanControl reports whether the backend can control virtual processors, by
// which OpenControl does. It does not ask the guest.
func (g *Guest) CanControl() bool { return g.control != nil }

// OpenControl takes exclusive control of the virtual processors and stops
// them; see Controller. Most callers want package probe instead.
func (g *Guest) OpenControl(ctx context.Context) (Control, error) {
	if g.control == nil {
		return nil, unsupported("control virtual processors", g.info.Backend)
	}
	return g.control.OpenControl(ctx)
}

// Repair undoes at hypervisor level what a killed run left; see Repairer.
func (g *Guest) Repair(ctx context.Context) ([]string, error) {
	if g.repair == nil {
		return nil, unsupported("repair", g.info.Backend)
	}
	return g.repair.Repair(ctx)
}

// PhysicalReaderAt returns guest-physical memory from start to start+n as an
// io.ReaderAt, for parsers of the standard library's shape.
func (g *Guest) PhysicalReaderAt(start arch.GPA, n int64) *io.SectionReader {
	return io.NewSectionReader(physicalReaderAt{g, start}, 0, n)
}

type physicalReaderAt struct {
	g     *Guest
	start arch.GPA
}

func (r physicalReaderAt) ReadAt(p []byte, off int64) (int, error) {
	return r.g.ReadPhysical(p, r.start+arch.GPA(off))
}

// ReadUint64Physical reads a little-endian 64-bit number at a.
func (g *Guest) ReadUint64Physical(a arch.GPA) (uint64, error) {
	var b [8]byte
	if _, err := g.ReadPhysical(b[:], a); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}
