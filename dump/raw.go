package dump

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Range is a piece of raw memory: Size bytes of the guest's physical memory
// from Start on, which are those of the file from Offset on.
type Range struct {
	Start  arch.GPA
	Size   uint64 // bytes; 0 means to the end of the file, or of what a machine has there
	Offset uint64 // bytes into the file
}

// Layout says how raw memory is laid out in its file.
type Layout []Range

// Where x86 machines of QEMU put RAM beyond the hole for devices below 4 GiB
// (hw/i386/pc_piix.c and pc_q35.c: the sizes from which RAM is split, and how
// much of it then stays below).
const (
	fourGiB  = 4 << 30
	pcFrom   = 0xe000_0000
	pcBelow  = 0xc000_0000
	q35From  = 0xb000_0000
	q35Below = 0x8000_0000
)

// ParseLayout understands how a user describes raw memory: "flat", the file is
// the guest's memory from address 0 on; "pc" or "q35", the file is the RAM of a
// QEMU machine of that type of fileSize bytes, which continues at 4 GiB where it
// does not fit below; or ranges START+SIZE@OFFSET, joined by commas. Numbers
// are as in Go; the last range may leave its size out.
func ParseLayout(s string, fileSize uint64) (Layout, error) {
	switch s {
	case "flat":
		return Layout{{}}, nil
	case "pc":
		return split(fileSize, pcFrom, pcBelow), nil
	case "q35":
		return split(fileSize, q35From, q35Below), nil
	}
	var l Layout
	for part := range strings.SplitSeq(s, ",") {
		r, err := parseRange(part)
		if err != nil {
			return nil, fmt.Errorf("parse layout %q: %w", s, err)
		}
		l = append(l, r)
	}
	return l, nil
}

// split puts below bytes at 0 and the rest at 4 GiB, if there are at least from.
func split(size, from, below uint64) Layout {
	if size < from {
		return Layout{{}}
	}
	return Layout{{Size: below}, {Start: fourGiB, Offset: below}}
}

// parseRange parses START[+SIZE][@OFFSET].
func parseRange(s string) (Range, error) {
	var r Range
	head, offset, hasOffset := strings.Cut(s, "@")
	start, size, hasSize := strings.Cut(head, "+")
	v, err := strconv.ParseUint(start, 0, 64)
	if err == nil && hasSize {
		r.Size, err = strconv.ParseUint(size, 0, 64)
	}
	if err == nil && hasOffset {
		r.Offset, err = strconv.ParseUint(offset, 0, 64)
	}
	if err != nil || v >= maxAddress {
		return r, fmt.Errorf("%q is not a range: want flat, pc, q35 or START+SIZE@OFFSET,... in bytes", s)
	}
	r.Start = arch.GPA(v)
	return r, nil
}

// loadRaw takes the file for raw memory.
func (im *image) loadRaw(b blob, layout Layout) error {
	im.format = Raw
	var spans []span
	for _, r := range layout {
		size := r.Size
		if size == 0 {
			size = b.size() - min(b.size(), r.Offset)
		}
		spans = append(spans, span{start: uint64(r.Start), size: size, off: r.Offset})
	}
	im.setLinear(b, spans)
	return nil
}
