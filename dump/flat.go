package dump

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sort"
)

// The flattened form of makedumpfile -F and of QEMU: a stream of records, each
// a place in the kdump file, a length, and that many bytes. Numbers are
// big-endian; a record of -1 ends it. Format: struct makedumpfile_header and
// makedumpfile_data_header of makedumpfile.h.

const (
	flatMagic  = "makedumpfile"
	flatHeader = 4096
	maxRecords = 4 << 20
)

// record is a piece of the file that a flattened one stands for.
type record struct {
	at, off, size uint64 // place in the kdump file, place in this one, bytes
}

// flat is the file that a flattened one stands for. Bytes that no record has
// are zero.
type flat struct {
	inner   blob
	records []record // sorted by place, without overlap
	n       uint64
	cut     bool // it ends without its end mark
}

func (im *image) loadFlattened(ctx context.Context, b blob) error {
	f, err := readFlat(ctx, b)
	if err != nil {
		return fmt.Errorf("%s: %w", Flattened, err)
	}
	err = im.loadKDump(ctx, f)
	im.format = Flattened
	if f.cut {
		im.detail += ", cut off"
	}
	return err
}

// readFlat lists the records of a flattened file, as far as they go.
func readFlat(ctx context.Context, b blob) (*flat, error) {
	f := &flat{inner: b, cut: true}
	var head [16]byte
	for off := uint64(flatHeader); ; {
		if _, err := b.readAt(head[:], off); err != nil {
			break
		}
		at, size := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint64(head[8:])
		if at == ^uint64(0) {
			f.cut = false
			break
		}
		off += 16
		if at >= 1<<62 || size > b.size() {
			break
		}
		have := min(size, b.size()-off)
		if len(f.records) >= maxRecords {
			return nil, malformed("more than %d records", maxRecords)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if have > 0 {
			f.add(record{at: at, off: off, size: have})
		}
		if have < size {
			break
		}
		off += size
	}
	if len(f.records) == 0 {
		return nil, malformed("it holds no record")
	}
	f.settle()
	return f, nil
}

// add appends a record.
func (f *flat) add(r record) {
	f.records = append(f.records, r)
	f.n = max(f.n, r.at+r.size)
}

// settle sorts the records and cuts overlaps: the later one in the stream
// replaces what an earlier one wrote, as it would in the file.
func (f *flat) settle() {
	sorted := slices.IsSortedFunc(f.records, func(a, b record) int { return cmp.Compare(a.at, b.at) })
	if !sorted || f.overlaps() {
		f.records = overlay(f.records)
	}
}

func (f *flat) overlaps() bool {
	for i := 1; i < len(f.records); i++ {
		if f.records[i].at < f.records[i-1].at+f.records[i-1].size {
			return true
		}
	}
	return false
}

// overlay returns what is seen of records that were written one over the other.
// It goes through the places where records begin and end, keeping those that
// cover the place, newest first.
func overlay(written []record) []record {
	type edge struct {
		at    uint64
		which int // its number in the stream
		begin bool
	}
	edges := make([]edge, 0, 2*len(written))
	for i, r := range written {
		edges = append(edges, edge{r.at, i, true}, edge{r.at + r.size, i, false})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var out []record
	var open intHeap
	ended := make([]bool, len(written))
	for i, e := range edges {
		if e.begin {
			open.push(e.which)
		} else {
			ended[e.which] = true
		}
		for len(open) > 0 && ended[open[0]] {
			open.pop()
		}
		if i+1 == len(edges) || len(open) == 0 || edges[i+1].at == e.at {
			continue
		}
		r := written[open[0]]
		out = append(out, record{at: e.at, off: r.off + (e.at - r.at), size: edges[i+1].at - e.at})
	}
	return out
}

// intHeap is a heap with the greatest number first.
type intHeap []int

func (h *intHeap) push(v int) {
	*h = append(*h, v)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if s[up] >= s[i] {
			return
		}
		s[up], s[i] = s[i], s[up]
		i = up
	}
}

func (h *intHeap) pop() {
	s := *h
	last := len(s) - 1
	s[0] = s[last]
	s = s[:last]
	*h = s
	for i := 0; ; {
		big := i
		for _, kid := range [2]int{2*i + 1, 2*i + 2} {
			if kid < len(s) && s[kid] > s[big] {
				big = kid
			}
		}
		if big == i {
			return
		}
		s[i], s[big] = s[big], s[i]
		i = big
	}
}

func (f *flat) size() uint64 { return f.n }

// find returns the number of the record that holds off, or that comes next.
func (f *flat) find(off uint64) int {
	return sort.Search(len(f.records), func(k int) bool { return f.records[k].at+f.records[k].size > off })
}

func (f *flat) readAt(p []byte, off uint64) (int, error) {
	if off > f.n || uint64(len(p)) > f.n-off {
		return 0, io.ErrUnexpectedEOF
	}
	done := 0
	for i := f.find(off); done < len(p); i++ {
		at := off + uint64(done)
		if i >= len(f.records) {
			clear(p[done:])
			return len(p), nil
		}
		r := f.records[i]
		if r.at > at {
			n := int(min(r.at-at, uint64(len(p)-done)))
			clear(p[done : done+n])
			done, at = done+n, at+uint64(n)
			if done == len(p) {
				break
			}
		}
		n := int(min(r.at+r.size-at, uint64(len(p)-done)))
		k, err := f.inner.readAt(p[done:done+n], r.off+(at-r.at))
		done += k
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (f *flat) slice(off, n uint64) []byte {
	i := f.find(off)
	if i >= len(f.records) || off < f.records[i].at || n > f.records[i].at+f.records[i].size-off {
		return nil
	}
	r := f.records[i]
	return f.inner.slice(r.off+(off-r.at), n)
}
