package vitrine_test

import (
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

func TestLargePagesAreCachedWhole(t *testing.T) {
	b := vitrinetest.New(vitrine.Region{Start: 0, Size: 2 << 30})
	s := b.NewSpace(arch.Paging4Level)
	const direct = arch.GVA(0xffff888000000000)
	s.MapTo(direct, 0x40000000, vitrinetest.Page1G, 0)
	s.MapTo(direct+1<<30, 0x40000000, vitrinetest.Page2M, 0)
	as := b.Guest().AddressSpace(s.Mode(), s.Root())
	b.PutUint64Physical(0x40123458, 77)
	for _, tt := range []struct {
		name string
		at   arch.GVA
		want int // reads of physical memory
	}{
		{"1 GiB page, not seen yet", 0x123458, 3},
		{"the same 2 MiB of it", 0x1ffff8, 1},
		{"other 2 MiB of it", 0x3ffffff8, 3},
		{"2 MiB page, not seen yet", 1<<30 + 0x123458, 4},
		{"another part of it", 1<<30 + 8, 1},
	} {
		before := b.Count(vitrinetest.OpRead)
		got, err := as.ReadUint64(direct + tt.at)
		if n := b.Count(vitrinetest.OpRead) - before; err != nil || n != tt.want {
			t.Errorf("%s: %d reads, %v, want %d", tt.name, n, err, tt.want)
		}
		if want := map[bool]uint64{true: 77}[tt.at&0x1fffff == 0x123458]; got != want {
			t.Errorf("%s: read %d, want %d", tt.name, got, want)
		}
	}
	s.MapTo(direct+1<<30, 0x60000000, vitrinetest.Page2M, 0)
	as.Invalidate()
	if pa, err := as.Translate(direct + 1<<30 + 5); err != nil || pa != 0x60000005 {
		t.Errorf("after Invalidate: %v, %v, want 0x60000005", pa, err)
	}
}
