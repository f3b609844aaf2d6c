package implant

import (
	"bytes"
	"errors"
	"fmt"
)

// A reader for what gcc and ld write into a relocatable ELF64 file of one code
// section; see elf(5) for the structures.

const (
	elfHeaderSize  = 64
	elfSectionSize = 64
	elfSymbolSize  = 24
	elfRelaSize    = 24
	elfMaxSections = 64

	elfProgBits = 1
	elfSymTab   = 2
	elfRela     = 4
	elfNoBits   = 8
	elfAlloc    = 2
	elfExec     = 4
)

var errObject = errors.New("file is not an object that was expected")

type elfSection struct {
	kind, flags, link uint64
	size              uint64
	data              []byte
}

type elfSymbol struct {
	name    string
	section uint16 // 0: undefined
	value   uint64
}

// parseObject reads a relocatable file.
func parseObject(file []byte) (*object, error) {
	sections, err := elfSections(file)
	if err != nil {
		return nil, err
	}
	o := &object{defined: map[string]uint64{}}
	var symbols []elfSymbol
	for _, s := range sections {
		switch {
		case s.kind == elfSymTab:
			if symbols, err = elfSymbols(s, sections); err != nil {
				return nil, err
			}
		case s.flags&elfAlloc == 0 || s.size == 0:
		case s.flags&elfExec != 0 && s.kind == elfProgBits && o.text == nil:
			o.text = s.data
		default:
			return nil, fmt.Errorf("%w: it has data", errObject)
		}
	}
	for _, s := range symbols {
		if s.section != 0 && s.name != "" {
			o.defined[s.name] = s.value
		}
	}
	for _, s := range sections {
		if s.kind == elfRela {
			if err := o.addRelocs(s.data, symbols); err != nil {
				return nil, err
			}
		}
	}
	if len(o.text) == 0 || len(o.relocs) == 0 {
		return nil, fmt.Errorf("%w: it has no code", errObject)
	}
	return o, nil
}

func elfSections(file []byte) ([]elfSection, error) {
	if len(file) < elfHeaderSize || !bytes.HasPrefix(file, []byte("\x7fELF\x02\x01")) {
		return nil, errObject
	}
	at, n := le64(file[40:]), uint64(le32(file[60:])&0xffff)
	if n > elfMaxSections || at > uint64(len(file)) || uint64(len(file))-at < n*elfSectionSize {
		return nil, fmt.Errorf("%w: sections are outside", errObject)
	}
	var sections []elfSection
	for i := range n {
		p := file[at+i*elfSectionSize:]
		s := elfSection{kind: uint64(le32(p[4:])), flags: le64(p[8:]), link: uint64(le32(p[40:])), size: le64(p[32:])}
		if off := le64(p[24:]); s.kind != elfNoBits && s.kind != 0 {
			if off > uint64(len(file)) || uint64(len(file))-off < s.size {
				return nil, fmt.Errorf("%w: section %d is outside", errObject, i)
			}
			s.data = file[off : off+s.size]
		}
		sections = append(sections, s)
	}
	return sections, nil
}

func elfSymbols(s elfSection, sections []elfSection) ([]elfSymbol, error) {
	if s.link >= uint64(len(sections)) {
		return nil, fmt.Errorf("%w: symbols have no names", errObject)
	}
	names := sections[s.link].data
	var symbols []elfSymbol
	for p := s.data; len(p) >= elfSymbolSize; p = p[elfSymbolSize:] {
		at := uint64(le32(p))
		if at > uint64(len(names)) {
			return nil, fmt.Errorf("%w: a name is outside", errObject)
		}
		name, _, _ := bytes.Cut(names[at:], []byte{0})
		symbols = append(symbols, elfSymbol{string(name), uint16(le32(p[4:]) >> 16), le64(p[8:])})
	}
	return symbols, nil
}

func (o *object) addRelocs(p []byte, symbols []elfSymbol) error {
	for ; len(p) >= elfRelaSize; p = p[elfRelaSize:] {
		i := le32(p[12:])
		if uint64(i) >= uint64(len(symbols)) {
			return fmt.Errorf("%w: relocation against symbol %d", errObject, i)
		}
		o.relocs = append(o.relocs, reloc{offset: le64(p), kind: le32(p[8:]), symbol: symbols[i].name, addend: int64(le64(p[16:]))})
	}
	return nil
}
