package syscalls

import (
	"strconv"

	"github.com/vitrine-vmi/vitrine/arch"
)

// family is a group of constants that belong together; the generated files
// number them.
type family uint8

type familyInfo struct {
	name  string
	zero  string // of flags: the name of none of them
	flags bool
	mask  uint64 // bits that are an enumeration among the flags
}

type constant struct {
	value uint64
	name  string
}

type described struct{ name, text string }

// of returns the constants of a family in the order in which to try them.
func (f family) of(a arch.Arch) []constant {
	c := commonConst[f]
	if c != nil {
		return c
	}
	switch a {
	case arch.AMD64:
		return amd64Const[f]
	case arch.I386:
		return i386Const[f]
	case arch.ARM64:
		return arm64Const[f]
	}
	return nil
}

// find returns the name of exactly v among the constants of a family, within
// the bits of mask.
func (f family) find(a arch.Arch, v, mask uint64) (string, bool) {
	for _, c := range f.of(a) {
		if c.value == v && c.value&^mask == 0 {
			return c.name, true
		}
	}
	return "", false
}

// append appends v in words: one name for an enumeration, names and the
// unknown rest joined by | for flags.
func (f family) append(b []byte, a arch.Arch, v uint64) []byte {
	info := &families[f]
	if v == 0 && info.zero != "" {
		return append(b, info.zero...)
	}
	if info.flags {
		return f.appendFlags(b, a, v, info.mask)
	}
	if name, ok := f.find(a, v, ^uint64(0)); ok {
		return append(b, name...)
	}
	return appendHex(b, v)
}

func (f family) appendFlags(b []byte, a arch.Arch, v, mask uint64) []byte {
	start := len(b)
	if mask != 0 {
		if name, ok := f.find(a, v&mask, mask); ok {
			b = append(append(b, name...), '|')
			v &^= mask
		}
	}
	for _, c := range f.of(a) {
		if c.value&^mask == 0 || v&c.value != c.value {
			continue
		}
		b = append(append(b, c.name...), '|')
		v &^= c.value
	}
	if v != 0 || len(b) == start {
		return appendHex(b, v)
	}
	return b[:len(b)-1]
}

// OpenFlags returns the flags of open(2) in words ("O_RDWR|O_CLOEXEC"), as the
// kernel also keeps them for an open file.
func OpenFlags(a arch.Arch, flags uint64) string {
	large := largeFile[a]
	b := famOpen.append(nil, a, flags&^large)
	if flags&large != 0 {
		b = append(b, "|O_LARGEFILE"...)
	}
	return string(b)
}

// largeFile is what the kernel has for O_LARGEFILE. On 64-bit kernels programs
// have no use for it, and the kernel sets it in every open file.
var largeFile = map[arch.Arch]uint64{arch.AMD64: 0x8000, arch.I386: 0x8000, arch.ARM64: 0x20000}

// SignalName returns the name of a signal ("SIGKILL", "SIGRT_3"), and false
// for 0 and what is no signal.
func SignalName(n int) (string, bool) {
	if n > 0 && n < len(signals) && signals[n].name != "" {
		return signals[n].name, true
	}
	if n >= 32 && n <= 64 {
		return "SIGRT_" + strconv.Itoa(n-32), true
	}
	return "", false
}

// appendHex appends v as 0x and hexadecimal digits, and 0 as 0.
func appendHex(b []byte, v uint64) []byte {
	if v == 0 {
		return append(b, '0')
	}
	return strconv.AppendUint(append(b, "0x"...), v, 16)
}
