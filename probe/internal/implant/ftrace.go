package implant

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
)

// ftraceSites are the addresses of the nops that the kernel keeps for ftrace,
// as its own list has them: a nop of five bytes elsewhere may belong to a static
// key, whose code would trip over a jump of ours.
type ftraceSites struct {
	addrs []uint64 // sorted
}

// Bounds for the guest's list.
const (
	maxFtracePages   = 1 << 16
	maxFtraceRecords = 1 << 20
)

// readFtraceSites walks the list at ftrace_pages_start.
func readFtraceSites(f Facts) (*ftraceSites, error) {
	head, _, err := first(f, "ftrace_pages_start")
	if err != nil {
		return nil, fmt.Errorf("the kernel has no ftrace: %w", err)
	}
	r := ftraceReader{f: f}
	for _, m := range []struct {
		to         *uint64
		name, path string
	}{
		{&r.next, "ftrace_page", "next"}, {&r.records, "ftrace_page", "records"}, {&r.index, "ftrace_page", "index"},
		{&r.ip, "dyn_ftrace", "ip"}, {&r.arch, "dyn_ftrace", "arch"},
	} {
		if *m.to, err = f.Offset(m.name, m.path); err != nil && m.to != &r.arch {
			return nil, fmt.Errorf("read ftrace's list: %w", err)
		}
	}
	// The record is ip, flags and an empty structure.
	r.size = 16
	page, err := f.Space().ReadUint64(head)
	for n := 0; err == nil && page != 0; n++ {
		if n == maxFtracePages {
			return nil, errors.New("read ftrace's list: it does not end")
		}
		page, err = r.page(arch.GVA(page))
	}
	if err != nil {
		return nil, fmt.Errorf("read ftrace's list: %w", err)
	}
	slices.Sort(r.addrs)
	return &ftraceSites{r.addrs}, nil
}

type ftraceReader struct {
	f                              Facts
	next, records, index, ip, arch uint64
	size                           uint64
	addrs                          []uint64
	buf                            []byte
}

// page reads one ftrace_page and returns the next.
func (r *ftraceReader) page(p arch.GVA) (uint64, error) {
	as := r.f.Space()
	next, err := as.ReadUint64(p + arch.GVA(r.next))
	if err != nil {
		return 0, err
	}
	records, err := as.ReadUint64(p + arch.GVA(r.records))
	if err != nil {
		return 0, err
	}
	n, err := as.ReadUint32(p + arch.GVA(r.index))
	if err != nil {
		return 0, err
	}
	if uint64(n)+uint64(len(r.addrs)) > maxFtraceRecords {
		return 0, errors.New("it is too long")
	}
	r.buf = slices.Grow(r.buf[:0], int(uint64(n)*r.size))[:uint64(n)*r.size]
	if _, err := as.Read(r.buf, arch.GVA(records)); err != nil {
		return 0, err
	}
	for b := r.buf; uint64(len(b)) >= r.size; b = b[r.size:] {
		r.addrs = append(r.addrs, binary.LittleEndian.Uint64(b[r.ip:]))
	}
	return next, nil
}

// within returns ftrace's place among the first bytes of the function at a.
func (s *ftraceSites) within(a arch.GVA) (arch.GVA, bool) {
	i, _ := slices.BinarySearch(s.addrs, uint64(a))
	if i < len(s.addrs) && s.addrs[i]-uint64(a) <= 4 {
		return arch.GVA(s.addrs[i]), true
	}
	return 0, false
}

// Errors that say why a function cannot be probed by an implant.
var (
	// errNoSite is returned for a function without ftrace's nop.
	errNoSite = errors.New("the kernel has no ftrace nop there (it is assembly, or marked notrace)")
	// errNoInstr is returned for code that may run before the kernel is ready for
	// what hooks do, such as the first lines of an interrupt.
	errNoInstr = errors.New("it is code that the kernel allows nobody to instrument (noinstr)")
	// errTaken is returned when something else has hooked the function.
	errTaken = errors.New("its ftrace nop is in use already, by the guest's own tracing or a kprobe")
)

// sections are the parts of the kernel's text that hold such code.
var sections = [][2]string{
	{"__noinstr_text_start", "__noinstr_text_end"},
	{"__entry_text_start", "__entry_text_end"},
	{"__cpuidle_text_start", "__cpuidle_text_end"},
}

// noInstr reports whether a lies in one of them.
func noInstr(f Facts, a arch.GVA) bool {
	for _, s := range sections {
		start, ok := f.Symbol(s[0])
		end, okEnd := f.Symbol(s[1])
		if ok && okEnd && a >= start && a < end {
			return true
		}
	}
	return false
}

// siteOf returns the place to patch of the function at a.
func siteOf(f Facts, s *ftraceSites, a arch.GVA) (site, error) {
	at, ok := s.within(a)
	switch {
	case !ok && noInstr(f, a):
		return site{}, errNoInstr
	case !ok:
		return site{}, errNoSite
	}
	var b [nopSize]byte
	if _, err := f.Space().Read(b[:], at); err != nil {
		return site{}, err
	}
	nop, ok := isNop(b[:])
	if to, jumps := jumpTarget(at, b[:]); jumps {
		if _, ours := regionOf(f.Space(), to); ours {
			return site{}, errOther
		}
	}
	if !ok {
		return site{}, fmt.Errorf("%w (% x at %v)", errTaken, b, at)
	}
	return site{addr: at, nop: nop}, nil
}
