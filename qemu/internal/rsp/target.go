package rsp

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Register is one register of the target description.
type Register struct {
	Name   string
	Number int // as in p and P requests
	Size   int // bytes
	Offset int // in the answer of g, bytes
}

// maxDescription bounds the files of a target description together, and
// maxIncludes their number.
const (
	maxDescription = 1 << 20
	maxIncludes    = 64
)

// ParseTarget returns the registers of a target description in the order of
// their numbers. fetch returns the file of a name, "target.xml" first.
func ParseTarget(fetch func(name string) ([]byte, error)) ([]Register, error) {
	t := targetParser{fetch: fetch, seen: map[string]bool{}}
	if err := t.file("target.xml"); err != nil {
		return nil, err
	}
	if len(t.regs) == 0 {
		return nil, errors.New("target description without registers")
	}
	slices.SortStableFunc(t.regs, func(a, b Register) int { return cmp.Compare(a.Number, b.Number) })
	off := 0
	for i := range t.regs {
		if i > 0 && t.regs[i].Number == t.regs[i-1].Number {
			return nil, fmt.Errorf("target description: %s and %s have one number", t.regs[i-1].Name, t.regs[i].Name)
		}
		t.regs[i].Offset = off
		off += t.regs[i].Size
	}
	return t.regs, nil
}

type targetParser struct {
	fetch func(string) ([]byte, error)
	seen  map[string]bool
	total int
	next  int // number of the next register that does not tell its own
	regs  []Register
}

func (t *targetParser) file(name string) error {
	if t.seen[name] || len(t.seen) >= maxIncludes {
		return fmt.Errorf("target description: %q is included again, or too many files", name)
	}
	t.seen[name] = true
	data, err := t.fetch(name)
	if err != nil {
		return err
	}
	if t.total += len(data); t.total > maxDescription {
		return errors.New("target description too large")
	}
	dec := xml.NewDecoder(bytes.NewReader(data))
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("target description %s: %w", name, err)
		}
		el, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		if err := t.element(el); err != nil {
			return err
		}
	}
}

func (t *targetParser) element(el xml.StartElement) error {
	switch el.Name.Local {
	case "include":
		for _, a := range el.Attr {
			if a.Name.Local == "href" {
				return t.file(a.Value)
			}
		}
	case "reg":
		return t.register(el)
	}
	return nil
}

func (t *targetParser) register(el xml.StartElement) error {
	r := Register{Number: t.next}
	bits := 0
	for _, a := range el.Attr {
		var err error
		switch a.Name.Local {
		case "name":
			r.Name = a.Value
		case "bitsize":
			_, err = fmt.Sscan(a.Value, &bits)
		case "regnum":
			_, err = fmt.Sscan(a.Value, &r.Number)
		}
		if err != nil {
			return fmt.Errorf("target description: register %q: %s=%q", r.Name, a.Name.Local, a.Value)
		}
	}
	if bits < 8 || bits > 1<<16 || bits%8 != 0 || r.Number < 0 || r.Number > 1<<16 {
		return fmt.Errorf("target description: register %q of %d bits with number %d", r.Name, bits, r.Number)
	}
	r.Size = bits / 8
	t.next = r.Number + 1
	t.regs = append(t.regs, r)
	return nil
}
