package probe

import (
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// forgedClock is a kernel's timekeeper in the memory of a fake guest.
type forgedClock struct {
	*wallClock
	space *vitrinetest.Space
}

const forgedKeeper = 0xffffffff81000000

// forgedReal is what its wall clock is ahead of its monotonic one.
const forgedReal = 1000 * time.Second

func forgeClock() *forgedClock {
	b := vitrinetest.New()
	space := b.NewSpace(arch.Paging4Level)
	space.Map(forgedKeeper, arch.PageSize, vitrinetest.Writable)
	return &forgedClock{&wallClock{
		as: b.Guest().AddressSpace(arch.Paging4Level, space.Root()), seq: forgedKeeper, keeper: forgedKeeper + 8, sec: 0, nsec: 8, shift: 16, real: 24,
	}, space}
}

// tick forges what the kernel notes at a tick.
func (f *forgedClock) tick(mono, real time.Duration) {
	wall := mono + real
	f.space.PutUint64(forgedKeeper+8, uint64(wall/time.Second))
	f.space.PutUint64(forgedKeeper+16, uint64(wall%time.Second)<<8)
	f.space.PutUint64(forgedKeeper+24, 8)
	f.space.PutUint64(forgedKeeper+32, uint64(real))
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func TestWallClock(t *testing.T) {
	f := forgeClock()
	start := time.Unix(1000, 0)
	for i, s := range []struct{ ran, mono, real, want int }{
		{0, 0, 0, 0},
		{2, 0, 0, 2},
		{5, 4, 0, 5},
		{20, 8, 0, 20}, // a tick from long ago tells nothing new
		{270, 8, 0, 270},
		{280, 285, 0, 285}, // the first tick was late: by this one
		{290, 288, 0, 295},
		{300, 288, 5000, 5305}, // somebody set the clock
		{310, 288, -200, 115},
		{311, 312, 0, 316},
		{900, 900, 0, 905},
		{1200, 1195, 0, 1205}, // the ticks of a second ago still count
		{2199, 1195, 0, 2204},
		{2203, 2198, 0, 2205}, // and now no more: it was ahead, and yet time goes on
		{2211, 2198, 0, 2207},
		{2231, 2198, 0, 2226},
		{2300, 2299, 0, 2299},
		{2301, 2100, 0, 2100}, // an earlier state was loaded
		{5, 2105, 0, 2105},    // another run
		{6, 2105, 0, 2106},
	} {
		f.tick(ms(s.mono), forgedReal+ms(s.real))
		got, ok := f.at(ms(s.ran))
		if want := start.Add(ms(s.want)); !ok || !got.Equal(want) {
			t.Errorf("step %d: %v, %v; want %v", i, got.Sub(start), ok, want.Sub(start))
		}
	}
}

// A guest whose every tick is late, by up to a quarter of a second, on a host
// whose clock goes 0.2% faster: its times are right, and those of its calls are
// apart from each other.
func TestWallClockOfLateTicks(t *testing.T) {
	f := forgeClock()
	start := time.Unix(1000, 0)
	last := time.Duration(-1)
	tick, next := time.Duration(0), time.Duration(0)
	worst := time.Duration(0)
	for i := range 4000 {
		true := ms(5*i) + time.Duration(i%7)*100*time.Microsecond
		if true >= next { // it comes now, and the next one too late
			tick, next = true.Truncate(ms(4)), true+ms([]int{50, 250, 4, 130}[i%4])
		}
		f.tick(tick, forgedReal)
		at, ok := f.at(true + true/500)
		got := at.Sub(start)
		if !ok || got <= last {
			t.Fatalf("step %d: %v after %v, %v", i, got, last, ok)
		}
		last = got
		if true > time.Second {
			worst = max(worst, (got - true).Abs())
		}
	}
	if worst > ms(10) {
		t.Errorf("off by %v", worst)
	}
}

func TestWallClockOfATornTimekeeper(t *testing.T) {
	f := forgeClock()
	f.space.PutUint64(forgedKeeper, 1)
	f.tick(0, forgedReal)
	if got, ok := f.at(0); ok {
		t.Errorf("the first answer, while the guest writes: %v", got)
	}
	f.space.PutUint64(forgedKeeper, 2)
	f.at(0)
	f.space.PutUint64(forgedKeeper, 3)
	f.tick(time.Hour, forgedReal)
	if got, ok := f.at(ms(45)); !ok || got.Sub(time.Unix(1000, 0)) != ms(45) {
		t.Errorf("while the guest writes: %v, %v", got, ok)
	}
	f.space.PutUint64(forgedKeeper, 4)
	for what, at := range map[string]arch.GVA{"shift": 24, "seconds": 8, "offset": 32} {
		f.tick(0, forgedReal)
		f.space.PutUint64(forgedKeeper+at, 1<<63+99)
		if got, ok := f.at(ms(46)); ok {
			t.Errorf("with an impossible %s: %v", what, got)
		}
	}
}
