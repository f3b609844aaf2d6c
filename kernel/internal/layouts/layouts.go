// Package layouts holds where 51 builds of the NT kernel keep the members of
// about 50 structures: XP SP3 to 11 23H2, x86 and x64.
//
// The offsets were collected from the bindings of novafacing/vergilius-rs
// (Apache-2.0). They have two limits. Of a bit-field the source tells how many
// bits it has and in which bytes, not at which bit it begins. And members of a
// union or structure within a named member, such as those under u2.e2, count
// from the start of that member; of such only what is under a member at offset
// 0 can be used.
//
// The table is compressed in the program and unpacked when it is first asked
// for (8 ms). It may be used concurrently.
package layouts

import (
	"bytes"
	"cmp"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

//go:generate go run ./gen -o layouts.bin.gz

//go:embed layouts.bin.gz
var packed []byte

// Member is where a member lies in a structure.
type Member struct {
	Offset uint32 // bytes
	Bits   uint8  // of a bit-field, how many; 0 for other members
}

// Struct is one structure of one build.
type Struct struct {
	Name    string
	Size    uint32 // bytes; of some large ones (_KPCR, _KPRCB) only the documented part
	Members map[string]Member
}

// Layout is one build's structures by their names, such as "_EPROCESS".
type Layout struct {
	Version Version
	X64     bool
	Structs map[string]*Struct
}

// String returns the name of the build, such as "10.0.19041.1288-x64".
func (l *Layout) String() string {
	if l.X64 {
		return l.Version.String() + "-x64"
	}
	return l.Version.String() + "-x86"
}

// Version is major, minor, build and revision.
type Version [4]int

// String returns the version with dots.
func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d.%d", v[0], v[1], v[2], v[3])
}

func parseVersion(s string) (Version, error) {
	var v Version
	parts := strings.Split(s, ".")
	if len(parts) != len(v) {
		return v, fmt.Errorf("parse version %q: %d numbers", s, len(parts))
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return v, fmt.Errorf("parse version %q: %w", s, err)
		}
		v[i] = n
	}
	return v, nil
}

var table = sync.OnceValues(func() ([]*Layout, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpack layouts: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(z, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("unpack layouts: %w", err)
	}
	return decode(b)
})

// All returns every layout, sorted by architecture and version. The layouts
// are shared: they must not be changed.
func All() []*Layout {
	all, err := table()
	if err != nil {
		panic(err) // what the program carries is broken
	}
	return all
}

// Find returns the layout that fits a kernel best, and whether it is one of
// the same build; the revision is not expected to match. Of several revisions
// of one build it is the latest that is not newer, or else the first; a
// negative revision means unknown and gets the latest. Of builds that are
// not known it is the nearest older one, or else the oldest of all.
func Find(build, revision int, x64 bool) (l *Layout, exact bool) {
	if revision < 0 {
		revision = 1 << 30
	}
	for _, have := range All() {
		if have.X64 != x64 {
			continue
		}
		b, r := have.Version[2], have.Version[3]
		switch {
		case l == nil, b < build, b == build && (l.Version[2] != build || r <= revision):
			l = have
		}
	}
	return l, l != nil && l.Version[2] == build
}

// Limits of the packed form, far above what it holds.
const (
	maxNames   = 1 << 16
	maxStructs = 1 << 14
	maxMembers = 1 << 12
	maxBuilds  = 1 << 10
)

// decode unpacks the form that the generator writes:
//
//	names:   count, then each: length, bytes
//	structs: count, then each: name, size, count of members,
//	         then each: name, offset, bits
//	builds:  count, then each: version (a name), 1 for x64, count of structs, their numbers
//
// with every number as a variable-length one.
func decode(b []byte) ([]*Layout, error) {
	c := guestio.NewCursor(b)
	names := make([]string, count(c, maxNames))
	for i := range names {
		names[i] = string(c.Bytes(int(number(c))))
	}
	name := func() string {
		if n := number(c); n < uint64(len(names)) {
			return names[n]
		}
		c.Fail(fmt.Errorf("decode layouts: no such name at %d", c.Offset()))
		return ""
	}
	structs := make([]*Struct, count(c, maxStructs))
	for i := range structs {
		s := &Struct{Name: name(), Size: uint32(number(c))}
		n := count(c, maxMembers)
		s.Members = make(map[string]Member, n)
		for range n {
			s.Members[name()] = Member{Offset: uint32(number(c)), Bits: uint8(number(c))}
		}
		structs[i] = s
	}
	out := make([]*Layout, count(c, maxBuilds))
	for i := range out {
		v, err := parseVersion(name())
		if err != nil {
			c.Fail(err)
		}
		l := &Layout{Version: v, X64: number(c) == 1, Structs: map[string]*Struct{}}
		for range count(c, maxStructs) {
			if n := number(c); n < uint64(len(structs)) {
				l.Structs[structs[n].Name] = structs[n]
			}
		}
		out[i] = l
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b *Layout) int {
		if a.X64 != b.X64 {
			return cmp.Compare(boolInt(a.X64), boolInt(b.X64))
		}
		return slices.Compare(a.Version[:], b.Version[:])
	})
	return out, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// count reads a number of things that each take a byte at least.
func count(c *guestio.Cursor, limit uint64) uint64 {
	n := number(c)
	if n > limit || n > uint64(c.Len()) {
		c.Fail(fmt.Errorf("decode layouts: %d things at %d, %d bytes left", n, c.Offset(), c.Len()))
		return 0
	}
	return n
}

// number reads a variable-length number of at most 32 bits.
func number(c *guestio.Cursor) uint64 {
	var n uint64
	for shift := 0; shift < 35; shift += 7 {
		b := c.Uint8()
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n & (1<<32 - 1)
		}
	}
	c.Fail(fmt.Errorf("decode layouts: number without end at %d", c.Offset()))
	return 0
}
