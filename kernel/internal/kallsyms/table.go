package kallsyms

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"sort"
	"sync"
)

// Table is a decoded symbol table, in address order. It may be used
// concurrently.
type Table struct {
	layout Layout
	addrs  []uint64
	starts []uint32 // where in text each name starts; one more at the end
	text   string   // type letter and name of each symbol, back to back

	once   sync.Once // guards the building of what follows, at the first look-up by name
	seed   maphash.Seed
	byName []int32 // number of a symbol plus 1 by the hash of its name, 0 for none
}

// kernelHalf is the lowest address of x86-64 kernel images.
const kernelHalf = 0xffff_ffff_8000_0000

// beforeText is more than lies before what is mapped of an arm64 image: its
// header, 64 KiB.
const beforeText = 1 << 20

// lowest32 is the lowest address of 32-bit kernels, those with the least memory of
// their own for programs (VMSPLIT_1G).
const lowest32 = 0x4000_0000

// word is the size of the kernel's pointers in bytes.
func (p place) word() int {
	if p.base < 1<<32 {
		return 4
	}
	return 8
}

// lowest returns the lowest address that a kernel may start at. Those of arm64
// may be anywhere in the upper half.
func (p place) lowest() uint64 {
	if p.word() == 4 {
		return lowest32
	}
	if p.base >= kernelHalf || p.base < 1<<63 {
		return kernelHalf
	}
	return p.base - beforeText
}

// Form is how the entries of offsets give addresses.
type Form uint8

// The forms. Which one a table has is told by which one puts all symbols in
// ascending order.
const (
	// FormBase: entries are unsigned and count from relative_base, or where
	// there is none from the kernel's start.
	FormBase Form = iota
	// FormAbsolute: an entry that is not negative is an address (of a per-CPU
	// symbol), a negative one -1 minus the distance from relative_base
	// (CONFIG_KALLSYMS_ABSOLUTE_PERCPU, x86-64 until 6.14).
	FormAbsolute
	// FormPlace: an entry is signed and counts from its own address (7.x).
	FormPlace
)

// addresser computes addresses from the entries of offsets.
type addresser struct {
	form Form
	base uint64 // of FormBase and FormAbsolute
	at   uint64 // address of the first entry
}

func (a addresser) addr(i int, off uint32) uint64 {
	signed := uint64(int64(int32(off)))
	switch a.form {
	case FormPlace:
		return a.at + 4*uint64(i) + signed
	case FormAbsolute:
		if int32(off) >= 0 {
			return uint64(off)
		}
		return a.base - 1 - signed
	}
	return a.base + uint64(off)
}

// findOffsets finds the addresses that belong to a layout whose num_syms lies
// at count.
func findOffsets(b []byte, where place, count int, l *Layout) error {
	size := 4 * l.Count
	behind := l.Index + 2*tokenCount
	before := count&^7 - 8
	layouts := []Layout{
		l.with(behind, align8(behind+size), FormAbsolute), // since 6.4
		l.with(behind, align8(behind+size), FormBase),     // since 6.15
		l.with((before-size)&^7, before, FormAbsolute),    // until 6.3
		l.with((before-size)&^7, before, FormBase),        // the same, for one processor
		l.with(behind, -1, FormPlace),                     // 7.x
		l.with(behind, -1, FormBase),
	}
	if where.word() == 4 { // relative_base is a pointer; no per-CPU symbols lie apart
		layouts = []Layout{l.with(count-4-size, count-4, FormBase), l.with(behind, behind+size, FormBase)}
	}
	for _, c := range layouts {
		if c.fits(b, where) && ascending(b[c.Offsets:][:size], c.addresser(b, where), where.lowest()) {
			*l = c
			return nil
		}
	}
	return fmt.Errorf("names of %d symbols found, addresses not: %w", l.Count, ErrNotFound)
}

func (l Layout) with(offsets, base int, form Form) Layout {
	l.Offsets, l.RelativeBase, l.Form = offsets, base, form
	return l
}

// fits reports whether offsets and relative_base lie in b, and the latter can
// be the lowest symbol of a kernel image.
func (l Layout) fits(b []byte, where place) bool {
	if l.Offsets < 0 || l.Offsets+4*l.Count > len(b) || l.RelativeBase+where.word() > len(b) {
		return false
	}
	if l.RelativeBase < 0 {
		return true
	}
	v := where.pointer(b[l.RelativeBase:])
	return v >= where.lowest() && v&0xfff == 0
}

func (l Layout) addresser(b []byte, where place) addresser {
	a := addresser{form: l.Form, base: where.base, at: where.va + uint64(l.Offsets)}
	if l.RelativeBase >= 0 {
		a.base = where.pointer(b[l.RelativeBase:])
	}
	return a
}

// pointer reads a pointer of the kernel's.
func (p place) pointer(b []byte) uint64 {
	if p.word() == 4 {
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return binary.LittleEndian.Uint64(b)
}

// align8 rounds p up to a multiple of 8.
func align8(p int) int { return (p + 7) &^ 7 }

// ascending reports whether the addresses of all symbols are in order, enough
// of them differ, and the highest are a kernel's.
func ascending(b []byte, a addresser, lowest uint64) bool {
	last, distinct := uint64(0), 0
	for p := 0; p < len(b); p += 4 {
		v := a.addr(p/4, binary.LittleEndian.Uint32(b[p:]))
		if v < last {
			return false
		}
		if v != last {
			distinct++
		}
		last = v
	}
	return distinct > len(b)/4/4 && last >= lowest
}

// decode reads a table from a layout that was checked. The guest may have
// changed the bytes since, so it checks what it needs anew.
func decode(b []byte, where place, tok *tokens, l *Layout) (*Table, error) {
	t := &Table{layout: *l, addrs: make([]uint64, l.Count), starts: make([]uint32, 0, l.Count+1)}
	a := l.addresser(b, where)
	for i := range t.addrs {
		t.addrs[i] = a.addr(i, binary.LittleEndian.Uint32(b[l.Offsets+4*i:]))
	}
	if err := t.decodeNames(b[l.Names:l.NamesEnd], tok); err != nil {
		return nil, err
	}
	if !slices.IsSorted(t.addrs) {
		return nil, fmt.Errorf("decode addresses: not in order: %w", ErrFormat)
	}
	return t, nil
}

// short is the length of tokens that are copied as one word.
const short = 8

// decodeNames expands the names of all symbols.
func (t *Table) decodeNames(names []byte, tok *tokens) error {
	var words [tokenCount]uint64
	var lens [tokenCount]int
	for i, s := range tok.text {
		var w [short]byte
		copy(w[:], s)
		words[i], lens[i] = binary.LittleEndian.Uint64(w[:]), len(s)
	}
	text := make([]byte, 6*len(names)+maxName)
	n, p := 0, 0
	for i := range t.addrs {
		size, head := entry(names, p)
		if head == 0 || p+head+size > len(names) {
			return fmt.Errorf("decode name %d: %w", i, ErrFormat)
		}
		start := n
		t.starts = append(t.starts, uint32(start))
		for _, c := range names[p+head : p+head+size] {
			if n+maxTokenTable > len(text) {
				text = slices.Grow(text, len(text)+maxTokenTable)
				text = text[:cap(text)]
			}
			if lens[c] <= short {
				binary.LittleEndian.PutUint64(text[n:], words[c])
			} else {
				copy(text[n:], tok.text[c])
			}
			n += lens[c]
		}
		if n-start < 2 || n-start > maxName || n > maxNames {
			return fmt.Errorf("decode name %d: %d characters, %d of all: %w", i, n-start, n, ErrFormat)
		}
		p += head + size
	}
	t.starts = append(t.starts, uint32(n))
	t.text = string(text[:n])
	return nil
}

// Layout returns where the parts of the table were found.
func (t *Table) Layout() Layout { return t.layout }

// Len returns the number of symbols.
func (t *Table) Len() int { return len(t.addrs) }

// Addr returns the address of symbol i. Per-CPU symbols of kernels until 6.14
// are offsets from zero; later ones are kernel addresses.
func (t *Table) Addr(i int) uint64 { return t.addrs[i] }

// Name returns the name of symbol i.
func (t *Table) Name(i int) string { return t.text[t.starts[i]+1 : t.starts[i+1]] }

// Type returns the letter that nm prints for symbol i.
func (t *Table) Type(i int) byte { return t.text[t.starts[i]] }

// Lookup returns the first symbol of that name.
func (t *Table) Lookup(name string) (int, bool) {
	t.once.Do(t.buildIndex)
	for slot := t.slot(name); ; slot = (slot + 1) & t.mask() {
		i := int(t.byName[slot]) - 1
		if i < 0 || t.Name(i) == name {
			return i, i >= 0
		}
	}
}

// buildIndex fills a hash table with linear probing: a few times faster to
// build than a map, which is what counts here. The seed is random, so that a
// guest cannot make names collide.
func (t *Table) buildIndex() {
	t.seed = maphash.MakeSeed()
	size := 1
	for size < 2*t.Len()+1 {
		size *= 2
	}
	t.byName = make([]int32, size)
	for i := range t.Len() {
		name := t.Name(i)
		slot := t.slot(name)
		for t.byName[slot] != 0 && t.Name(int(t.byName[slot])-1) != name {
			slot = (slot + 1) & t.mask()
		}
		if t.byName[slot] == 0 {
			t.byName[slot] = int32(i) + 1
		}
	}
}

func (t *Table) mask() uint64 { return uint64(len(t.byName) - 1) }

func (t *Table) slot(name string) uint64 { return maphash.String(t.seed, name) & t.mask() }

// At returns the last of the symbols with the highest address that is not
// above a, and false when a lies below all of them.
func (t *Table) At(a uint64) (int, bool) {
	i := sort.Search(len(t.addrs), func(k int) bool { return t.addrs[k] > a }) - 1
	return i, i >= 0
}

// Next returns the lowest address above that of symbol i, 0 when there is none.
func (t *Table) Next(i int) uint64 {
	for k := i + 1; k < len(t.addrs); k++ {
		if t.addrs[k] != t.addrs[i] {
			return t.addrs[k]
		}
	}
	return 0
}
