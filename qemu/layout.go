package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/qemu/internal/hmp"
)

// span is a range of guest-physical addresses that shows one piece of one of
// QEMU's memory blocks.
type span struct {
	start, size uint64
	block       string // QEMU's name of the block: "pc.ram", "m0"
	offset      uint64 // of start in the block
	main        bool   // guest RAM; otherwise video memory, firmware, ...
}

func (s span) end() uint64 { return s.start + s.size }

// continues reports whether s shows what comes next in the block behind prev.
func (s span) continues(prev span) bool {
	return s.start == prev.end() && s.block == prev.block && s.main == prev.main && s.offset == prev.offset+prev.size
}

// spans turns QEMU's flat view of memory into the ranges that can be read as
// memory, merged where they continue each other. memdevs are the names of the
// blocks that are guest RAM.
func spans(view []hmp.Range, memdevs []string) []span {
	if !slices.ContainsFunc(view, func(r hmp.Range) bool { return slices.Contains(memdevs, r.Name) }) {
		// QEMU before 5.0 does not list the machine's own RAM.
		memdevs = ramByName(view)
	}
	var out []span
	for _, r := range view {
		if r.Type != "ram" && r.Type != "rom" || r.Size() == 0 {
			continue
		}
		s := span{r.Start, r.Size(), r.Name, r.Offset, slices.Contains(memdevs, r.Name)}
		if n := len(out); n > 0 && s.continues(out[n-1]) {
			out[n-1].size += s.size
			continue
		}
		out = append(out, s)
	}
	return fillShadow(out)
}

// ramByName returns the blocks that are called RAM and nothing more special.
func ramByName(view []hmp.Range) []string {
	var names []string
	for _, r := range view {
		if r.Type == "ram" && (strings.HasSuffix(r.Name, ".ram") || r.Name == "ram") {
			names = append(names, r.Name)
		}
	}
	return names
}

// Where a PC shows firmware or RAM, as its chipset is told (the PAM registers).
const shadowStart, shadowEnd = 0xc0000, 0x100000

// fillShadow makes [0xc0000, 0x100000) of a PC RAM throughout. Firmware maps it
// to ROM and RAM piece by piece while it starts; the RAM beneath is always the
// same, and what an operating system finds there in the end.
func fillShadow(in []span) []span {
	low := slices.IndexFunc(in, func(s span) bool { return s.main && s.start == 0 })
	high := slices.IndexFunc(in, func(s span) bool { return s.main && s.start <= shadowEnd && s.end() > shadowEnd })
	if low < 0 || high < 0 || low == high {
		return in
	}
	l, h := in[low], in[high]
	if l.block != h.block || h.offset-l.offset != h.start-l.start || l.end() > shadowStart {
		return in
	}
	var out []span
	for _, s := range in {
		switch {
		case s.start == h.start:
			h.size += h.start - shadowStart
			h.offset -= h.start - shadowStart
			h.start = shadowStart
			out = append(out, h)
		case s.start >= shadowStart && s.start < shadowEnd:
		default:
			out = append(out, s)
		}
	}
	return out
}

// layout asks QEMU where the guest's memory is: what shows at which
// guest-physical address.
func (m *machine) layout(ctx context.Context) ([]span, error) {
	var memdevs []struct {
		ID string `json:"id"`
	}
	if err := m.execute(ctx, "query-memdev", nil, &memdevs); err != nil {
		return nil, err
	}
	var names []string
	for _, d := range memdevs {
		names = append(names, d.ID)
	}
	text, err := m.hmp(ctx, -1, "info mtree -f")
	if err != nil {
		return nil, err
	}
	view, err := hmp.ParseMtree(text)
	if err != nil {
		return nil, err
	}
	out := spans(view, names)
	if !slices.ContainsFunc(out, func(s span) bool { return s.main }) {
		return nil, errors.New("find guest RAM: QEMU's memory view shows none")
	}
	return out, nil
}

// hostAddress asks QEMU where in its own memory a guest-physical address is.
func (m *machine) hostAddress(ctx context.Context, gpa uint64) (uint64, error) {
	text, err := m.hmp(ctx, -1, fmt.Sprintf("gpa2hva %#x", gpa))
	if err != nil {
		return 0, err
	}
	return hmp.ParseGPA2HVA(text)
}
