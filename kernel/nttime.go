package kernel

import (
	"errors"
	"time"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Times that KUSER_SHARED_DATA has at the same place in every build (ntddk.h).
const (
	sharedInterruptTime = 0x08
	sharedSystemTime    = 0x14
)

// FiletimeUnix is how many units of 100 ns lie between 1601, from which NT counts
// its times, and 1970.
const FiletimeUnix = 116_444_736_000_000_000

const filetimePerSecond = 10_000_000

// Filetime returns the time in UTC that NT notes as v (FILETIME, minwinbase.h),
// the zero time for 0.
func Filetime(v uint64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(int64(v/filetimePerSecond)-FiletimeUnix/filetimePerSecond, int64(v%filetimePerSecond)*100).UTC()
}

// errTorn says that a time was being written.
var errTorn = errors.New("time is just being written")

// NTTimes reads what an NT kernel noted at its last clock interrupt, in units
// of 100 ns: how long it has been running (InterruptTime, which nobody sets),
// and the time since 1601 in UTC (SystemTime). Shared is where KUSER_SHARED_DATA
// lies. A time that is just being written is an error.
func NTTimes(as *vitrine.AddressSpace, shared arch.GVA) (interrupt, system uint64, err error) {
	interrupt, err = systemTime(as, shared+sharedInterruptTime)
	if err == nil {
		system, err = systemTime(as, shared+sharedSystemTime)
	}
	return interrupt, system, err
}

// systemTime reads a KSYSTEM_TIME: the lower half between two copies of the
// upper, which are written before and after it.
func systemTime(as *vitrine.AddressSpace, at arch.GVA) (uint64, error) {
	low, err := as.ReadUint32(at)
	high1, err1 := as.ReadUint32(at + 4)
	high2, err2 := as.ReadUint32(at + 8)
	if err := errors.Join(err, err1, err2); err != nil {
		return 0, err
	}
	if high1 != high2 {
		return 0, errTorn
	}
	return uint64(high1)<<32 | uint64(low), nil
}
