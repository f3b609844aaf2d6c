package probe

import (
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// ntTicks reads what an NT kernel notes at each clock interrupt, some 64 times a
// second unless a program asked for more.
type ntTicks struct {
	as     *vitrine.AddressSpace
	shared arch.GVA // KUSER_SHARED_DATA
}

const (
	// from1601 is how many units lie between 1601, from which SystemTime counts,
	// and 1970.
	from1601 = 116_444_736_000_000_000
	ntUnit   = 100 * time.Nanosecond
)

// read returns the reading of the kernel's last tick, nothing before its first.
func (n *ntTicks) read() (reading, bool) {
	mono, wall, err := kernel.NTTimes(n.as, n.shared)
	const maxWall = from1601 + uint64(1<<62/ntUnit)
	if err != nil || wall <= from1601 || wall > maxWall || mono > maxWall-from1601 {
		return reading{}, false
	}
	r := reading{mono: time.Duration(mono) * ntUnit}
	r.real = time.Duration(wall-from1601)*ntUnit - r.mono
	return r, true
}
