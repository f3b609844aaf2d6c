package dump

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// image is the backend: one open file.
type image struct {
	// Immutable after Open.
	format Format
	detail string // what else is told of the format, "" for nothing
	arch   arch.Arch
	cpus   int             // as the image tells, 0 when it does not
	regs   []registerState // by virtual processor; may be fewer than cpus
	note   []byte          // VMCOREINFO that came with the image, nil without
	crash  *vitrine.WindowsCrash

	// mu keeps the file mapped while it is read: Close takes it for writing.
	mu   sync.RWMutex
	file *file // nil after Close; likewise mem
	mem  memory
}

var (
	_ vitrine.Backend            = (*image)(nil)
	_ vitrine.PhysicalMapper     = (*image)(nil)
	_ vitrine.RegisterSource     = (*image)(nil)
	_ vitrine.NoteSource         = (*image)(nil)
	_ vitrine.DataFinder         = (*image)(nil)
	_ vitrine.WindowsCrashSource = (*image)(nil)
)

// registerState is what an image tells of one virtual processor.
type registerState struct {
	regs    arch.Registers
	control bool // with control registers, which tell the page table
}

// ReadPhysical fills p from guest-physical address a.
func (im *image) ReadPhysical(p []byte, a arch.GPA) (n int, err error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.file == nil {
		return 0, vitrine.ErrClosed
	}
	if uint64(a) >= maxAddress || uint64(len(p)) > maxAddress {
		return 0, noRAM(uint64(a))
	}
	err = guarded(func() error {
		var err error
		n, err = im.mem.read(p, uint64(a))
		return err
	})
	return n, err
}

// MapPhysical returns n bytes at a without copying, nil when the image does not
// have them in one piece. Should somebody truncate the file, touching the slice
// is a fault (see debug.SetPanicOnFault), which ReadPhysical turns into an error.
func (im *image) MapPhysical(a arch.GPA, n uint64) []byte {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.file == nil || uint64(a) >= maxAddress || n == 0 || n > maxAddress {
		return nil
	}
	return im.mem.slice(uint64(a), n)
}

// NextData returns the first address from a on whose byte is in no hole of the
// file.
func (im *image) NextData(a arch.GPA) arch.GPA {
	im.mu.RLock()
	defer im.mu.RUnlock()
	m, ok := im.mem.(*linear)
	if !ok {
		return a
	}
	s := m.find(uint64(a))
	if s == nil || s.lost {
		return a
	}
	skip := im.file.nextData(s.off+(uint64(a)-s.start)) - s.off
	return arch.GPA(s.start + min(skip, s.size))
}

// Regions returns the guest's RAM, as far as the image has it.
func (im *image) Regions() []vitrine.Region {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.file == nil {
		return nil
	}
	return im.mem.regions()
}

// errNoRegisters is returned when an image does not tell what is asked for.
var errNoRegisters = fmt.Errorf("the image has none that tell the page table in use: %w", errors.ErrUnsupported)

// Registers returns the registers of a virtual processor as of the dump.
func (im *image) Registers(_ context.Context, cpu int) (*arch.Registers, error) {
	if cpu < 0 || cpu >= len(im.regs) || !im.regs[cpu].control {
		return nil, fmt.Errorf("read registers of virtual processor %d: %w", cpu, errNoRegisters)
	}
	r := im.regs[cpu].regs
	return &r, nil
}

// VMCoreInfo returns the VMCOREINFO text that came with the image.
func (im *image) VMCoreInfo() []byte { return im.note }

// WindowsCrash returns what the header of a Windows crash dump says.
func (im *image) WindowsCrash() *vitrine.WindowsCrash { return im.crash }

// Close unmaps the file, once no read is under way.
func (im *image) Close() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.file == nil {
		return nil
	}
	err := im.file.close()
	im.file, im.mem = nil, nil
	return err
}
