package implant

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
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

// claim moves head and returns the index and offset of units, false when the ring is full.
func (g *fakeGuest) claim(units uint64) (i, off uint64, ok bool) {
	tail, _ := g.m.load(hdrTail)
	if g.head+units-tail > g.l.units {
		return 0, 0, false
	}
	i = g.head
	g.head += units
	g.put(hdrHead, g.head)
	return i, g.l.ring + (i&(g.l.units-1))*unitSize, true
}

// unitsFor returns how many units a record with so much data takes.
func unitsFor(data int) uint64 { return uint64(slotData+data+unitSize-1) / unitSize }

func (g *fakeGuest) fill(i, off uint64, fn uint32, kind, flags byte, data []byte) {
	p := make([]byte, slotData+len(data))
	le := binary.LittleEndian
	le.PutUint16(p[slotFunc:], uint16(fn))
	p[slotKind], p[slotFlags] = kind, flags
	le.PutUint16(p[slotLen:], uint16(len(data)))
	le.PutUint64(p[slotCall:], i)
	if flags&slotSlim != 0 {
		p = p[:slotSlimEnd]
	} else {
		le.PutUint64(p[slotArgs:], i*10)
		copy(p[slotData:], data)
	}
	if err := g.m.write(p[8:], off+8); err != nil {
		panic(err)
	}
	g.put(off, i+g.l.key)
}

func (g *fakeGuest) post(fn uint32, data string) bool {
	i, off, ok := g.claim(unitsFor(len(data)))
	if ok {
		g.fill(i, off, fn, kindEnter, 0, []byte(data))
	}
	return ok
}

// postSlim posts the return of the call at index call.
func (g *fakeGuest) postSlim(fn uint32) bool {
	i, off, ok := g.claim(1)
	if ok {
		g.fill(i, off, fn, kindReturn, slotSlim, nil)
	}
	return ok
}

func TestRingReadsAll(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 22) // as much as fits
	for _, mapped := range []bool{true, false} {
		r, g := testRing(mapped)
		got, posted := 0, 0
		for round := range 100 {
			now := 0
			for range 7 + round%60 {
				ok := false
				switch data := long[:posted*7%(slotSize-slotData+1)]; {
				case posted%3 == 2:
					ok = g.postSlim(uint32(posted) % 3)
				default:
					ok = g.post(uint32(posted)%3, data)
				}
				if !ok {
					break
				}
				posted++
				now++
			}
			n, err := r.read(1000, func(rec *record) error {
				slim, want := got%3 == 2, long[:got*7%(slotSize-slotData+1)]
				if rec.fn != uint32(got)%3 || rec.ret != slim || rec.call != rec.index || !slim && (rec.args[0] != rec.index*10 || string(rec.data) != want) {
					t.Fatalf("mapped %v: record %d is %+v; want data %q", mapped, got, rec, want)
				}
				got++
				return nil
			})
			if n != now || err != nil {
				t.Fatalf("mapped %v round %d: read = %d, %v; want %d", mapped, round, n, err, now)
			}
		}
		if tail, _ := r.m.load(hdrTail); tail != g.head || g.head < 8*r.l.units || r.forged != 0 {
			t.Errorf("mapped %v: tail %d, head %d of %d units, %d forged", mapped, tail, g.head, r.l.units, r.forged)
		}
	}
}

func TestRingFull(t *testing.T) {
	r, g := testRing(true)
	n := 0
	for g.post(0, "") {
		n++
	}
	if want := int(r.l.units / unitsFor(0)); n != want {
		t.Fatalf("%d records fit; want %d", n, want)
	}
	for g.postSlim(0) {
	}
	if got, err := r.read(10, func(*record) error { return nil }); got != 10 || err != nil {
		t.Errorf("read(10) = %d, %v", got, err)
	}
	for range 10 {
		if !g.post(1, "") {
			t.Error("a record that was read was not given back")
		}
	}
	if g.postSlim(1) {
		t.Error("a record that was not read was given back")
	}
}

func TestRingWaitsForCompletion(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		r, g := testRing(mapped)
		i, off, _ := g.claim(unitsFor(0))
		// What user space can put into the ring, its arguments for example, does not make a record.
		g.put(off, i+1)
		g.post(1, "")
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

func TestRingKeepsWaitingRecords(t *testing.T) {
	r, g := testRing(true)
	i, off, _ := g.claim(unitsFor(0))
	g.fill(i, off, 0, kindEnter, slotSync, nil)
	g.post(1, "")
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
		t.Errorf("answer %d, value %d, tail %d; want %d, 42, and the record kept", answer, value, tail, answerSkip)
	}
	g.put(off, 0) // the thread has gone on
	g.post(1, "")
	read()
	if tail, _ := g.m.load(hdrTail); tail != 3*unitsFor(0) {
		t.Errorf("tail is %d; want %d", tail, 3*unitsFor(0))
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
	g.post(3, "") // there are functions 0 to 2
	i, off, _ := g.claim(unitsFor(0))
	g.fill(i, off, 0, 9, 0, nil)
	g.post(2, "")
	var fns []uint32
	n, err := r.read(10, func(rec *record) error { fns = append(fns, rec.fn); return nil })
	if n != 3 || err != nil || len(fns) != 1 || fns[0] != 2 || r.forged != 2 {
		t.Errorf("read = %d, %v, functions %v, %d forged; want 3 read, one delivered, 2 forged", n, err, fns, r.forged)
	}
}

// A size that makes no sense leaves nowhere to go on.
func TestRingForgedSize(t *testing.T) {
	for name, forge := range map[string]func(g *fakeGuest, i, off uint64){
		"data":        func(g *fakeGuest, _, off uint64) { g.put(off+slotFunc, kindEnter<<32|(slotSize-slotData+1)<<48) },
		"slim entry":  func(g *fakeGuest, _, off uint64) { g.put(off+slotFunc, kindEnter<<32|slotSlim<<40) },
		"behind head": func(g *fakeGuest, _, off uint64) { g.put(off+slotFunc, kindEnter<<32|64<<48) },
	} {
		for _, mapped := range []bool{true, false} {
			r, g := testRing(mapped)
			i, off, _ := g.claim(unitsFor(0))
			g.fill(i, off, 0, kindEnter, 0, nil)
			forge(g, i, off)
			if _, err := r.read(10, func(*record) error { return nil }); !errors.Is(err, errForged) || r.forged != 1 {
				t.Errorf("%s, mapped %v: read = %v, %d forged; want %v", name, mapped, err, r.forged, errForged)
			}
		}
	}
}

func TestRingHandlerError(t *testing.T) {
	r, g := testRing(true)
	g.post(0, "")
	g.post(1, "")
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
		if len(p) < slotSlimEnd {
			return
		}
		w := word(le64(p[slotFunc:]))
		n := min(len(p), max(w.size(), 1))
		var r record
		if err := r.decode(p[:n], w, 7, 3); err == nil {
			if r.fn >= 3 || len(r.data) > slotSize-slotData {
				t.Errorf("decode accepted %+v", r)
			}
			if got := r.captures(nil, maxCaptures); len(got) != maxCaptures {
				t.Errorf("%d captures", len(got))
			}
			nameOf(&r.comm)
		}
	})
}

// FuzzRing reads a ring that the guest has filled with anything, marks included.
func FuzzRing(f *testing.F) {
	f.Add([]byte{kindEnter, 0, 0, kindReturn, slotSlim, 0}, uint64(6), true)
	f.Add([]byte{kindEnter, slotSync, 200, kindEnter, 0, 0xff}, uint64(100), false)
	f.Fuzz(func(t *testing.T, b []byte, head uint64, mapped bool) {
		r, g := testRing(mapped)
		g.put(hdrHead, head)
		for i := range uint64(len(b) / 3) {
			off := g.l.ring + (i&(g.l.units-1))*unitSize
			g.put(off+slotFunc, uint64(b[3*i])<<32|uint64(b[3*i+1])<<40|uint64(b[3*i+2])<<48)
			g.put(off, i+g.l.key)
		}
		for last := uint64(0); ; last = r.next {
			_, err := r.read(1000, func(rec *record) error {
				if rec.index < last || rec.fn >= r.nfuncs || len(rec.data) > slotSize-slotData {
					t.Errorf("record %+v after %d", rec, last)
				}
				return r.answer(answerGo, 0)
			})
			if err != nil || r.next == last {
				break
			}
		}
		if head <= r.l.units && r.tail > head {
			t.Errorf("gave back %d of %d units", r.tail, head)
		}
	})
}

func BenchmarkRingRead(b *testing.B) {
	r, g := testRing(true)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		g.post(0, "")
		if _, err := r.read(64, func(*record) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
	}
	if n != b.N {
		b.Errorf("read %d of %d", n, b.N)
	}
}
