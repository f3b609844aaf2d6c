package implant

import (
	"context"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Repair takes out implants that killed runs have left in the guest. It tells
// what it found, in words; nothing when there was none. The guest is stopped
// only if there is one.
func Repair(ctx context.Context, g *vitrine.Guest, f Facts) ([]string, error) {
	left, err := findLeft(f)
	if err != nil || len(left) == 0 {
		return nil, err
	}
	m, err := take(ctx, g, f)
	if err != nil {
		return nil, fmt.Errorf("take out implant of another run: %w", err)
	}
	var found []string
	var errs []error
	for _, p := range left {
		if err := p.leave(ctx, m); err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, fmt.Sprintf("took out an implant of another run: %d hooked functions, %d KiB of memory", p.hooked, (p.size+p.dataLen)/1024))
	}
	return found, errors.Join(append(errs, m.release())...)
}

// errOther is returned for what an implant of another run has hooked.
var errOther = errors.New("an implant of another run has hooked it")

// noOther returns an error if there is an implant in the guest's kernel.
func noOther(f Facts) error {
	others, err := findLeft(f)
	switch {
	case err != nil:
		return err
	case len(others) > 0:
		return fmt.Errorf("%w: an implant of another run is in the guest's kernel, in %d functions; if that run has ended, 'vitrine repair' takes it out",
			vitrine.ErrBusy, others[0].hooked)
	}
	return nil
}

// leftover is an implant that somebody else planted.
type leftover struct {
	planted
	hooked int // functions that jump to it
}

// maxLeft bounds the implants looked for: each takes one run that was killed.
const maxLeft = 64

// findLeft looks through ftrace's places for jumps to stubs of an implant. All
// that it reads is the guest's word: what it returns is made to change nothing
// but such jumps into nops, return addresses in the region into the gadget, and
// to free the region.
func findLeft(f Facts) ([]*leftover, error) {
	f.Space().Invalidate() // the regions of earlier runs may have been where there is another now
	sites, err := readFtraceSites(f)
	if err != nil {
		return nil, err
	}
	r := siteReader{as: f.Space()}
	byBase := map[arch.GVA]*leftover{}
	var all []*leftover
	for _, a := range sites.addrs {
		at := arch.GVA(a)
		b := r.at(at)
		to, ok := jumpTarget(at, b)
		if !ok {
			continue
		}
		base, ok := regionOf(f.Space(), to)
		if !ok {
			continue
		}
		p := byBase[base]
		if p == nil {
			if len(all) == maxLeft {
				return nil, errors.New("find implants: too many")
			}
			if p, err = readLeft(f, base); err != nil {
				return nil, fmt.Errorf("find implants: %w", err)
			}
			byBase[base] = p
			all = append(all, p)
		}
		if p.hooks(at, to) {
			p.hooked++
		}
	}
	return all, nil
}

// siteReader reads kernel text in pieces: the places are sorted and dense.
type siteReader struct {
	as    *vitrine.AddressSpace
	start arch.GVA
	buf   [1 << 16]byte
	n     int
}

// at returns the bytes of a place, nil when they cannot be read.
func (r *siteReader) at(a arch.GVA) []byte {
	if off := uint64(a - r.start); r.n > 0 && off+nopSize <= uint64(r.n) {
		return r.buf[off : off+nopSize]
	}
	r.start = a
	r.n, _ = r.as.Read(r.buf[:], a)
	if r.n < nopSize {
		return nil
	}
	return r.buf[:nopSize]
}

// regionOf returns the code region whose stub starts at a.
func regionOf(as *vitrine.AddressSpace, a arch.GVA) (arch.GVA, bool) {
	var b [stubEntry]byte
	if _, err := as.Read(b[:], a-stubEntry); err != nil || le64(b[:]) != stubMagic {
		return 0, false
	}
	base := a - stubEntry - arch.GVA(le32(b[12:]))
	return base, base == base.Page()
}

var errNotOurs = errors.New("a region looks like an implant and is none of this version")

// readLeft reads the header and the sites of a code region.
func readLeft(f Facts, base arch.GVA) (*leftover, error) {
	var h [codeHeaderSize]byte
	as := f.Space()
	if _, err := as.Read(h[:], base); err != nil {
		return nil, err
	}
	n := le32(h[codeHdrFuncs:])
	p := &leftover{}
	p.code = code{
		base: base, size: le64(h[codeHdrSize:]), data: arch.GVA(le64(h[codeHdrData:])), dataLen: le64(h[codeHdrDataLen:]),
		frame: le32(h[codeHdrFrame:]), stubs: le32(h[codeHdrStubs:]), sitesAt: le32(h[codeHdrSites:]), gadget: arch.GVA(le64(h[codeHdrGadget:])),
	}
	switch {
	case le64(h[codeHdrMagic:]) != codeMagic || le32(h[codeHdrVersion:]) != codeVersion,
		n == 0 || n > maxFuncs, p.size != pageUp(p.size) || p.size > 1<<20, p.dataLen > 1<<30, p.data != p.data.Page(),
		uint64(p.sitesAt)+uint64(n)*siteSize > p.size, uint64(p.stubs)+uint64(n)*stubSize > uint64(p.sitesAt):
		return nil, errNotOurs
	}
	table := make([]byte, n*siteSize)
	if _, err := as.Read(table, base+arch.GVA(p.sitesAt)); err != nil {
		return nil, err
	}
	for ; len(table) >= siteSize; table = table[siteSize:] {
		nop, ok := isNop(table[8:])
		if !ok {
			return nil, errNotOurs
		}
		p.sites = append(p.sites, site{addr: arch.GVA(le64(table)), nop: nop})
	}
	return p, p.checkGadget(f)
}

// checkGadget makes sure that the gadget does what a stub's end does.
func (p *leftover) checkGadget(f Facts) error {
	var b [endingSize]byte
	if _, err := f.Space().Read(b[:], p.gadget); err != nil {
		return err
	}
	if string(b[:3]) != "\x48\x83\xc4" || uint32(b[3]) != p.frame {
		return errNotOurs
	}
	_, err := returnForm(f, p.gadget+4, b[4:])
	return err
}

// hooks reports whether the jump at a site to a stub is in the region's table.
func (p *leftover) hooks(at, to arch.GVA) bool {
	i := (uint64(to-p.base) - uint64(p.stubs)) / stubSize
	return i < uint64(len(p.sites)) && p.sites[i].addr == at && p.stub(int(i)) == to
}
