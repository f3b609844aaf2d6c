// Package kallsyms finds and decodes the symbol table that a Linux kernel
// carries in its read-only data.
//
// It works on bytes only: a piece of the kernel image and the address it lies
// at. The tables are found by their own structure, so neither symbols nor a
// profile are needed, and a table is believed only when its parts agree with
// each other. Whoever calls it compares the result with other facts of the
// guest. Nothing here keeps state; everything may be called concurrently.
//
// Parts, in the order of Linux 5.10 and 6.1; since 6.4 the last two come behind
// the token index, in 7.2 relative_base is gone and parts are aligned to 4:
//
//	offsets        four bytes each, see Form
//	relative_base  uint64
//	num_syms       uint32
//	names          a length and that many token numbers for each symbol
//	markers        uint32: where in names every 256th symbol starts
//	token_table    256 strings
//	token_index    256 uint16: where in token_table each string starts
//
// Source: scripts/kallsyms.c and kernel/kallsyms.c of Linux, read for the
// format only.
package kallsyms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Limits on what guest bytes may ask for.
const (
	MaxSymbols    = 4 << 20  // a kernel with everything built in has about 400,000
	minSymbols    = 512      // the smallest kernel that boots has several thousand
	maxName       = 1024     // KSYM_NAME_LEN is 128, since 6.1 512
	maxNames      = 96 << 20 // bytes of all names together
	namesWindow   = 32 << 20 // how far before the token table the names may start
	maxTables     = 64       // token tables tried in one piece of memory
	walkBudget    = 48 << 20 // name entries stepped over in search of the names
	markerStep    = 256      // symbols per marker
	tokenCount    = 256
	maxTokenTable = 16 << 10
)

// ErrNotFound is returned when the bytes hold no symbol table.
var ErrNotFound = errors.New("no symbol table found")

// ErrFormat is returned when a symbol table contradicts itself.
var ErrFormat = errors.New("symbol table contradicts itself")

// Layout tells where the parts of a symbol table lie, as offsets into the
// bytes it was found in.
type Layout struct {
	Count        int  // num_syms
	Names        int  // first byte of names
	NamesEnd     int  // first byte behind names
	Tokens       int  // first byte of token_table
	Index        int  // first byte of token_index
	Offsets      int  // first byte of offsets
	RelativeBase int  // position of relative_base, -1 where there is none (7.x)
	Form         Form // what the entries of offsets mean
}

// Extent returns the first byte of all parts and the byte behind them, enough
// for Find to find the table in them alone.
func (l Layout) Extent() (start, end int) {
	start, end = min(l.Names-8, l.Offsets), max(l.Index+2*tokenCount, l.Offsets+4*l.Count)
	if l.RelativeBase >= 0 {
		start, end = min(start, l.RelativeBase), max(end, l.RelativeBase+8)
	}
	return max(start, 0), end
}

// digits is how the ten digits stand in every token table: a character that
// occurs in any symbol name keeps its own code.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

// tokens is a decoded token table.
type tokens struct {
	at    int // first byte of the table
	index int // first byte of the index
	text  [tokenCount][]byte
}

// place is where bytes lie in the guest.
type place struct {
	va   uint64 // of the first byte, at least a multiple of 8
	base uint64 // where the kernel starts
}

// Find looks for symbol tables in b, which lies at va, the start of a page, and
// returns the first one that is whole. base is where the kernel starts.
func Find(b []byte, va, base uint64) (*Table, error) {
	where := place{va: va, base: base}
	budget := walkBudget
	from, last := 0, ErrNotFound
	for range maxTables {
		i := bytes.Index(b[from:], digits)
		if i < 0 {
			return nil, last
		}
		tok, err := findTokens(b, from+i)
		from += i + 1
		if err != nil {
			continue
		}
		l, err := findLayout(b, where, tok, &budget)
		if err != nil {
			last = err
			continue
		}
		t, err := decode(b, where, tok, l)
		if err != nil {
			last = err
			continue
		}
		return t, nil
	}
	return nil, last
}

// findTokens returns the token table whose token '0' lies at zero.
func findTokens(b []byte, zero int) (*tokens, error) {
	end := zero
	for range tokenCount - '0' {
		n := bytes.IndexByte(b[end:min(len(b), end+maxName)], 0)
		if n < 0 {
			return nil, ErrFormat
		}
		end += n + 1
	}
	for index := end &^ 3; index <= end+8; index += 4 { // aligned to 8 until 6.x, to 4 in 7.2
		if index < end {
			continue
		}
		if t := tokensAt(b, zero, index); t != nil {
			return t, nil
		}
	}
	return nil, ErrFormat
}

// tokensAt decodes a token table by the index at position index, nil when they
// do not belong together.
func tokensAt(b []byte, zero, index int) *tokens {
	if index+2*tokenCount > len(b) {
		return nil
	}
	at := func(i int) int { return int(binary.LittleEndian.Uint16(b[index+2*i:])) }
	start := zero - at('0')
	if start < 0 || at(0) != 0 || index-start > maxTokenTable {
		return nil
	}
	t := &tokens{at: start, index: index}
	table := b[start:index]
	for i := range tokenCount {
		if at(i) >= len(table) {
			return nil
		}
		n := bytes.IndexByte(table[at(i):], 0)
		if n < 0 || (i+1 < tokenCount && at(i+1) != at(i)+n+1) {
			return nil
		}
		t.text[i] = slices.Clone(table[at(i) : at(i)+n])
	}
	return t
}

// findLayout finds the other parts that belong to a token table: the number of
// symbols, whose markers must lie where they would, and that many names. Names
// fall into step with themselves wherever one starts to read, so without the
// markers many wrong numbers would lead through all names.
func findLayout(b []byte, where place, tok *tokens, budget *int) (*Layout, error) {
	low := max(0, tok.at-namesWindow)
	for p := tok.at&^3 - 8; p >= low; p -= 4 {
		n := binary.LittleEndian.Uint32(b[p:])
		if n < minSymbols || n > MaxSymbols || !markersFit(b, tok.at, int(n)) {
			continue
		}
		names := p + 4
		if binary.LittleEndian.Uint32(b[names:]) == 0 {
			names += 4 // aligned to 8 until 6.x
		}
		end := walkNames(b[:tok.at], names, int(n), tok, budget)
		if *budget <= 0 {
			return nil, fmt.Errorf("look for names: too many candidates: %w", ErrFormat)
		}
		if end < 0 {
			continue
		}
		l := &Layout{Count: int(n), Names: names, NamesEnd: end, Tokens: tok.at, Index: tok.index}
		return l, findOffsets(b, where, p, l)
	}
	return nil, fmt.Errorf("token table found, names not: %w", ErrNotFound)
}

// markersFit reports whether the markers of n symbols may end at position end:
// right there, or until 6.3 before a table of 3 bytes for each symbol.
func markersFit(b []byte, end, n int) bool {
	size := (n + markerStep - 1) / markerStep * 4
	for _, e := range []int{end, end - 3*n} {
		for pad := range 3 {
			at := e&^3 - 4*pad - size
			if at >= 0 && binary.LittleEndian.Uint32(b[at:]) == 0 && rising(b[at:at+size]) {
				return true
			}
		}
	}
	return false
}

// rising reports whether the first markers and the last are each above the one before.
func rising(b []byte) bool {
	last := uint32(0)
	for p := 4; p < len(b); p += 4 {
		if p > 64 && p < len(b)-64 {
			continue
		}
		v := binary.LittleEndian.Uint32(b[p:])
		if v <= last {
			return false
		}
		last = v
	}
	return true
}

// walkNames steps over n entries of names and compares the markers behind
// them. It returns where the names end, -1 when these are no names.
func walkNames(b []byte, names, n int, tok *tokens, budget *int) int {
	marks := make([]uint32, 0, 64) // grows only as fast as entries are found valid
	p := names
	for i := range n {
		if i%markerStep == 0 {
			marks = append(marks, uint32(p-names))
		}
		*budget--
		size, head := entry(b, p)
		if head == 0 || size == 0 || p+head+size > len(b) || *budget <= 0 {
			return -1
		}
		if !validType(tok.text[b[p+head]]) {
			return -1
		}
		p += head + size
	}
	for at := (p + 3) &^ 3; at <= p+7+4; at += 4 {
		if markersAt(b, at, marks) {
			return p
		}
	}
	return -1
}

// entry returns the length of the name entry at p and how many bytes tell it:
// one, or since 6.1 two when the first has its high bit set.
func entry(b []byte, p int) (size, head int) {
	if p >= len(b) {
		return 0, 0
	}
	size = int(b[p])
	if size&0x80 == 0 {
		return size, 1
	}
	if p+1 >= len(b) {
		return 0, 0
	}
	return size&0x7f | int(b[p+1])<<7, 2
}

// validType reports whether a symbol may start with the token t: the first
// character is the letter that nm prints.
func validType(t []byte) bool {
	if len(t) == 0 {
		return false
	}
	c := t[0] | 0x20
	return c >= 'a' && c <= 'z' || t[0] == '?' || t[0] == '-'
}

func markersAt(b []byte, at int, marks []uint32) bool {
	if at+4*len(marks) > len(b) {
		return false
	}
	for i, m := range marks {
		if binary.LittleEndian.Uint32(b[at+4*i:]) != m {
			return false
		}
	}
	return true
}
