package kernel

import (
	"context"
	"fmt"
	"strings"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// maxCPUs bounds how many virtual processors are looked at (NR_CPUS of the
// largest distribution kernels).
const maxCPUs = 8192

// sighting is what the virtual processors were seen doing, for messages and for
// telling "not yet" from "something else".
type sighting struct {
	lines   []string
	foreign string   // another operating system's kernel, in words
	kernel  arch.GVA // code of an arm64 kernel that a processor runs, 0 for none
}

// maxLines bounds how many processors a message speaks of.
const maxLines = 4

func (s *sighting) add(g *vitrine.Guest, cpu int, r *arch.Registers) {
	if len(s.lines) < maxLines {
		s.lines = append(s.lines, fmt.Sprintf("vcpu %d is %s", cpu, where(r)))
	}
	if r.ARM64.On && !r.User() && r.PC()>>63 != 0 {
		s.kernel = r.PC()
	}
	if s.foreign == "" {
		s.foreign = foreignKernel(g, r)
	}
}

func (s *sighting) String() string {
	if s == nil || len(s.lines) == 0 {
		return "no registers to be had"
	}
	return strings.Join(s.lines, ", ")
}

// where describes in words what a processor executes.
func where(r *arch.Registers) string {
	switch {
	case r.ARM64.On:
		return whereARM(r)
	case r.CR0&arch.CR0PE == 0:
		what := "in 16-bit real mode"
		if r.CS >= 0xc000 {
			what = "in firmware, 16-bit real mode"
		}
		return fmt.Sprintf("%s at %04X:%04X", what, r.CS, r.RIP&0xffff)
	case r.EFER&arch.EFERLMA == 0:
		return fmt.Sprintf("in 32-bit code at %#x, paging %v", r.RIP, r.PagingMode())
	case r.User():
		return fmt.Sprintf("in a user program at %#x", r.RIP)
	case arch.GVA(r.RIP) >= imageLow && arch.GVA(r.RIP) < imageHigh:
		return fmt.Sprintf("in kernel code at %#x", r.RIP)
	case r.RIP>>63 != 0:
		return fmt.Sprintf("in 64-bit code at %#x", r.RIP)
	}
	return fmt.Sprintf("in 64-bit code at %#x (firmware, boot loader or decompression)", r.RIP)
}

// peSearch is how far before an interrupt handler the start of its image is
// looked for; ntoskrnl.exe is about 16 MiB.
const peSearch = 24 << 20

// foreignKernel looks for a sign of an operating system other than Linux: the
// page-fault handler of Windows lies in a PE image in the upper half.
func foreignKernel(g *vitrine.Guest, r *arch.Registers) string {
	mode := r.PagingMode()
	if r.IDTBase == 0 || (mode != arch.Paging4Level && mode != arch.Paging5Level) {
		return ""
	}
	as := g.AddressSpace(mode, r.Root())
	handler, err := idtHandler(as, arch.GVA(r.IDTBase), 14)
	if err != nil || handler>>63 == 0 || handler >= imageLow {
		return ""
	}
	for page := handler.Page(); page > handler-peSearch; page -= arch.PageSize {
		if isPE(as, page) {
			return fmt.Sprintf("a Windows-style PE image at %v, which holds the page-fault handler %v", page, handler)
		}
	}
	return ""
}

// idtHandler reads entry n of a 64-bit interrupt descriptor table (SDM 3A,
// figure 6-8).
func idtHandler(as *vitrine.AddressSpace, base arch.GVA, n int) (arch.GVA, error) {
	lo, err := as.ReadUint64(base + arch.GVA(16*n))
	if err != nil {
		return 0, err
	}
	hi, err := as.ReadUint32(base + arch.GVA(16*n+8))
	if err != nil {
		return 0, err
	}
	return arch.GVA(uint64(hi)<<32 | lo>>48<<16 | lo&0xffff), nil
}

// isPE reports whether a mapped PE image starts at page.
func isPE(as *vitrine.AddressSpace, page arch.GVA) bool {
	if mz, err := as.ReadUint16(page); err != nil || mz != 0x5a4d {
		return false
	}
	at, err := as.ReadUint32(page + 0x3c)
	if err != nil || at > arch.PageSize {
		return false
	}
	sig, err := as.ReadUint32(page + arch.GVA(at))
	return err == nil && sig == 0x4550
}

// notBooted returns the error for a guest in which no Linux kernel was found.
func notBooted(ctx context.Context, g *vitrine.Guest, seen *sighting, cause error) error {
	if st, err := g.Status(ctx); err == nil && g.Info().Live && st != vitrine.StatusRunning {
		return fmt.Errorf("describe guest: %w (guest is %s): looked for a Linux kernel: %v; found: %v", vitrine.ErrNotBooted, st, cause, seen) //nolint:errorlint // the cause must not decide what kind of error it is
	}
	return fmt.Errorf("describe guest: %w: looked for a Linux kernel: %v; found: %v", vitrine.ErrNotBooted, cause, seen) //nolint:errorlint // as above
}
