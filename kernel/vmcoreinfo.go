package kernel

import (
	"context"
	"errors"
	"fmt"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/vmcoreinfo"
)

// findInfo reads VMCOREINFO where the kernel's own pointers say that it is. A
// kernel without it (no CONFIG_KEXEC and no CONFIG_PROC_KCORE) is fine; one
// that contradicts the other facts is an error.
func (f *found) findInfo() error {
	in, known := f.infoByPointer()
	f.infoBy = "vmcoreinfo"
	if !known {
		in, f.infoBy = f.infoByScan(), "vmcoreinfo, found in kernel memory"
	}
	if in == nil {
		return nil
	}
	if err := f.checkInfo(in); err != nil {
		return err
	}
	f.info = in
	return f.checkUTS()
}

// checkInfo compares VMCOREINFO with what is known without it.
func (f *found) checkInfo(in *vmcoreinfo.Info) error {
	if in.Release != f.release {
		return fmt.Errorf("vmcoreinfo says release %q, the banner %q", in.Release, f.release)
	}
	if a, ok := f.symbol("_stext"); ok && in.Symbols["_stext"] != uint64(a) {
		return fmt.Errorf("vmcoreinfo has _stext at %#x, kallsyms at %v", in.Symbols["_stext"], a)
	}
	return nil
}

// infoByPointer follows vmcoreinfo_note (an ELF note) or vmcoreinfo_data (the
// text alone; freed by some kernels once the note is made). It reports too
// whether the kernel has one of the two.
func (f *found) infoByPointer() (in *vmcoreinfo.Info, known bool) {
	for _, name := range []string{"vmcoreinfo_note", "vmcoreinfo_data"} {
		va, ok := f.symbol(name)
		if !ok {
			continue
		}
		known = true
		p, err := f.space.ReadPointer(va)
		if err != nil || p == 0 {
			continue
		}
		if in := f.infoAt(p); in != nil {
			return in, true
		}
	}
	return nil, known
}

// checkUTS compares the release with the one that uname prints.
func (f *found) checkUTS() error {
	va, ok := f.info.Symbols["init_uts_ns"]
	off, has := f.info.Offsets["uts_namespace.name"]
	if !ok || !has || off < 0 || off > arch.PageSize {
		return nil
	}
	const fieldSize = 65 // __NEW_UTS_LEN + 1; release is the third field
	s, err := f.space.ReadString(arch.GVA(va)+arch.GVA(off)+2*fieldSize, fieldSize)
	if err != nil {
		return fmt.Errorf("read init_uts_ns: %w", err)
	}
	if s != f.release {
		return fmt.Errorf("init_uts_ns says release %.64q, the banner %q", s, f.release)
	}
	return nil
}

// scanChunk is how much guest memory is looked through at a time.
const scanChunk = 4 << 20

// maxCandidates bounds how many notes are followed up.
const maxCandidates = 256

// rootsFromMemory looks through all of the guest's memory for VMCOREINFO and
// returns the page tables that the notes name. It is for guests whose registers
// are not to be had. Any program in the guest can hold such a text, and memory
// keeps those of earlier boots: the caller checks what the page tables map.
func rootsFromMemory(ctx context.Context, g *vitrine.Guest) ([]root, error) {
	var roots []root
	err := eachRoot(ctx, g, func(r root) bool {
		roots = append(roots, r)
		return true
	})
	return roots, err
}

// eachRoot calls f with each page table once, as it is found, until it returns
// false.
func eachRoot(ctx context.Context, g *vitrine.Guest, f func(root) bool) error {
	have := map[root]bool{}
	var buf []byte
	for _, reg := range g.Regions() {
		for at := uint64(0); at < reg.Size; at += scanChunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			if data := uint64(g.NextData(reg.Start+arch.GPA(at)) - reg.Start); data-at >= scanChunk { // an image of holes
				at = data/scanChunk*scanChunk - scanChunk
				continue
			}
			var p []byte
			p, buf = physicalBytes(g, reg.Start+arch.GPA(at), min(scanChunk, reg.Size-at), buf)
			for ; len(p) >= arch.PageSize && len(have) < maxCandidates; p = p[arch.PageSize:] {
				in, err := vmcoreinfo.Parse(vmcoreinfo.InPage(p[:arch.PageSize]))
				if err != nil {
					continue
				}
				if r, ok := rootOf(in); ok && !have[r] {
					have[r] = true
					if !f(r) {
						return nil
					}
				}
			}
		}
	}
	if len(have) == 0 {
		return errors.New("no vmcoreinfo in guest memory")
	}
	return nil
}

// physicalBytes returns guest memory without copying where that is better, else
// in buf.
func physicalBytes(g *vitrine.Guest, a arch.GPA, n uint64, buf []byte) (p, reuse []byte) {
	// An image is read: each of its pages would stay mapped. So is an arm64 guest,
	// for whose kernel all memory is looked through: looking at what it never
	// touched would allocate that.
	if g.Info().Live && g.Arch() != arch.ARM64 {
		if p := g.MapPhysical(a, n); p != nil {
			return p, buf
		}
	}
	if uint64(len(buf)) < n {
		buf = make([]byte, n)
	}
	for at := uint64(0); at < n; {
		m, err := g.ReadPhysical(buf[at:n], a+arch.GPA(at))
		if at += uint64(m); err == nil {
			break
		}
		// An image may lack single pages: they are zero here.
		next := min(at-at%arch.PageSize+arch.PageSize, n)
		clear(buf[at:next])
		at = next
	}
	return buf[:n], buf
}

// rootOf computes where a note says that the kernel's page table lies.
func rootOf(in *vmcoreinfo.Info) (root, bool) {
	va, ok := in.Symbols["swapper_pg_dir"]
	if off, arm := in.Numbers["kimage_voffset"]; ok && arm {
		return armRoot(in, va, uint64(off))
	}
	if ok && va < 1<<32 {
		return root32(in, va)
	}
	base, has := in.Numbers["phys_base"]
	if !ok || !has || va < uint64(imageLow) {
		return root{}, false
	}
	r := root{mode: arch.Paging4Level, from: "vmcoreinfo", addr: arch.GPA(va - uint64(imageLow) + uint64(base))}
	if in.Numbers["pgtable_l5_enabled"] != 0 {
		r.mode = arch.Paging5Level
	}
	return r, r.addr%arch.PageSize == 0
}
