package windows

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unicode/utf16"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
)

// system implements osi.System. Its fields do not change but the cache.
type system struct {
	g      *vitrine.Guest
	k      *kernel.Kernel
	nt     *kernel.NT
	l      *layout
	kernel *vitrine.AddressSpace
	w      arch.GVA              // bytes of a pointer
	triage *vitrine.WindowsCrash // of a triage dump: the one process and thread, and the drivers; nil otherwise

	mu sync.Mutex
	// Protected by mu.
	kinds map[arch.GVA]string // names of object types, by address
	flags *vadFlags           // nil until learnt
	keys  *arch.GVA           // nil until learnt: see keyShift
}

var _ osi.System = (*system)(nil)

func open(g *vitrine.Guest, k *kernel.Kernel) (*system, error) {
	l, err := newLayout(k)
	if err != nil {
		return nil, fmt.Errorf("open windows provider: %w", err)
	}
	s := &system{g: g, k: k, nt: k.NT(), l: l, kernel: k.AddressSpace(), w: arch.GVA(k.PointerSize()), kinds: map[arch.GVA]string{}}
	if c := g.WindowsCrash(); c != nil && c.Type == vitrine.WindowsTriage {
		s.triage = c
	}
	return s, nil
}

// OS implements osi.System.
func (s *system) OS() string { return "windows" }

// fresh returns the kernel's address space without cached translations: pool
// that is paged or freed is mapped anew.
func (s *system) fresh() *vitrine.AddressSpace {
	return s.nt.SoftPages(s.g.AddressSpace(s.kernel.Mode(), s.kernel.Root()))
}

// record is a copy of a structure. Members beyond its end read as zero.
type record struct {
	addr arch.GVA
	buf  []byte
	w    int
}

// load copies n bytes of a structure of the kernel. Where its end lies in a
// page that can't be read, the rest is zero.
func (s *system) load(as *vitrine.AddressSpace, what string, addr arch.GVA, n int) (record, error) {
	r := record{addr: addr, buf: make([]byte, n), w: int(s.w)}
	if !s.nt.KernelAddress(addr) || addr%4 != 0 {
		return r, fmt.Errorf("read %s at %v: no kernel address: %w", what, addr, osi.ErrCorrupt)
	}
	got, err := as.Read(r.buf, addr)
	if got < min(n, 0x40) {
		return r, fmt.Errorf("read %s at %v: %w", what, addr, err)
	}
	return r, nil
}

func (r record) uint(m member, size int) uint64 {
	var b [8]byte
	if m.ok && int(m.off)+size <= len(r.buf) {
		copy(b[:size], r.buf[m.off:])
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (r record) ptr(m member) arch.GVA { return arch.GVA(r.uint(m, r.w)) }
func (r record) u32(m member) uint32   { return uint32(r.uint(m, 4)) }
func (r record) u64(m member) uint64   { return r.uint(m, 8) }

// word reads a pointer of the kernel.
func (s *system) word(as *vitrine.AddressSpace, va arch.GVA) (arch.GVA, error) {
	return s.nt.Word(as, va)
}

// maxText bounds a text in bytes; a UNICODE_STRING holds no more.
const maxText = 1 << 16

// unicode reads a UNICODE_STRING at va, with pointers of w bytes: those of a
// 32-bit process of a 64-bit system have 4.
func unicode(as *vitrine.AddressSpace, va, w arch.GVA) (string, error) {
	length, err := as.ReadUint16(va)
	if err != nil || length == 0 {
		return "", err
	}
	var buffer arch.GVA
	if w == 8 {
		v, e := as.ReadUint64(va + w)
		buffer, err = arch.GVA(v), e
	} else {
		v, e := as.ReadUint32(va + w)
		buffer, err = arch.GVA(v), e
	}
	if err != nil {
		return "", err
	}
	return wide(as, buffer, int(length))
}

// wide reads UTF-16 text of n bytes.
func wide(as *vitrine.AddressSpace, va arch.GVA, n int) (string, error) {
	if n%2 != 0 || n > maxText {
		return "", fmt.Errorf("text of %d bytes: %w", n, osi.ErrCorrupt)
	}
	b := make([]byte, n)
	if _, err := as.Read(b, va); err != nil {
		return "", err
	}
	u := make([]uint16, n/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u)), nil
}

// str reads a UNICODE_STRING of the kernel.
func (s *system) str(as *vitrine.AddressSpace, va arch.GVA) (string, error) {
	return unicode(as, va, s.w)
}

// text makes a text of what was read: what is not in memory is said to be paged
// out; any other failure leaves it empty.
func text(str string, err error) string {
	if pagedOut(err) {
		return osi.PagedOut
	}
	return str
}

func pagedOut(err error) bool {
	var fault *vitrine.FaultError
	return errors.As(err, &fault)
}

// fatal tells errors that end a list from those of one entry.
func fatal(err error) bool {
	return errors.Is(err, vitrine.ErrGone) || errors.Is(err, vitrine.ErrClosed) || errors.Is(err, vitrine.ErrReset) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// attempts is how often something torn is read before it is reported.
const attempts = 8

// collect returns the structures on a list of the kernel or of a process: head
// is the address of its LIST_ENTRY, link that of the link within each entry.
// Each link must lead back to where the walk came from; a list that fails is
// walked again, and in the end the longest part that was seen is returned with
// the error.
func (s *system) collect(ctx context.Context, as *vitrine.AddressSpace, head, link, w arch.GVA, limit int) ([]arch.GVA, error) {
	var best []arch.GVA
	var last error
	for range attempts {
		if err := ctx.Err(); err != nil {
			return best, err
		}
		out, err := collectOnce(as, head, link, w, limit)
		if err == nil {
			return out, nil
		}
		if last = err; len(out) > len(best) {
			best = out
		}
		if fatal(err) || len(out) == limit || pagedOut(err) && !s.g.Info().Live {
			break
		}
		as.Invalidate()
	}
	return best, last
}

func readWord(as *vitrine.AddressSpace, va, w arch.GVA) (arch.GVA, error) {
	if w == 8 {
		v, err := as.ReadUint64(va)
		return arch.GVA(v), err
	}
	v, err := as.ReadUint32(va)
	return arch.GVA(v), err
}

func collectOnce(as *vitrine.AddressSpace, head, link, w arch.GVA, limit int) ([]arch.GVA, error) {
	var out []arch.GVA
	from := head
	to, err := readWord(as, head, w)
	for ; err == nil && to != head; to, err = readWord(as, to, w) {
		if len(out) == limit {
			return out, fmt.Errorf("walk list at %v: more than %d entries: %w", head, limit, osi.ErrCorrupt)
		}
		if to == 0 {
			return out, fmt.Errorf("walk list at %v: %v leads nowhere: %w", head, from, osi.ErrTorn)
		}
		back, err := readWord(as, to+w, w)
		if err != nil {
			return out, err
		}
		if back != from {
			return out, fmt.Errorf("walk list at %v: %v leads back to %v, not to %v: %w", head, to, back, from, osi.ErrTorn)
		}
		out = append(out, to-link)
		from = to
	}
	return out, err
}
