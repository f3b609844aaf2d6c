package dump

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// memory is what an image has of a guest's physical memory. Its methods may be
// called concurrently.
type memory interface {
	// read fills p from a; see vitrine.Backend.ReadPhysical.
	read(p []byte, a uint64) (int, error)
	// slice returns n bytes at a without copying, nil when it cannot.
	slice(a, n uint64) []byte
	// regions returns the RAM, sorted, without overlap.
	regions() []vitrine.Region
}

// Limits on what an image may ask for.
const (
	maxExtents = 4 << 20  // of AVML, 64 KiB each: 256 GiB of RAM
	maxRegions = 64 << 10 // told to callers; further holes are filled
	maxAddress = 1 << 52  // of guest-physical memory: no processor has more
)

// extent is a range of guest-physical memory that lies in the file in one
// piece, as it is or compressed.
type extent struct {
	start uint64 // guest-physical
	off   uint64 // in the file
	size  uint32 // of a compressed one, uncompressed; likewise below
	csize uint32 // bytes in the file
	codec codec
}

// span is a plain range: start, size and place in the file.
type span struct {
	start, size, off uint64
	lost             bool // not there: the file ends before it, or
	left             bool // it was left out when the file was made
}

func (s span) end() uint64 { return s.start + s.size }

// linear is memory in pieces that a list tells.
type linear struct {
	file  blob
	spans []span // sorted by start, without overlap
}

// newLinear makes memory of spans, which may overlap: of two that hold the same
// address the one that starts first counts, and of those the longer one. Parts
// beyond the end of the file are lost.
func newLinear(file blob, spans []span) *linear {
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(b.size, a.size))
	})
	m := &linear{file: file}
	var end uint64
	for _, s := range spans {
		s.size = min(s.size, maxAddress-min(s.start, maxAddress))
		if s.start < end {
			cut := min(end-s.start, s.size)
			s.start, s.off, s.size = s.start+cut, s.off+cut, s.size-cut
		}
		if s.size == 0 || s.off > math.MaxInt64 {
			continue
		}
		end = s.end()
		m.addClipped(s)
	}
	return m
}

// missing returns how many bytes the file should have and does not, and how many
// were left out when it was made.
func (m *linear) missing() (lost, left uint64) {
	for _, s := range m.spans {
		switch {
		case s.left:
			left += s.size
		case s.lost:
			lost += s.size
		}
	}
	return lost, left
}

// setLinear makes memory of spans the image's, and says where some is missing.
func (im *image) setLinear(b blob, spans []span) {
	m := newLinear(b, spans)
	say := func(n uint64, format string) {
		if n == 0 {
			return
		}
		if im.detail != "" {
			im.detail += ", "
		}
		im.detail += fmt.Sprintf(format, (n+1023)>>10)
	}
	lost, left := m.missing()
	say(lost, "cut off: the file ends %d KiB of memory too early")
	say(left, "without %d KiB of memory that were left out")
	im.mem = m
}

// addClipped adds s in up to two pieces: what the file has, and what is lost.
func (m *linear) addClipped(s span) {
	have := min(s.size, m.file.size()-min(m.file.size(), s.off))
	if s.left {
		have = 0
	}
	m.add(span{start: s.start, size: have, off: s.off})
	m.add(span{start: s.start + have, size: s.size - have, off: s.off + have, lost: true, left: s.left})
}

// add appends s, joining it to the last one where they continue each other.
func (m *linear) add(s span) {
	if s.size == 0 {
		return
	}
	if n := len(m.spans); n > 0 {
		last := &m.spans[n-1]
		if last.end() == s.start && last.off+last.size == s.off && last.lost == s.lost && last.left == s.left {
			last.size += s.size
			return
		}
	}
	m.spans = append(m.spans, s)
}

// find returns the span that holds a, nil when there is none.
func (m *linear) find(a uint64) *span {
	i := sort.Search(len(m.spans), func(k int) bool { return m.spans[k].start > a }) - 1
	if i < 0 || a >= m.spans[i].end() {
		return nil
	}
	return &m.spans[i]
}

func (m *linear) read(p []byte, a uint64) (int, error) {
	done := 0
	for done < len(p) {
		at := a + uint64(done)
		s := m.find(at)
		switch {
		case s == nil:
			return done, noRAM(at)
		case s.left:
			return done, missing(at, "it was left out when the file was made")
		case s.lost:
			return done, missing(at, "the file ends before it")
		}
		n := int(min(uint64(len(p)-done), s.end()-at))
		k, err := m.file.readAt(p[done:done+n], s.off+(at-s.start))
		done += k
		if err != nil {
			return done, missing(at+uint64(k), err.Error())
		}
	}
	return done, nil
}

func (m *linear) slice(a, n uint64) []byte {
	s := m.find(a)
	if s == nil || s.lost || n > s.end()-a {
		return nil
	}
	return m.file.slice(s.off+(a-s.start), n)
}

func (m *linear) regions() []vitrine.Region {
	var out regionList
	for _, s := range m.spans {
		if !s.lost {
			out.add(s.start, s.size)
		}
	}
	return out
}

// regionList grows by ascending ranges.
type regionList []vitrine.Region

// add appends a range behind all others, joined to the last one where they
// touch, or where there are too many.
func (l *regionList) add(start, size uint64) {
	if size == 0 {
		return
	}
	if n := len(*l); n > 0 {
		last := &(*l)[n-1]
		if uint64(last.End()) == start || n >= maxRegions {
			last.Size = start + size - uint64(last.Start)
			return
		}
	}
	*l = append(*l, vitrine.Region{Start: arch.GPA(start), Size: size})
}
