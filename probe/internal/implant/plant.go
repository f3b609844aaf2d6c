package implant

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// function is a kernel function with what is wanted of it.
type function struct {
	name     string
	addr     arch.GVA
	flags    uint32
	about    uint32
	captures []capture
}

// capture is memory to copy into an entry's record.
type capture struct {
	arg, kind, lenArg, when, unit, off uint8
	max                                uint16
}

// settings are what the guest side is told beside its functions.
type settings struct {
	slots    int
	lossless bool
	filter   filter
	kept     []uint32 // ids beside the filter's that it means, if it follows
}

// planted is an implant in a guest.
type planted struct {
	code
	l layout
	m *memory // nil for an implant that another run has planted

	gated bool // its stubs have gates
}

// seed is an implant that has not been planted: all that can be found out and
// computed while the guest runs.
type seed struct {
	planted
	obj    *object
	end    ending
	values map[string]uint64 // of the object's symbols
	fns    []function
	set    *settings
}

var errNoMemory = errors.New("the guest has no memory to give")

// newSeed prepares an implant for the functions. It does not touch the guest.
func newSeed(f Facts, fns []function, set *settings) (*seed, error) {
	s := &seed{fns: fns, set: set}
	var err error
	if s.obj, err = loadObject(); err != nil {
		return nil, err
	}
	if s.end, err = findEnding(f); err != nil {
		return nil, err
	}
	s.l = newLayout(len(fns), set.slots)
	s.frame, s.gadget, s.dataLen = s.end.frame, s.end.gadget, s.l.size
	if err := s.findSites(f); err != nil {
		return nil, err
	}
	s.stubs, s.sitesAt, s.size = codeLayout(len(s.obj.text), len(fns))
	s.values, err = constants(f, s.l, s.frame)
	return s, err
}

// plant places the implant, with the guest stopped at the beginning and the
// end. After an error nothing of it is in the guest, except memory that could
// not be given back, which the error names.
func (p *seed) plant(ctx context.Context, m *machine) (*planted, error) {
	err := m.borrow(ctx, func(t *thread) error {
		if err := p.allocate(t); err != nil {
			return err
		}
		if err := p.install(m, t.cpu); err != nil {
			return errors.Join(err, left(p.unpatch(m, t.cpu)), left(p.free(t)))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("plant implant: %w", err)
	}
	return &p.planted, nil
}

func (p *seed) findSites(f Facts) error {
	sites, err := readFtraceSites(f)
	if err != nil {
		return err
	}
	for _, fn := range p.fns {
		s, err := siteOf(f, sites, fn.addr)
		if err != nil {
			return fmt.Errorf("probe %s: %w", fn.name, err)
		}
		p.sites = append(p.sites, s)
	}
	return nil
}

// canAllocate reports whether the kernel has what allocate calls.
func canAllocate(f Facts) error {
	_, name, err := first(f, "execmem_alloc", "module_alloc")
	if err == nil && name == "execmem_alloc" {
		_, err = f.Enum("execmem_type", "EXECMEM_MODULE_TEXT")
	}
	for _, names := range [][]string{{"vzalloc_noprof", "vzalloc"}, {"vfree"}, {"execmem_free", "module_memfree", "vfree"}, {"set_memory_x"}} {
		if err == nil {
			_, _, err = first(f, names...)
		}
	}
	return err
}

// allocate gets memory for code, near the kernel's text, and for data.
func (p *planted) allocate(t *thread) error {
	f := t.m.f
	base, err := p.allocateCode(t)
	if err != nil {
		return err
	}
	p.base = base
	vzalloc, _, err := first(f, "vzalloc_noprof", "vzalloc") // renamed in 6.10
	if err != nil {
		return errors.Join(err, left(p.free(t)))
	}
	data, err := t.call(vzalloc, p.l.size)
	if err == nil && data == 0 {
		err = fmt.Errorf("%w: %d bytes for the ring", errNoMemory, p.l.size)
	}
	p.data = arch.GVA(data)
	if err != nil {
		return errors.Join(err, left(p.free(t)))
	}
	return nil
}

func (p *planted) allocateCode(t *thread) (arch.GVA, error) {
	f := t.m.f
	alloc, name, err := first(f, "execmem_alloc", "module_alloc") // execmem since 6.10
	if err != nil {
		return 0, err
	}
	args := []uint64{p.size}
	if name == "execmem_alloc" {
		kind, err := f.Enum("execmem_type", "EXECMEM_MODULE_TEXT")
		if err != nil {
			return 0, err
		}
		args = []uint64{uint64(kind), p.size}
	}
	v, err := t.call(alloc, args...)
	if err != nil {
		return 0, err
	}
	base := arch.GVA(v)
	if base == 0 || base != base.Page() {
		return 0, fmt.Errorf("%w: %d bytes for code", errNoMemory, p.size)
	}
	f.Space().Invalidate()
	if err := p.makeExecutable(t, base); err != nil {
		p.base = base
		return 0, errors.Join(err, left(p.free(t)))
	}
	return base, nil
}

// makeExecutable clears the no-execute bits, where the allocator has set them:
// since 6.14 it may hand out memory that is ready for code.
func (p *planted) makeExecutable(t *thread, base arch.GVA) error {
	w, err := t.m.as.Walk(base)
	if err != nil {
		return err
	}
	if !w.NoExec {
		return nil
	}
	set, _, err := first(t.m.f, "set_memory_x")
	if err != nil {
		return err
	}
	r, err := t.call(set, uint64(base), p.size/pageSize)
	if err == nil && int32(r) != 0 {
		err = fmt.Errorf("make memory executable: error %d", int32(r))
	}
	t.m.as.Invalidate()
	return err
}

// free gives the memory back by calls on t.
func (p *planted) free(t *thread) error {
	f := t.m.f
	var errs []error
	if p.data != 0 {
		if vfree, _, err := first(f, "vfree"); err != nil {
			errs = append(errs, err)
		} else if _, err := t.call(vfree, uint64(p.data)); err != nil {
			errs = append(errs, fmt.Errorf("free %d bytes at %v: %w", p.dataLen, p.data, err))
		} else {
			p.data = 0
		}
	}
	if p.base != 0 {
		if free, _, err := first(f, "execmem_free", "module_memfree", "vfree"); err != nil {
			errs = append(errs, err)
		} else if _, err := t.call(free, uint64(p.base)); err != nil {
			errs = append(errs, fmt.Errorf("free %d bytes at %v: %w", p.size, p.base, err))
		} else {
			p.base = 0
		}
	}
	f.Space().Invalidate()
	return errors.Join(errs...)
}

// install writes data, code and jumps. The guest stands still.
func (p *seed) install(m *machine, cpu int) error {
	var err error
	// What lies before the ring is written now; the ring is translated later.
	if p.m, err = newMemory(m.as, p.data, p.l.ring); err != nil {
		return err
	}
	if err := p.writeData(m); err != nil {
		return err
	}
	image, err := p.linked()
	if err != nil {
		return err
	}
	jumps, err := p.jumps(m)
	if err != nil {
		return err
	}
	all := append([]vitrine.Code{{Addr: p.base, Bytes: image}}, jumps...)
	if err := m.ctl.WriteCode(cpu, all...); err != nil {
		return err
	}
	return readBack(m.as, all)
}

// linked returns the code region's bytes.
func (p *seed) linked() ([]byte, error) {
	text := p.base + codeHeaderSize
	p.values["vt_data"] = uint64(p.data)
	p.values["__x86_return_thunk"] = uint64(p.end.thunk)
	if p.end.thunk == 0 {
		p.values["__x86_return_thunk"] = uint64(text) + p.obj.defined["vt_plain_return"]
	}
	if p.values[clockFunc] == 0 {
		p.values[clockFunc] = uint64(text) + p.obj.defined["vt_no_clock"]
	}
	linked, err := p.obj.link(text, p.values)
	if err != nil {
		return nil, err
	}
	gates := newGates(p.fns, &p.set.filter, p.values, p.data+arch.GVA(p.l.bitmap))
	p.gated = gates != nil
	return p.image(linked, text+arch.GVA(p.obj.defined["vt_enter_trampoline"]), text+arch.GVA(p.obj.defined["vt_leave_trampoline"]), gates)
}

// readBack makes sure that what was written is there.
func readBack(as *vitrine.AddressSpace, pieces []vitrine.Code) error {
	var buf []byte
	for _, c := range pieces {
		buf = slices.Grow(buf[:0], len(c.Bytes))[:len(c.Bytes)]
		if _, err := as.Read(buf, c.Addr); err != nil || !bytes.Equal(buf, c.Bytes) {
			return fmt.Errorf("write code at %v: it does not read back: %w", c.Addr, err)
		}
	}
	return nil
}

// jumps returns what the nops are replaced by.
func (p *planted) jumps(m *machine) ([]vitrine.Code, error) {
	var pieces []vitrine.Code
	for i, s := range p.sites {
		b, err := jump(s.addr, p.stub(i))
		if err != nil {
			return nil, err
		}
		var now [nopSize]byte
		if _, err := m.as.Read(now[:], s.addr); err != nil {
			return nil, err
		}
		if now != s.nop {
			return nil, fmt.Errorf("patch %v: %w", s.addr, errTaken)
		}
		pieces = append(pieces, vitrine.Code{Addr: s.addr, Bytes: b[:]})
	}
	return pieces, nil
}

// translate makes the whole data region known to the host side.
func (p *planted) translate(as *vitrine.AddressSpace) error {
	all, err := newMemory(as, p.data, p.l.size)
	if err == nil {
		p.m = all
	}
	return err
}

// unpatch turns those of the jumps that are ours into nops again.
func (p *planted) unpatch(m *machine, cpu int) error {
	var pieces []vitrine.Code
	var errs []error
	for i, s := range p.sites {
		var now [nopSize]byte
		if _, err := m.as.Read(now[:], s.addr); err != nil {
			errs = append(errs, err)
			continue
		}
		if to, ok := jumpTarget(s.addr, now[:]); !ok || to != p.stub(i) {
			continue
		}
		pieces = append(pieces, vitrine.Code{Addr: s.addr, Bytes: s.nop[:]})
	}
	if err := m.ctl.WriteCode(cpu, pieces...); err != nil {
		errs = append(errs, fmt.Errorf("restore code: %w", err))
	} else {
		errs = append(errs, readBack(m.as, pieces))
	}
	return errors.Join(errs...)
}

// writeData fills in the header and the function table; the rest is zero.
func (p *seed) writeData(m *machine) error {
	h := make([]byte, hdrEnd)
	le := binary.LittleEndian
	le.PutUint64(h[hdrMagic:], headerMagic)
	le.PutUint64(h[hdrUnits:], p.l.units)
	le.PutUint64(h[hdrSize:], p.l.size)
	le.PutUint64(h[hdrCode:], uint64(p.base))
	le.PutUint64(h[hdrStale:], staleTicks(m.f))
	le.PutUint64(h[hdrEvery:], staleTicks(m.f)/staleSeconds/clockFirst)
	le.PutUint64(h[hdrMost:], staleTicks(m.f)/staleSeconds/clockMost)
	mode := p.set.filter.fill(h)
	if p.set.lossless {
		mode |= modeLossless
	}
	le.PutUint32(h[hdrMode:], mode)
	if err := p.m.write(h, 0); err != nil {
		return err
	}
	for i, fn := range p.fns {
		if err := p.m.write(fn.encode(), funcsOffset+uint64(i)*funcSize); err != nil {
			return err
		}
	}
	if !p.set.filter.follow {
		return p.set.filter.fillBitmap(p.m, p.l.bitmap)
	}
	ids, err := livingFamily(m, append(p.set.kept, p.set.filter.tgids...))
	if err != nil {
		return err
	}
	return (&filter{tgids: ids}).fillBitmap(p.m, p.l.bitmap)
}

// encode returns the function's entry in the table.
func (fn *function) encode() []byte {
	b := make([]byte, funcSize)
	n := min(len(fn.captures), maxCaptures)
	binary.LittleEndian.PutUint32(b, fn.flags)
	binary.LittleEndian.PutUint32(b[4:], uint32(n))
	binary.LittleEndian.PutUint32(b[funcAbout:], fn.about)
	for i, c := range fn.captures[:n] {
		q := b[funcCaptures+i*captureSize:]
		q[0], q[1], q[4], q[5], q[6], q[7] = c.arg, c.kind, c.lenArg, c.when, c.unit, c.off
		binary.LittleEndian.PutUint16(q[2:], c.max)
	}
	return b
}

// staleSeconds is how long a waiting thread believes in a host without a sign
// of life.
const staleSeconds = 2

// staleTicks returns that in ticks of the guest's TSC, whose rate the kernel
// has measured.
func staleTicks(f Facts) uint64 {
	khz := uint32(2_000_000)
	if a, ok := f.Symbol("tsc_khz"); ok {
		if v, err := f.Space().ReadUint32(a); err == nil && v >= 1000 && v < 100_000_000 {
			khz = v
		}
	}
	return uint64(khz) * 1000 * staleSeconds
}
