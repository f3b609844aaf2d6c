package linux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// record is a copy of the part of a structure that a shape describes, taken
// from the guest in one read.
type record struct {
	addr arch.GVA // of the structure
	lo   uint64   // offset of buf[0]
	buf  []byte
}

// load copies the structure at addr. The copy lives in buf where that is large
// enough, so it is good until the next load into the same buf.
func load(as *vitrine.AddressSpace, s *shape, addr arch.GVA, buf []byte) (record, error) {
	if err := kernelPointer(addr); err != nil {
		return record{}, fmt.Errorf("read %s: %w", s.name, err)
	}
	n := int(s.hi - s.lo)
	if n > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := as.Read(buf, addr+arch.GVA(s.lo)); err != nil {
		return record{}, fmt.Errorf("read %s at %v: %w", s.name, addr, err)
	}
	return record{addr: addr, lo: s.lo, buf: buf}, nil
}

// bytes returns the member's bytes; nil when it is absent.
func (r record) bytes(m member) []byte {
	if !m.ok() || m.off < r.lo || m.end() > r.lo+uint64(len(r.buf)) {
		return nil
	}
	return r.buf[m.off-r.lo : m.end()-r.lo]
}

// uint returns the member as a number: at most its first eight bytes, zero
// when it is absent.
func (r record) uint(m member) uint64 {
	var b [8]byte
	copy(b[:], r.bytes(m))
	return binary.LittleEndian.Uint64(b[:])
}

// int returns the member as a signed 32-bit number.
func (r record) int(m member) int { return int(int32(r.uint(m))) }

// ptr returns the member as a pointer.
func (r record) ptr(m member) arch.GVA { return arch.GVA(r.uint(m)) }

// str returns the member, an array of characters, up to its NUL.
func (r record) str(m member) string { return cString(r.bytes(m)) }

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// lowest32 is the lowest address of any 32-bit kernel (PAGE_OFFSET with
// VMSPLIT_1G).
const lowest32 = 0x4000_0000

// kernelPointer tells whether a can be a pointer into the kernel's half of the
// address space, of a 64-bit or of a 32-bit kernel: the address space that it is
// read by has the one half only.
func kernelPointer(a arch.GVA) error {
	if int64(a) >= 0 && (a < lowest32 || a >= 1<<32) {
		return fmt.Errorf("%v is no kernel address: %w", a, osi.ErrCorrupt)
	}
	return nil
}

// fatal tells errors that end a list from those of one entry.
func fatal(err error) bool {
	return errors.Is(err, vitrine.ErrGone) || errors.Is(err, vitrine.ErrClosed) || errors.Is(err, vitrine.ErrReset) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// transient tells errors that reading again may cure: the guest runs, and a
// pointer that was followed may have gone stale meanwhile.
func transient(err error) bool {
	var fault *vitrine.FaultError
	var phys *vitrine.PhysicalError
	return !fatal(err) && (errors.Is(err, osi.ErrTorn) || errors.Is(err, osi.ErrCorrupt) || errors.As(err, &fault) || errors.As(err, &phys))
}

// attempts is how often something torn is read before it is reported.
const attempts = 8

// retry runs f until it succeeds, fails for good, or has failed attempts times.
func retry(ctx context.Context, as *vitrine.AddressSpace, f func() error) error {
	var err error
	for range attempts {
		if err = ctx.Err(); err != nil {
			return err
		}
		if err = f(); err == nil || !transient(err) {
			return err
		}
		as.Invalidate()
	}
	return err
}
