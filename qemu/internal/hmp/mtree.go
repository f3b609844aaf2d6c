package hmp

import (
	"bufio"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Range is one line of a flat view: guest-physical addresses from Start to
// Last, both included, and what they show.
type Range struct {
	Start, Last uint64
	Type        string // "ram", "rom", "romd", "i/o", ...
	Name        string // name of the memory region, "pc.ram"
	Offset      uint64 // of Start within the memory region
}

// Size returns the number of bytes, 0 when the range covers all 64-bit addresses.
func (r Range) Size() uint64 { return r.Last - r.Start + 1 }

// ParseMtree returns the flat view of the address space "memory", which is what
// the processors see, out of the answer of "info mtree -f". The ranges are
// sorted and do not overlap.
func ParseMtree(text string) ([]Range, error) {
	var out []Range
	in := false // within a view that serves the address space "memory"
	sc := bufio.NewScanner(strings.NewReader(text))
	sc.Buffer(nil, len(text)+1)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		switch {
		case strings.HasPrefix(line, "FlatView #"):
			if in && len(out) > 0 {
				return sorted(out)
			}
			in, out = false, nil
		case strings.HasPrefix(line, `AS "memory"`):
			in = true
		case in:
			if r, ok := parseRange(line); ok {
				out = append(out, r)
			}
		}
	}
	if !in || len(out) == 0 {
		return nil, errors.New(`info mtree: no flat view of the address space "memory"`)
	}
	return sorted(out)
}

// FindRange returns the first range of any flat view with that name, out of the
// answer of "info mtree -f".
func FindRange(text, name string) (Range, bool) {
	for line := range strings.Lines(text) {
		if r, ok := parseRange(strings.TrimSpace(line)); ok && r.Name == name {
			return r, true
		}
	}
	return Range{}, false
}

// parseRange parses "START-LAST (prio N, TYPE): NAME[ @OFFSET][ KVM]".
func parseRange(line string) (Range, bool) {
	span, rest, ok := strings.Cut(line, " (prio ")
	if !ok {
		return Range{}, false
	}
	attrs, name, ok := strings.Cut(rest, "): ")
	if !ok {
		return Range{}, false
	}
	var r Range
	lo, hi, ok := strings.Cut(span, "-")
	if !ok || !hexNumber(lo, &r.Start) || !hexNumber(hi, &r.Last) || r.Last < r.Start {
		return Range{}, false
	}
	_, kind, _ := strings.Cut(attrs, ", ")
	r.Type = kind
	// Where KVM has the memory as a slot, the line ends in " KVM".
	name = strings.TrimSuffix(name, " KVM")
	if i := strings.LastIndex(name, " @"); i >= 0 && hexNumber(name[i+2:], &r.Offset) {
		name = name[:i]
	}
	r.Name = name
	return r, true
}

func sorted(rs []Range) ([]Range, error) {
	slices.SortFunc(rs, func(a, b Range) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	for i := 1; i < len(rs); i++ {
		if rs[i].Start <= rs[i-1].Last {
			return nil, fmt.Errorf("info mtree: %#x and %#x overlap", rs[i-1].Start, rs[i].Start)
		}
	}
	return rs, nil
}

func hexNumber(s string, v *uint64) bool {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil {
		return false
	}
	*v = n
	return true
}

// ParseGPA2HVA returns the host virtual address out of the answer of "gpa2hva".
func ParseGPA2HVA(text string) (uint64, error) {
	text = strings.TrimSpace(text)
	i := strings.LastIndex(text, " is 0x")
	var v uint64
	if !strings.HasPrefix(text, "Host virtual address for ") || i < 0 || !hexNumber(text[i+4:], &v) {
		return 0, fmt.Errorf("gpa2hva: %.200q", text)
	}
	return v, nil
}

// ParseXP decodes the answer of "xp/NUMxg ADDR" into p, little-endian: lines of
// "ADDRESS: 0xWORD 0xWORD". It returns how many bytes it filled.
func ParseXP(text string, p []byte) (int, error) {
	n := 0
	for line := range strings.Lines(text) {
		_, words, ok := strings.Cut(line, ": ")
		if !ok {
			return n, fmt.Errorf("xp: %.200q", line)
		}
		for w := range strings.FieldsSeq(words) {
			var v uint64
			if !hexNumber(w, &v) {
				return n, fmt.Errorf("xp: %.200q", line)
			}
			for i := 0; i < 8 && n < len(p); i++ {
				p[n] = byte(v >> (8 * i))
				n++
			}
		}
	}
	return n, nil
}
