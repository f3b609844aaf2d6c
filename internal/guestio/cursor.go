// Package guestio reads bytes that a guest wrote, which may be anything.
//
// A Cursor never reads outside its slice, never allocates because the bytes
// say so, and keeps the first error: a parser reads on and asks once at the
// end. It does no address translation and knows no format. A Cursor belongs to
// one goroutine.
package guestio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrShort is returned when the bytes end before what was asked for.
var ErrShort = errors.New("data ends too early")

// Cursor reads little-endian values one after the other from a byte slice.
// After the first failure every method returns zero values and does not move.
type Cursor struct {
	b   []byte
	off int
	err error
}

// NewCursor returns a cursor at the start of b, which it does not copy.
func NewCursor(b []byte) *Cursor { return &Cursor{b: b} }

// Err returns the first failure, nil when there was none.
func (c *Cursor) Err() error { return c.err }

// Offset returns how many bytes lie before the cursor.
func (c *Cursor) Offset() int { return c.off }

// Len returns how many bytes lie behind the cursor, 0 after a failure.
func (c *Cursor) Len() int {
	if c.err != nil {
		return 0
	}
	return len(c.b) - c.off
}

// Fail makes err the cursor's failure unless it has one already.
func (c *Cursor) Fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// Bytes returns the next n bytes without copying, nil after a failure.
func (c *Cursor) Bytes(n int) []byte {
	if c.err != nil {
		return nil
	}
	if n < 0 || n > len(c.b)-c.off {
		c.err = fmt.Errorf("read %d bytes at offset %d of %d: %w", n, c.off, len(c.b), ErrShort)
		return nil
	}
	p := c.b[c.off : c.off+n : c.off+n]
	c.off += n
	return p
}

// Skip moves the cursor n bytes on.
func (c *Cursor) Skip(n int) { c.Bytes(n) }

// Seek moves the cursor to offset off of the slice.
func (c *Cursor) Seek(off int) {
	if c.err != nil {
		return
	}
	if off < 0 || off > len(c.b) {
		c.err = fmt.Errorf("seek to offset %d of %d: %w", off, len(c.b), ErrShort)
		return
	}
	c.off = off
}

// Align moves the cursor to the next offset that is a multiple of n, a power of two.
func (c *Cursor) Align(n int) { c.Skip(-c.off & (n - 1)) }

// Uint8 reads one byte.
func (c *Cursor) Uint8() uint8 {
	if p := c.Bytes(1); p != nil {
		return p[0]
	}
	return 0
}

// Uint16 reads a 16-bit number.
func (c *Cursor) Uint16() uint16 {
	if p := c.Bytes(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

// Uint32 reads a 32-bit number.
func (c *Cursor) Uint32() uint32 {
	if p := c.Bytes(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// Uint64 reads a 64-bit number.
func (c *Cursor) Uint64() uint64 {
	if p := c.Bytes(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// CString reads the bytes up to a NUL, which it drops, without copying. A
// string longer than limit is a failure.
func (c *Cursor) CString(limit int) []byte {
	if c.err != nil {
		return nil
	}
	rest := c.b[c.off:]
	if limit >= 0 && limit < len(rest) {
		rest = rest[:limit+1]
	}
	i := bytes.IndexByte(rest, 0)
	if i < 0 {
		c.err = fmt.Errorf("read string at offset %d: no end within %d bytes: %w", c.off, len(rest), ErrShort)
		return nil
	}
	c.off += i + 1
	return rest[:i:i]
}
