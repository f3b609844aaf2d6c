package probe

import (
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// The times of an NT guest are those of its own clock, whatever the host's.
func TestNTClock(t *testing.T) {
	const shared = 0xfffff78000000000
	b := vitrinetest.New()
	space := b.NewSpace(arch.Paging4Level)
	space.Map(shared, arch.PageSize, vitrinetest.Writable)
	c := &wallClock{nt: &ntTicks{as: b.Guest().AddressSpace(arch.Paging4Level, space.Root()), shared: shared}}
	put := func(at arch.GVA, v uint64) {
		space.PutUint64(at, v)
		var high [8]byte
		high[0], high[1], high[2], high[3] = byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56)
		space.Put(at+8, high[:4])
	}
	if at, ok := c.at(0); ok {
		t.Errorf("a clock that has not begun says %v", at)
	}
	start := time.Date(2003, 4, 24, 8, 0, 0, 0, time.UTC)
	units := uint64(start.Unix()+11_644_473_600) * 10_000_000
	tick := func(ran time.Duration) {
		put(shared+0x08, uint64(time.Hour+ran)/100)
		put(shared+0x14, units+uint64(ran)/100)
	}
	for _, s := range []struct{ tick, ran, want time.Duration }{
		{0, 0, 0}, {0, ms(7), ms(7)}, {ms(15), ms(16), ms(16)}, {ms(31), ms(30), ms(31)}, {ms(31), ms(50), ms(51)},
	} {
		tick(s.tick)
		if got, ok := c.at(s.ran); !ok || !got.Equal(start.Add(s.want)) {
			t.Errorf("after %v: %v, %v, want %v", s.ran, got, ok, start.Add(s.want))
		}
	}
	space.Put(shared+0x14+8, []byte{1, 2, 3, 4})
	if got, ok := c.at(ms(60)); ok {
		t.Errorf("a time that is just being written is read as %v", got)
	}
}
