package probe

import (
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

func TestWallClock(t *testing.T) {
	const keeper = 0xffffffff81000000
	b := vitrinetest.New()
	space := b.NewSpace(arch.Paging4Level)
	space.Map(keeper, arch.PageSize, vitrinetest.Writable)
	c := &wallClock{as: b.Guest().AddressSpace(arch.Paging4Level, space.Root()), seq: keeper, keeper: keeper + 8, sec: 0, nsec: 8, shift: 16}
	tick := func(at time.Duration) {
		space.PutUint64(keeper+8, uint64(1000+at/time.Second))
		space.PutUint64(keeper+16, uint64(at%time.Second)<<8)
		space.PutUint64(keeper+24, 8)
	}
	start := time.Unix(1000, 0)
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for i, s := range []struct{ ran, tick, want int }{
		{0, 0, 0},
		{2, 0, 2},
		{5, 4, 5},
		{6, 4, 6},
		{20, 8, 18},  // ran on without a tick
		{21, 12, 19}, // measured with error: in order nevertheless
		{40, 40, 40},
		{41, 100, 100}, // the clock was set, or ran was short
		{42, 50, 50},   // it was set back
		{43, 50, 51},
	} {
		tick(ms(s.tick))
		got, ok := c.at(ms(s.ran))
		if want := start.Add(ms(s.want)); !ok || !got.Equal(want) {
			t.Errorf("step %d: %v, %v; want %v", i, got.Sub(start), ok, want.Sub(start))
		}
	}
	space.PutUint64(keeper, 1) // it is being written
	tick(time.Hour)
	if got, ok := c.at(45 * time.Millisecond); !ok || got.Sub(start) != 53*time.Millisecond {
		t.Errorf("while the guest writes: %v, %v", got.Sub(start), ok)
	}
	space.PutUint64(keeper, 2)
	space.PutUint64(keeper+24, 99)
	if got, ok := c.at(46 * time.Millisecond); ok {
		t.Errorf("with a shift of 99: %v", got)
	}
}
