package guestio

import (
	"errors"
	"math"
	"testing"
)

func TestCursorReadsInOrder(t *testing.T) {
	c := NewCursor([]byte{1, 2, 0, 3, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 'h', 'i', 0, 9})
	if v := c.Uint8(); v != 1 {
		t.Errorf("Uint8 = %d", v)
	}
	if v := c.Uint16(); v != 2 {
		t.Errorf("Uint16 = %d", v)
	}
	if v := c.Uint32(); v != 3 {
		t.Errorf("Uint32 = %d", v)
	}
	c.Align(8)
	if v := c.Uint64(); v != 4 {
		t.Errorf("Uint64 = %d", v)
	}
	if v := string(c.CString(2)); v != "hi" {
		t.Errorf("CString = %q", v)
	}
	if c.Len() != 1 || c.Offset() != 19 || c.Err() != nil {
		t.Errorf("Len %d, Offset %d, Err %v", c.Len(), c.Offset(), c.Err())
	}
}

func TestCursorKeepsFirstError(t *testing.T) {
	for name, fail := range map[string]func(*Cursor){
		"number":          func(c *Cursor) { c.Uint32() },
		"negative length": func(c *Cursor) { c.Bytes(-1) },
		"huge length":     func(c *Cursor) { c.Bytes(math.MaxInt) },
		"seek":            func(c *Cursor) { c.Seek(4) },
		"seek back":       func(c *Cursor) { c.Seek(-1) },
		"endless string":  func(c *Cursor) { c.CString(100) },
		"long string":     func(c *Cursor) { c.CString(1) },
	} {
		c := NewCursor([]byte{1, 2, 3})
		fail(c)
		first := c.Err()
		if !errors.Is(first, ErrShort) {
			t.Errorf("%s: error %v, want ErrShort", name, first)
		}
		if c.Uint8() != 0 || c.CString(5) != nil || c.Len() != 0 {
			t.Errorf("%s: reads went on after the failure", name)
		}
		c.Fail(errors.New("later"))
		if c.Err() != first {
			t.Errorf("%s: first error was replaced by %v", name, c.Err())
		}
	}
}

func FuzzCursor(f *testing.F) {
	f.Add([]byte("abc\x00def"), []byte{0, 1, 2, 3, 4, 5, 6})
	f.Fuzz(func(t *testing.T, data, ops []byte) {
		c := NewCursor(data)
		for _, op := range ops {
			before, failed := c.Offset(), c.Err() != nil
			switch op % 7 {
			case 0:
				c.Uint8()
			case 1:
				c.Uint16()
			case 2:
				c.Uint32()
			case 3:
				c.Uint64()
			case 4:
				c.CString(int(op))
			case 5:
				c.Seek(int(op) - 8)
			case 6:
				c.Align(8)
			}
			if c.Offset() > len(data) || c.Offset() < 0 {
				t.Fatalf("offset %d of %d", c.Offset(), len(data))
			}
			if failed && c.Offset() != before {
				t.Fatal("moved after a failure")
			}
		}
	})
}
