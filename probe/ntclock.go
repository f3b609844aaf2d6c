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

const ntUnit = 100 * time.Nanosecond // of NT's times

// read returns the reading of the kernel's last tick, nothing before its first.
func (n *ntTicks) read() (reading, bool) {
	mono, wall, err := kernel.NTTimes(n.as, n.shared)
	const maxWall = kernel.FiletimeUnix + uint64(1<<62/ntUnit)
	if err != nil || wall <= kernel.FiletimeUnix || wall > maxWall || mono > maxWall-kernel.FiletimeUnix {
		return reading{}, false
	}
	r := reading{mono: time.Duration(mono) * ntUnit}
	r.real = time.Duration(wall-kernel.FiletimeUnix)*ntUnit - r.mono
	return r, true
}
