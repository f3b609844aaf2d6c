package probe

import (
	"errors"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// ntTicks reads what an NT kernel notes at each clock interrupt, some 64 times a
// second unless a program asked for more, in KUSER_SHARED_DATA: InterruptTime,
// which nobody sets, and SystemTime, both in units of 100 ns. They lie at the
// same place in every build (ntddk.h).
type ntTicks struct {
	as     *vitrine.AddressSpace
	shared arch.GVA
}

const (
	sharedInterruptTime = 0x08
	sharedSystemTime    = 0x14
	// from1601 is how many units lie between 1601, from which SystemTime counts,
	// and 1970.
	from1601 = 116_444_736_000_000_000
	ntUnit   = 100 * time.Nanosecond
)

// errTorn says that a time was being written.
var errTorn = errors.New("time is just being written")

// systemTime reads a KSYSTEM_TIME: the lower half between two copies of the
// upper, which are written before and after it.
func (n *ntTicks) systemTime(off arch.GVA) (uint64, error) {
	low, err := n.as.ReadUint32(n.shared + off)
	high1, err1 := n.as.ReadUint32(n.shared + off + 4)
	high2, err2 := n.as.ReadUint32(n.shared + off + 8)
	if err := errors.Join(err, err1, err2); err != nil {
		return 0, err
	}
	if high1 != high2 {
		return 0, errTorn
	}
	return uint64(high1)<<32 | uint64(low), nil
}

// read returns the reading of the kernel's last tick, nothing before its first.
func (n *ntTicks) read() (reading, bool) {
	mono, err := n.systemTime(sharedInterruptTime)
	wall, err2 := n.systemTime(sharedSystemTime)
	const maxWall = from1601 + uint64(1<<62/ntUnit)
	if errors.Join(err, err2) != nil || wall <= from1601 || wall > maxWall || mono > maxWall-from1601 {
		return reading{}, false
	}
	r := reading{mono: time.Duration(mono) * ntUnit}
	r.real = time.Duration(wall-from1601)*ntUnit - r.mono
	return r, true
}
