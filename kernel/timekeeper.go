package kernel

import (
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Timekeeper returns where a Linux kernel has its core timekeeper (struct
// timekeeper), and the 32-bit sequence count that is odd while it is written.
// Until 6.12 the two lie in tk_core; 6.13 gave the pair a type of its own,
// tk_data, and 6.17 made it the first of an array. The error is an ErrNoSymbol
// where the kernel has none of these. It may be called concurrently.
func (k *Kernel) Timekeeper() (sequence, timekeeper arch.GVA, err error) {
	for _, name := range []string{"tk_core", "timekeeper_data"} {
		if at, err := k.address(name); err == nil {
			return at, at + arch.GVA(k.timekeeperBehind()), nil
		}
	}
	return 0, 0, fmt.Errorf("find timekeeper: neither tk_core nor timekeeper_data: %w", ErrNoSymbol)
}

// timekeeperBehind returns how far behind its sequence count the timekeeper
// lies. A kernel for real time keeps the address of the count's lock beside it.
func (k *Kernel) timekeeperBehind() uint64 {
	if f, err := k.types.Field("tk_data", "timekeeper"); err == nil {
		return f.Offset
	}
	align := uint64(k.PointerSize()) // of 64-bit numbers too: 4 on 32-bit x86
	n, err := k.types.Size("seqcount_raw_spinlock")
	if err != nil { // a plain seqcount_t until 5.8
		n = 4
	}
	return (n + align - 1) / align * align
}
