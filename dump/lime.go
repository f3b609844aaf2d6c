package dump

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/klauspost/compress/snappy"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// LiME and AVML images are ranges of memory, each behind a header of 32 bytes:
// magic, version, first and last address, 8 bytes of nothing. Version 2 of AVML
// holds a range as a snappy stream (github.com/google/snappy,
// framing_format.txt) and behind it the stream's length in 8 bytes.

const (
	limeMagic  = "EMiL"
	avmlMagic  = "AVML"
	limeHeader = 32
)

// limeRange is a header.
type limeRange struct {
	packed      bool
	start, size uint64
}

func (im *image) loadLiME(ctx context.Context, b blob) error {
	im.format = LiME
	m := &framed{file: b}
	var spans []span
	for off := uint64(0); off+limeHeader <= b.size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := limeRangeAt(b, off)
		if err != nil {
			if len(spans)+len(m.extents) == 0 {
				return err
			}
			im.detail = fmt.Sprintf("damaged at %#x", off)
			break // keep what lies before it
		}
		off += limeHeader
		if !r.packed {
			spans = append(spans, span{start: r.start, size: r.size, off: off})
			off += min(r.size, b.size())
			continue
		}
		im.format = AVML
		next, err := m.addStream(b, off, r)
		if err != nil {
			im.detail = fmt.Sprintf("damaged at %#x: %v", next, err)
			break
		}
		off = next
	}
	if len(m.extents) == 0 {
		im.setLinear(b, spans)
		return nil
	}
	m.plain = newLinear(b, spans)
	m.sort()
	im.mem = m
	return nil
}

// limeRangeAt reads the header at off.
func limeRangeAt(b blob, off uint64) (limeRange, error) {
	p := make([]byte, limeHeader)
	if _, err := b.readAt(p, off); err != nil {
		return limeRange{}, err
	}
	c := guestio.NewCursor(p)
	magic, version := string(c.Bytes(4)), c.Uint32()
	r := limeRange{packed: magic == avmlMagic && version == 2, start: c.Uint64()}
	last := c.Uint64()
	switch {
	case !r.packed && (magic != limeMagic || version != 1):
		return r, malformed("header at %#x is of %q version %d", off, magic, version)
	case last < r.start || last >= maxAddress:
		return r, malformed("header at %#x is of memory from %#x to %#x", off, r.start, last)
	}
	r.size = last - r.start + 1
	return r, nil
}

// Kinds of chunks of a snappy stream.
const (
	chunkPacked   = 0x00
	chunkPlain    = 0x01
	chunkReserved = 0x80 // this and the following kinds are to be skipped
	chunkStart    = 0xff
)

// framed is memory in pieces that are compressed each.
type framed struct {
	file    blob
	plain   *linear // ranges that are not
	extents []extent
	cache   expanded
}

// addStream notes the chunks of the stream at off, and returns where what
// follows it begins.
func (m *framed) addStream(b blob, off uint64, r limeRange) (uint64, error) {
	begin, done := off, uint64(0)
	for done < r.size {
		kind, n, err := chunkAt(b, off)
		if err != nil {
			return off, err
		}
		body := off + 4
		off = body + n
		if kind >= chunkReserved {
			continue
		}
		e, err := chunkExtent(b, kind, body, n)
		if err != nil {
			return off, err
		}
		if uint64(e.size) > r.size-done || len(m.extents) >= maxExtents {
			return off, malformed("more memory than its header says")
		}
		e.start = r.start + done
		done += uint64(e.size)
		m.extents = append(m.extents, e)
	}
	var p [8]byte
	if _, err := b.readAt(p[:], off); err != nil {
		return off, err
	}
	if n := binary.LittleEndian.Uint64(p[:]); n != off-begin {
		return off, malformed("a stream of %d bytes is said to have %d", off-begin, n)
	}
	return off + 8, nil
}

// chunkAt reads the header of the chunk at off: its kind and its length.
func chunkAt(b blob, off uint64) (kind byte, n uint64, err error) {
	var p [4]byte
	if _, err := b.readAt(p[:], off); err != nil {
		return 0, 0, err
	}
	kind, n = p[0], uint64(p[1])|uint64(p[2])<<8|uint64(p[3])<<16
	if kind > chunkPlain && kind < chunkReserved {
		return 0, 0, malformed("a chunk of kind %#x", kind)
	}
	if n > b.size()-off-4 {
		return 0, 0, malformed("the file ends within a chunk")
	}
	return kind, n, nil
}

// chunkExtent describes a chunk of n bytes at body, which start with a checksum.
func chunkExtent(b blob, kind byte, body, n uint64) (extent, error) {
	if n < 5 || n > 2*maxPiece {
		return extent{}, malformed("a chunk of %d bytes", n)
	}
	e := extent{off: body + 4, csize: uint32(n - 4), size: uint32(n - 4)}
	if kind == chunkPacked {
		p := make([]byte, min(n-4, 10))
		if _, err := b.readAt(p, e.off); err != nil {
			return e, err
		}
		size, err := snappy.DecodedLen(p)
		if err != nil {
			return e, err
		}
		e.codec, e.size = codecSnappy, uint32(min(size, maxPiece+1))
	}
	if e.size == 0 || e.size > maxPiece {
		return e, malformed("a chunk of %d bytes uncompressed", e.size)
	}
	return e, nil
}

// sort puts the pieces in order. Of two that overlap the first one counts.
func (m *framed) sort() {
	slices.SortStableFunc(m.extents, func(a, b extent) int { return cmp.Compare(a.start, b.start) })
	end := uint64(0)
	m.extents = slices.DeleteFunc(m.extents, func(e extent) bool {
		if e.start < end {
			return true
		}
		end = e.start + uint64(e.size)
		return false
	})
}

func (m *framed) read(p []byte, a uint64) (int, error) {
	done := 0
	for done < len(p) {
		at := a + uint64(done)
		i := sort.Search(len(m.extents), func(k int) bool { return m.extents[k].start > at }) - 1
		if i < 0 || at-m.extents[i].start >= uint64(m.extents[i].size) {
			n, err := m.plain.read(p[done:done+int(min(uint64(len(p)-done), m.gap(i+1, at)))], at)
			done += n
			if err != nil {
				return done, err
			}
			continue
		}
		e := m.extents[i]
		piece, err := m.cache.get(e.off, func() ([]byte, error) {
			return expandAt(m.file, e.codec, e.off, uint64(e.csize), uint64(e.size))
		})
		if err != nil {
			return done, missing(at, err.Error())
		}
		done += copy(p[done:], piece[at-e.start:])
	}
	return done, nil
}

// gap returns how many bytes lie between at and piece i.
func (m *framed) gap(i int, at uint64) uint64 {
	if i >= len(m.extents) {
		return maxAddress
	}
	return m.extents[i].start - at
}

func (m *framed) slice(a, n uint64) []byte { return m.plain.slice(a, n) }

func (m *framed) regions() []vitrine.Region {
	spans := slices.Clone(m.plain.spans)
	for _, e := range m.extents {
		if n := len(spans); n > 0 && spans[n-1].end() == e.start {
			spans[n-1].size += uint64(e.size)
			continue
		}
		spans = append(spans, span{start: e.start, size: uint64(e.size)})
	}
	slices.SortStableFunc(spans, func(a, b span) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	var out regionList
	for _, s := range spans {
		if n := len(out); n > 0 && s.start < uint64(out[n-1].End()) {
			continue
		}
		if !s.lost {
			out.add(s.start, s.size)
		}
	}
	return out
}
