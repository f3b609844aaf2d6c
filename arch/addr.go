package arch

import "fmt"

// GVA is a guest-virtual address.
type GVA uint64

// GPA is a guest-physical address.
type GPA uint64

// GFN is a guest frame number: a guest-physical address shifted right by 12,
// whatever the page size in use.
type GFN uint64

// PageSize is the smallest page of every format that this package knows, in bytes.
const PageSize = 4096

// String returns the address as 0x followed by lower-case hexadecimal.
func (a GVA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// String returns the address as 0x followed by lower-case hexadecimal.
func (a GPA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// String returns the frame number as 0x followed by lower-case hexadecimal.
func (f GFN) String() string { return fmt.Sprintf("%#x", uint64(f)) }

// Page returns the start of the 4 KiB page that holds a.
func (a GVA) Page() GVA { return a &^ (PageSize - 1) }

// Page returns the start of the 4 KiB page that holds a.
func (a GPA) Page() GPA { return a &^ (PageSize - 1) }

// Frame returns the number of the frame that holds a.
func (a GPA) Frame() GFN { return GFN(a / PageSize) }

// Addr returns the first address of the frame.
func (f GFN) Addr() GPA { return GPA(f) * PageSize }

// Arch names a guest's instruction set.
type Arch uint8

// The instruction sets that Vitrine knows.
const (
	Unknown Arch = iota
	AMD64        // x86-64, also while it still runs 32-bit or 16-bit code
	I386         // an x86 processor without long mode
	ARM64        // AArch64
)

var archNames = [...]string{Unknown: "unknown", AMD64: "x86_64", I386: "i386", ARM64: "aarch64"}

// String returns the name that uname -m and QEMU use.
func (a Arch) String() string {
	if int(a) < len(archNames) {
		return archNames[a]
	}
	return fmt.Sprintf("arch(%d)", uint8(a))
}

// PointerSize returns the size of a kernel pointer in bytes, 0 when the
// instruction set is unknown.
func (a Arch) PointerSize() int {
	switch a {
	case AMD64, ARM64:
		return 8
	case I386:
		return 4
	}
	return 0
}
