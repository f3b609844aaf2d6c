// Package xz unpacks .xz files: one or more blocks of LZMA2, as symbol files
// are packed. References are to "The .xz File Format" 1.2.1 and to the LZMA
// specification of the LZMA SDK.
//
// It unpacks into memory, bounded by what the caller allows, and never more
// than the file holds. Filters other than LZMA2 are refused. Checks of all
// kinds that the format names are compared. It keeps no state.
package xz

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"

	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// ErrFormat is returned for what is no .xz file, or a damaged one.
var ErrFormat = errors.New("not a valid .xz file")

// ErrTooLarge is returned when the content is larger than allowed.
var ErrTooLarge = errors.New("content of .xz file too large")

// Magic is what every .xz file begins with.
const Magic = "\xfd7zXZ\x00"

// Kinds of checks behind a block (2.1.1.2), with their lengths in bytes.
var checkSizes = map[byte]int{0: 0, 1: 4, 4: 8, 10: 32}

func malformed(format string, args ...any) error {
	return fmt.Errorf("unpack .xz: %s: %w", fmt.Sprintf(format, args...), ErrFormat)
}

// Unpack returns the content of the first stream of an .xz file, of at most
// limit bytes.
func Unpack(b []byte, limit int) ([]byte, error) {
	c := guestio.NewCursor(b)
	if string(c.Bytes(len(Magic))) != Magic {
		return nil, malformed("no magic")
	}
	flags := c.Bytes(2)
	if sum := c.Uint32(); c.Err() != nil || sum != crc32.ChecksumIEEE(flags) || flags[0] != 0 {
		return nil, malformed("stream header")
	}
	size, known := checkSizes[flags[1]]
	if !known {
		return nil, malformed("check of kind %d", flags[1])
	}
	var out []byte
	for {
		n := int(c.Uint8())
		if c.Err() != nil {
			return nil, malformed("%v", c.Err())
		}
		if n == 0 {
			return out, nil // the index follows, which tells nothing new
		}
		if err := blockHeader(c, b, n); err != nil {
			return nil, err
		}
		start := len(out)
		var used int
		var err error
		if out, used, err = lzma2(b[c.Offset():], out, limit); err != nil {
			return nil, err
		}
		c.Skip(used)
		c.Align(4)
		if want := c.Bytes(size); c.Err() != nil || !bytes.Equal(want, checkOf(flags[1], out[start:])) {
			return nil, malformed("check of a block")
		}
	}
}

// blockHeader reads a block header (3.1) of (n+1)*4 bytes, whose first byte is read.
func blockHeader(c *guestio.Cursor, b []byte, n int) error {
	start, size := c.Offset()-1, (n+1)*4
	if start+size > len(b) || binary.LittleEndian.Uint32(b[start+size-4:]) != crc32.ChecksumIEEE(b[start:start+size-4]) {
		return malformed("block header")
	}
	flags := c.Uint8()
	if flags&0x3f != 0 { // more than one filter, or what is not defined
		return malformed("block with flags %#x", flags)
	}
	for _, bit := range []byte{0x40, 0x80} {
		if flags&bit != 0 {
			varint(c)
		}
	}
	if id, props := varint(c), varint(c); c.Err() != nil || id != 0x21 || props != 1 {
		return malformed("filter %#x", id)
	}
	c.Seek(start + size)
	return c.Err()
}

func varint(c *guestio.Cursor) uint64 {
	var v uint64
	for shift := 0; shift < 63; shift += 7 {
		b := c.Uint8()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	c.Fail(ErrFormat)
	return 0
}

var ecma = crc64.MakeTable(crc64.ECMA)

func checkOf(kind byte, p []byte) []byte {
	switch kind {
	case 1:
		return binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(p))
	case 4:
		return binary.LittleEndian.AppendUint64(nil, crc64.Checksum(p, ecma))
	case 10:
		sum := sha256.Sum256(p)
		return sum[:]
	}
	return nil
}

// lzma2 unpacks chunks from b behind out until their end, and returns how many
// bytes of b they took.
func lzma2(b, out []byte, limit int) ([]byte, int, error) {
	c := guestio.NewCursor(b)
	base := len(out) // what lies before belongs to another block
	var d *decoder
	for {
		control := c.Uint8()
		switch {
		case c.Err() != nil:
			return nil, 0, malformed("%v", c.Err())
		case control == 0:
			return out, c.Offset(), nil
		case control >= 0x80:
			unpacked := int(control&0x1f)<<16 + int(c.Uint8())<<8 + int(c.Uint8()) + 1
			packed := int(c.Uint8())<<8 + int(c.Uint8()) + 1
			reset := control >> 5 & 3
			if reset >= 2 {
				props := c.Uint8()
				if props >= 9*5*5 || props%9+props/9%5 > 4 {
					return nil, 0, malformed("properties %#x", props)
				}
				d = newDecoder(props)
			}
			if d == nil {
				return nil, 0, malformed("chunk without properties")
			}
			if reset == 1 {
				d.reset()
			}
			if reset == 3 {
				base = len(out)
			}
			src := c.Bytes(packed)
			if c.Err() != nil || len(out)+unpacked > limit {
				return nil, 0, tooLargeOr(c.Err(), limit)
			}
			var err error
			if out, err = d.chunk(src, out, base, unpacked); err != nil {
				return nil, 0, err
			}
		case control <= 2:
			n := int(c.Uint8())<<8 + int(c.Uint8()) + 1
			if control == 1 {
				base = len(out)
			}
			src := c.Bytes(n)
			if c.Err() != nil || len(out)+n > limit {
				return nil, 0, tooLargeOr(c.Err(), limit)
			}
			out = append(out, src...)
		default:
			return nil, 0, malformed("chunk with control %#x", control)
		}
	}
}

func tooLargeOr(err error, limit int) error {
	if err != nil {
		return malformed("%v", err)
	}
	return fmt.Errorf("unpack .xz: more than %d bytes: %w", limit, ErrTooLarge)
}
