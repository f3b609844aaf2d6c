package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/layouts"
)

func leUint64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// systemShape is where the layouts put what tells the process System.
type systemShape struct {
	x64            bool
	name, pid, dtb int
	links          int // ActiveProcessLinks
}

// systemShapes lists the shapes of all layouts, each once.
func systemShapes() []systemShape {
	seen := map[systemShape]bool{}
	var out []systemShape
	for _, l := range layouts.All() {
		e, k := l.Structs["_EPROCESS"], l.Structs["_KPROCESS"]
		if e == nil || k == nil {
			continue
		}
		s := systemShape{x64: l.X64,
			name: int(e.Members["ImageFileName"].Offset), pid: int(e.Members["UniqueProcessId"].Offset),
			links: int(e.Members["ActiveProcessLinks"].Offset), dtb: int(k.Members["DirectoryTableBase"].Offset)}
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// scanPiece is how much physical memory is looked at in one go.
const scanPiece = 4 << 20

// maxGuesses bounds how many places that look like the process System are
// followed.
const maxGuesses = 1 << 12

// bySystemProcess scans physical memory for the process System of any layout:
// its name, its pid, and a page table by which the list that it is in leads into
// the kernel.
func (d *describer) bySystemProcess(ctx context.Context) (*ntFound, error) {
	shapes := systemShapes()
	name := []byte("System\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	guesses := 0
	for _, r := range d.g.Regions() {
		buf := make([]byte, min(scanPiece, r.Size)+arch.PageSize)
		for at := r.Start; at < r.End(); at += scanPiece {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("describe guest: %w", ctx.Err())
			}
			if data := min(d.g.NextData(at), r.End()); data-at >= scanPiece { // an image of holes
				at += (data-at)/scanPiece*scanPiece - scanPiece
				continue
			}
			n, _ := d.g.ReadPhysical(buf[:min(uint64(len(buf)), uint64(r.End()-at))], at)
			for from := 0; from < n; {
				i := bytes.Index(buf[from:n], name)
				if i < 0 {
					break
				}
				from += i + 1
				if guesses++; guesses > maxGuesses {
					return nil, errNoNT
				}
				for _, s := range shapes {
					if f := d.systemAt(at+arch.GPA(from-1), s); f != nil {
						return f, nil
					}
				}
			}
		}
	}
	return nil, errNoNT
}

// systemAt follows one place where the name System was found, as one shape has it.
func (d *describer) systemAt(name arch.GPA, s systemShape) *ntFound {
	size := 4
	if s.x64 {
		size = 8
	}
	start := name - arch.GPA(s.name)
	read := func(off int) uint64 {
		var b [8]byte
		if _, err := d.g.ReadPhysical(b[:size], start+arch.GPA(off)); err != nil {
			return 0
		}
		return leUint64(b[:])
	}
	if uint64(name) < uint64(s.name) || read(s.pid) != 4 {
		return nil
	}
	head, dtb := arch.GVA(read(s.links+size)), read(s.dtb) // System is the first: its predecessor is the head
	if !kernelAddress(head, s.x64) || dtb == 0 {
		return nil
	}
	modes := []arch.PagingMode{arch.PagingPAE, arch.Paging32Bit}
	if s.x64 {
		modes = []arch.PagingMode{arch.Paging4Level, arch.Paging5Level}
	}
	for _, mode := range modes {
		at := root{mode: mode, addr: arch.Root(mode, dtb), from: fmt.Sprintf("EPROCESS of System at %v", start)}
		as := d.g.AddressSpace(mode, at.addr)
		if f := descend(as, head, s.x64, map[arch.GVA]bool{}); f != nil {
			f.root, f.how = at, "PsActiveProcessHead, by a scan for the process System"
			return f
		}
	}
	return nil
}
