package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// window is a range of kernel addresses.
type window struct {
	start arch.GVA
	size  uint64
}

// directMap returns where the kernel maps all RAM, but for the first 16 MiB,
// which have holes.
func (e *env) directMap() (window, error) {
	const low = 16 << 20
	size := uint64(0)
	for _, r := range e.g.Regions() {
		if r.Start == 0 {
			size = r.Size
		}
	}
	if size <= low {
		return window{}, fmt.Errorf("find the direct map: no RAM from address 0 on: %v", e.g.Regions())
	}
	sym, err := e.k.Symbol("page_offset_base")
	if err != nil {
		return window{}, fmt.Errorf("find the direct map: %w", err)
	}
	var b [8]byte
	if _, err := e.k.AddressSpace().Read(b[:], sym.Addr); err != nil {
		return window{}, fmt.Errorf("find the direct map: %w", err)
	}
	base := arch.GVA(0)
	for i, v := range b {
		base |= arch.GVA(v) << (8 * i)
	}
	return window{base + low, size - low}, nil
}

// image returns the kernel's own code and read-only data.
func (e *env) image() (window, error) {
	start, err := e.k.Symbol("_stext")
	if err != nil {
		return window{}, err
	}
	end, err := e.k.Symbol("_etext")
	if err != nil {
		return window{}, err
	}
	return window{start.Addr, uint64(end.Addr - start.Addr)}, nil
}

// addresses returns n random readable ones in a window, each a multiple of 8.
// Some pages of the direct map are not there: the kernel takes those of its
// initial code out.
func (w window) addresses(as *vitrine.AddressSpace, n int) ([]arch.GVA, error) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same each time
	var out []arch.GVA
	for range 2 * n {
		a := w.start + arch.GVA(r.Uint64N(w.size-8)&^7)
		if _, err := as.Translate(a); err == nil {
			out = append(out, a)
		}
		if len(out) == n {
			return out, nil
		}
	}
	return nil, fmt.Errorf("only %d of %d addresses from %v on can be read", len(out), 2*n, w.start)
}

// pieces returns the addresses of those MiB of a window that can be read.
func (w window) pieces(as *vitrine.AddressSpace) []arch.GVA {
	var out []arch.GVA
	buf := make([]byte, piece)
	for off := uint64(0); off+piece <= w.size; off += piece {
		if _, err := as.Read(buf, w.start+arch.GVA(off)); err == nil {
			out = append(out, w.start+arch.GVA(off))
		}
	}
	return out
}

const piece = 1 << 20

// readAt reads len(buf) bytes at each address.
func readAt(as *vitrine.AddressSpace, at []arch.GVA, buf []byte) error {
	for _, a := range at {
		if _, err := as.Read(buf, a); err != nil {
			return fmt.Errorf("read %v: %w", a, err)
		}
	}
	return nil
}

// speed is how many things a second were done: by the clock, and by this
// process's processor time, which a loaded host does not change.
type speed struct{ wall, cpu float64 }

// measureSpeed calls f, which does n things on one goroutine, for a time.
func measureSpeed(d time.Duration, n int, f func() error) (speed, error) {
	start, used, done := time.Now(), processorTime(), 0
	for time.Since(start) < d {
		if err := f(); err != nil {
			return speed{}, err
		}
		done += n
	}
	return speed{float64(done) / time.Since(start).Seconds(), float64(done) / (processorTime() - used).Seconds()}, nil
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // its arguments are right
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measureMemory measures reads from one goroutine. The guest's RAM is mapped
// into this process, as with any guest of shared RAM.
func measureMemory(_ context.Context, e *env, t *table) error {
	direct, err := e.directMap()
	if err != nil {
		return err
	}
	image, err := e.image()
	if err != nil {
		return err
	}
	as := e.k.AddressSpace()
	for _, w := range []struct {
		name string
		window
	}{{"in kernel text", image}, {"in all RAM", direct}} {
		at, err := w.addresses(as, 1<<16)
		if err != nil {
			return err
		}
		var b [8]byte
		if err := readAt(as, at, b[:]); err != nil { // the host maps each page on first touch
			return err
		}
		v, err := measureSpeed(e.o.span(), len(at), func() error { return readAt(as, at, b[:]) })
		if err != nil {
			return err
		}
		t.add("random 8-byte reads, "+w.name, count(v.wall)+"/s", "> 2 M/s", fmt.Sprintf("%s/s of processor time; %d addresses over %d MiB, read before", count(v.cpu), len(at), w.size>>20))
	}
	at := direct.pieces(as)
	buf := make([]byte, piece)
	v, err := measureSpeed(e.o.span(), piece*len(at), func() error { return readAt(as, at, buf) })
	if err != nil {
		return err
	}
	t.add("sequential reads", fmt.Sprintf("%.2f GiB/s", v.wall/(1<<30)), "> 2 GiB/s", fmt.Sprintf("%.2f GiB/s of processor time; virtual addresses over %d MiB of RAM, 1 MiB a read", v.cpu/(1<<30), len(at)))
	return nil
}
