package implant

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// ram is a backend of n bytes, mapped or not.
type ram struct {
	b      []byte
	mapped bool
}

func (r *ram) ReadPhysical(p []byte, a arch.GPA) (int, error) { return copy(p, r.b[a:]), nil }
func (r *ram) Regions() []vitrine.Region                      { return []vitrine.Region{{Size: uint64(len(r.b))}} }
func (r *ram) Close() error                                   { return nil }
func (r *ram) WritePhysical(p []byte, a arch.GPA) error       { copy(r.b[a:], p); return nil }
func (r *ram) MapPhysical(a arch.GPA, n uint64) []byte {
	if !r.mapped {
		return nil
	}
	return r.b[a : uint64(a)+n]
}

// testRing returns a ring of 64 slots in memory whose pages lie in reverse.
func testRing(mapped bool) (*ring, *fakeGuest) {
	l := newLayout(3, 64)
	r := &ram{b: make([]byte, l.size), mapped: mapped}
	m := &memory{g: vitrine.New(r, vitrine.Info{Arch: arch.AMD64, CPUs: 1})}
	for off := int(l.size) - pageSize; off >= 0; off -= pageSize {
		m.frames = append(m.frames, arch.GPA(off))
		m.mapped = append(m.mapped, m.g.MapPhysical(arch.GPA(off), pageSize))
	}
	return newRing(m, l, 3), &fakeGuest{m: m, l: l}
}

// fakeGuest posts records as implant.c does.
type fakeGuest struct {
	m    *memory
	l    layout
	head uint64
}

func (g *fakeGuest) put(off, v uint64) {
	if err := g.m.store(off, v); err != nil {
		panic(err)
	}
}

// claim moves head and returns the index and offset of a slot, false when the ring is full.
func (g *fakeGuest) claim() (i, off uint64, ok bool) {
	tail, _ := g.m.load(hdrTail)
	if g.head-tail >= g.l.slots {
		return 0, 0, false
	}
	i = g.head
	g.head++
	g.put(hdrHead, g.head)
	return i, g.l.ring + (i&(g.l.slots-1))*slotSize, true
}

func (g *fakeGuest) fill(i, off uint64, fn uint32, kind, flags byte, data []byte) {
	p := make([]byte, slotSize)
	binary.LittleEndian.PutUint32(p[slotFunc:], fn)
	p[slotKind], p[slotFlags] = kind, flags
	binary.LittleEndian.PutUint64(p[slotArgs:], i*10)
	binary.LittleEndian.PutUint64(p[slotCall:], i)
	binary.LittleEndian.PutUint32(p[slotLen:], uint32(len(data)))
	copy(p[slotData:], data)
	if err := g.m.write(p[8:], off+8); err != nil {
		panic(err)
	}
	g.put(off, i+1)
}

func (g *fakeGuest) post(fn uint32) bool {
	i, off, ok := g.claim()
	if ok {
		g.fill(i, off, fn, kindEnter, 0, []byte("abc"))
	}
	return ok
}

func TestRingReadsAll(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		r, g := testRing(mapped)
		next := uint64(0)
		for round := range 50 {
			posted := 0
			for range 7 + round%60 {
				if g.post(uint32(posted) % 3) {
					posted++
				}
			}
			n, err := r.read(1000, func(rec *record) error {
				if rec.index != next || rec.args[0] != next*10 || string(rec.data) != "abc" {
					t.Fatalf("mapped %v: record %+v; want index %d", mapped, rec, next)
				}
				next++
				return nil
			})
			if n != posted || err != nil {
				t.Fatalf("mapped %v round %d: read = %d, %v; want %d", mapped, round, n, err, posted)
			}
		}
		if tail, _ := r.m.load(hdrTail); tail != next || next < 1000 || r.forged != 0 {
			t.Errorf("mapped %v: tail %d after %d records, %d forged", mapped, tail, next, r.forged)
		}
	}
}

func TestRingFull(t *testing.T) {
	r, g := testRing(true)
	n := 0
	for g.post(0) {
		n++
	}
	if n != 64 {
		t.Fatalf("%d records fit; want 64", n)
	}
	if got, err := r.read(10, func(*record) error { return nil }); got != 10 || err != nil {
		t.Errorf("read(10) = %d, %v", got, err)
	}
	for range 10 {
		if !g.post(1) {
			t.Error("a slot that was read was not given back")
		}
	}
	if g.post(1) {
		t.Error("a slot that was not read was given back")
	}
}

func TestRingWaitsForCompletion(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		r, g := testRing(mapped)
		i, off, _ := g.claim()
		g.post(1)
		if n, err := r.read(10, nil); n != 0 || err != nil {
			t.Errorf("mapped %v: read over an incomplete record = %d, %v; want 0", mapped, n, err)
		}
		g.fill(i, off, 2, kindReturn, 0, nil)
		var fns []uint32
		if _, err := r.read(10, func(rec *record) error { fns = append(fns, rec.fn); return nil }); err != nil || len(fns) != 2 || fns[0] != 2 {
			t.Errorf("mapped %v: read %v, %v; want functions 2 and 1", mapped, fns, err)
		}
	}
}

func TestRingKeepsWaitingSlots(t *testing.T) {
	r, g := testRing(true)
	i, off, _ := g.claim()
	g.fill(i, off, 0, kindEnter, slotSync, nil)
	g.post(1)
	read := func() {
		if _, err := r.read(10, func(rec *record) error {
			if rec.flags&slotSync != 0 {
				return r.answer(answerSkip, 42)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	read()
	answer, _ := g.m.load(off + slotAnswer)
	value, _ := g.m.load(off + slotValue)
	if tail, _ := g.m.load(hdrTail); tail != 0 || answer != answerSkip || value != 42 {
		t.Errorf("answer %d, value %d, tail %d; want %d, 42, and the slot kept", answer, value, tail, answerSkip)
	}
	g.put(off, 0) // the thread has gone on
	g.post(1)
	read()
	if tail, _ := g.m.load(hdrTail); tail != 3 {
		t.Errorf("tail is %d; want 3", tail)
	}
}

func TestRingForgedHead(t *testing.T) {
	r, g := testRing(true)
	g.put(hdrHead, 1000)
	if n, err := r.read(10, nil); n != 0 || !errors.Is(err, errForged) || r.forged != 1 {
		t.Errorf("read with a forged head = %d, %v, %d forged; want %v", n, err, r.forged, errForged)
	}
}

func TestRingSkipsForgedRecords(t *testing.T) {
	r, g := testRing(true)
	g.post(3) // there are functions 0 to 2
	i, off, _ := g.claim()
	g.fill(i, off, 0, 9, 0, nil)
	i, off, _ = g.claim()
	g.fill(i, off, 0, kindEnter, 0, nil)
	g.put(off+slotLen, 1<<31)
	g.post(2)
	var fns []uint32
	n, err := r.read(10, func(rec *record) error { fns = append(fns, rec.fn); return nil })
	if n != 4 || err != nil || len(fns) != 1 || fns[0] != 2 || r.forged != 3 {
		t.Errorf("read = %d, %v, functions %v, %d forged; want 4 read, one delivered, 3 forged", n, err, fns, r.forged)
	}
}

func TestRingHandlerError(t *testing.T) {
	r, g := testRing(true)
	g.post(0)
	g.post(1)
	stop := errors.New("stop")
	if n, err := r.read(10, func(*record) error { return stop }); n != 1 || !errors.Is(err, stop) {
		t.Errorf("read = %d, %v; want 1, %v", n, err, stop)
	}
}

func TestCaptures(t *testing.T) {
	data := func(parts ...[]byte) []byte {
		var p []byte
		for _, b := range parts {
			n := uint16(len(b))
			if b == nil {
				n = capFailed
			}
			p = binary.LittleEndian.AppendUint16(p, n)
			p = append(p, b...)
			if len(b)%2 == 1 {
				p = append(p, 0)
			}
		}
		return p
	}
	r := record{data: data([]byte("odd"), nil, []byte("even"))}
	got := r.captures(nil, 4)
	if len(got) != 4 || string(got[0]) != "odd" || got[1] != nil || string(got[2]) != "even" || got[3] != nil {
		t.Errorf("captures = %q", got)
	}
	r.data = []byte{200, 0, 1}
	if got := r.captures(got, 1); len(got) != 1 || got[0] != nil {
		t.Errorf("captures of a forged length = %q; want nil", got)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(make([]byte, slotSize))
	f.Add(bytes.Repeat([]byte{0xff}, slotSize))
	f.Fuzz(func(t *testing.T, p []byte) {
		var r record
		if err := r.decode(p, 7, 3); err == nil {
			if r.fn >= 3 || len(r.data) > slotSize-slotData {
				t.Errorf("decode accepted %+v", r)
			}
			if got := r.captures(nil, maxCaptures); len(got) != maxCaptures {
				t.Errorf("%d captures", len(got))
			}
			r.name()
		}
	})
}

func BenchmarkRingRead(b *testing.B) {
	r, g := testRing(true)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		g.post(0)
		if _, err := r.read(64, func(*record) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
	}
	if n != b.N {
		b.Errorf("read %d of %d", n, b.N)
	}
}
