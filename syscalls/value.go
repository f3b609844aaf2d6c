package syscalls

import (
	"math/bits"
	"strconv"

	"github.com/vitrine-vmi/vitrine/arch"
)

// word cuts a value to the interface's word.
func (d *Decoder) word(v uint64) uint64 {
	if d.arch == arch.I386 {
		return v & 0xffffffff
	}
	return v
}

// wordSize is the size of long and of pointers in bytes.
func (d *Decoder) wordSize() int {
	if d.arch == arch.I386 {
		return 4
	}
	return 8
}

// value is argument i in the interface's word.
func (x *decoding) value(i int) uint64 { return x.d.word(x.c.Args[i]) }

// signed is argument i as a C long.
func (x *decoding) signed(i int) int64 {
	if x.d.arch == arch.I386 {
		return int64(int32(x.c.Args[i]))
	}
	return int64(x.c.Args[i])
}

// arg appends argument i, which is of kind k, and notes what went wrong.
func (x *decoding) arg(i int, k kind) {
	if k.id >= kindPath {
		x.memory(i, k)
		return
	}
	v := x.value(i)
	b := x.buf
	switch k.id {
	case kindPtr:
		b = appendPtr(b, v)
	case kindInt:
		b = strconv.AppendInt(b, int64(int32(v)), 10)
	case kindUint:
		b = strconv.AppendUint(b, uint64(uint32(v)), 10)
	case kindLong:
		b = strconv.AppendInt(b, x.signed(i), 10)
	case kindUlong:
		b = strconv.AppendUint(b, v, 10)
	case kindHex32:
		b = appendHex(b, uint64(uint32(v)))
	case kindUID:
		b = appendUID(b, uint32(v))
	case kindMode:
		b = appendMode(b, v&0xffff)
	case kindFD:
		b = appendFD(b, x.r, int(int32(v)))
	case kindDirFD:
		b = appendDirFD(b, x.r, int(int32(v)))
	case kindSignal:
		b = appendSignal(b, int(int32(v)))
	case kindConst:
		b = k.fam.append(b, x.d.arch, constWidth(k.fam, v))
	case kindClone:
		b = appendClone(b, x.d.arch, v)
	case kindIoctl:
		b = appendIoctl(b, x.d.arch, v&0xffffffff)
	case kindFcntl:
		b = x.appendFcntl(b, v, x.value(int(k.ref)))
	case kindSockOpt:
		b = appendSockOpt(b, x.d.arch, int(int32(v)), int(int32(x.value(int(k.ref)))))
	case kindProto:
		b = appendProto(b, x.d.arch, v&0xffffffff, x.value(int(k.ref))&0xffffffff)
	case kindDevice:
		b = appendDevice(b, uint32(v))
	default:
		b = appendHex(b, v)
	}
	x.buf = b
}

// constWidth cuts families of C ints to 32 bits: the upper halves of their
// registers are whatever they were.
func constWidth(f family, v uint64) uint64 {
	switch f {
	case famClone, famClone3, famUnshare, famMmap, famProt, famMount:
		return v // unsigned long
	}
	return v & 0xffffffff
}

func appendPtr(b []byte, v uint64) []byte {
	if v == 0 {
		return append(b, "NULL"...)
	}
	return appendHex(b, v)
}

func appendUID(b []byte, v uint32) []byte {
	if v == ^uint32(0) {
		return append(b, "-1"...)
	}
	return strconv.AppendUint(b, uint64(v), 10)
}

// fileTypes are the values of S_IFMT's bits.
var fileTypes = [16]string{
	0o14: "S_IFSOCK|", 0o12: "S_IFLNK|", 0o10: "S_IFREG|", 0o6: "S_IFBLK|",
	0o4: "S_IFDIR|", 0o2: "S_IFCHR|", 0o1: "S_IFIFO|",
}

// modeBits are shown by name where the file type is.
var modeBits = []constant{{0o4000, "S_ISUID"}, {0o2000, "S_ISGID"}, {0o1000, "S_ISVTX"}}

// appendMode appends an octal number with a leading 0 and at least three
// digits, behind the file type if there is one.
func appendMode(b []byte, v uint64) []byte {
	if name := fileTypes[v>>12&15]; name != "" {
		b = append(b, name...)
		v &^= 0o170000
		for _, c := range modeBits {
			if v&c.value != 0 {
				b = append(append(b, c.name...), '|')
				v &^= c.value
			}
		}
	}
	b = append(b, '0')
	if v < 0o10 {
		b = append(b, '0')
	}
	return strconv.AppendUint(b, v, 8)
}

// appendFD appends a descriptor and, where it is known, the file it stands for.
func appendFD(b []byte, r Resolver, fd int) []byte {
	return appendPathOf(strconv.AppendInt(b, int64(fd), 10), r, fd)
}

func appendDirFD(b []byte, r Resolver, fd int) []byte {
	if fd == AtFDCWD {
		return appendPathOf(append(b, "AT_FDCWD"...), r, fd)
	}
	return appendFD(b, r, fd)
}

func appendPathOf(b []byte, r Resolver, fd int) []byte {
	if r == nil || fd < 0 && fd != AtFDCWD {
		return b
	}
	path, ok := r.Path(fd)
	if !ok {
		return b
	}
	b = append(b, '<')
	b = appendEscaped(b, []byte(path[:min(len(path), scratchSize)]), '>')
	return append(b, '>')
}

func appendSignal(b []byte, n int) []byte {
	if name, ok := SignalName(n); ok {
		return append(b, name...)
	}
	return strconv.AppendInt(b, int64(n), 10)
}

func appendClone(b []byte, a arch.Arch, v uint64) []byte {
	sig, flags := v&0xff, v&^0xff
	if flags != 0 {
		b = famClone.append(b, a, flags)
	}
	if sig == 0 {
		if flags == 0 {
			b = append(b, '0')
		}
		return b
	}
	if flags != 0 {
		b = append(b, '|')
	}
	return appendSignal(b, int(sig))
}

// appendIoctl appends a request's name, or its parts as the macros of
// asm-generic/ioctl.h put them together.
func appendIoctl(b []byte, a arch.Arch, v uint64) []byte {
	if name, ok := famIoctl.find(a, v, ^uint64(0)); ok {
		return append(b, name...)
	}
	dirs := [4]string{"_IOC_NONE", "_IOC_WRITE", "_IOC_READ", "_IOC_READ|_IOC_WRITE"}
	b = append(append(b, "_IOC("...), dirs[v>>30&3]...)
	for _, part := range []uint64{v >> 8 & 0xff, v & 0xff, v >> 16 & 0x3fff} {
		b = appendHex(append(b, ", "...), part)
	}
	return append(b, ')')
}

func (x *decoding) appendFcntl(b []byte, v, cmd uint64) []byte {
	name, _ := famFcntl.find(x.d.arch, cmd&0xffffffff, ^uint64(0))
	switch name {
	case "F_SETFD":
		return famFdflags.append(b, x.d.arch, v&0xffffffff)
	case "F_SETFL":
		return famOpen.append(b, x.d.arch, v&0xffffffff)
	case "F_ADD_SEALS":
		return famSeals.append(b, x.d.arch, v&0xffffffff)
	case "F_SETSIG":
		return appendSignal(b, int(int32(v)))
	case "F_DUPFD", "F_DUPFD_CLOEXEC", "F_DUPFD_QUERY", "F_SETOWN", "F_SETPIPE_SZ":
		return strconv.AppendInt(b, int64(int32(v)), 10)
	}
	return appendHex(b, v)
}

// appendSockOpt appends the name of an option of a level, which is that of the
// protocol but for SOL_SOCKET.
func appendSockOpt(b []byte, a arch.Arch, opt, level int) []byte {
	fam := famNone
	switch level {
	case 1:
		fam = famSo
	case 0:
		fam = famIp
	case 6:
		fam = famTcp
	case 41:
		fam = famIpv6
	}
	if name, ok := fam.find(a, uint64(uint32(opt)), ^uint64(0)); ok && fam != famNone {
		return append(b, name...)
	}
	return strconv.AppendInt(b, int64(opt), 10)
}

func appendProto(b []byte, a arch.Arch, v, domain uint64) []byte {
	switch domain {
	case 2, 10: // AF_INET, AF_INET6
		return famIpproto.append(b, a, v)
	case 16: // AF_NETLINK
		return famNetlink.append(b, a, v)
	}
	return appendHex(b, v)
}

// appendDevice splits a device number as the kernel's new_decode_dev does.
func appendDevice(b []byte, v uint32) []byte {
	b = append(b, "makedev("...)
	b = appendHex(b, uint64(v>>8&0xfff))
	b = append(b, ", "...)
	b = appendHex(b, uint64(v&0xff|v>>12&0xfff00))
	return append(b, ')')
}

// appendSigset appends a set of signals: [INT TERM], or ~[KILL] where more than
// half of them are in it.
func appendSigset(b []byte, set uint64) []byte {
	if bits.OnesCount64(set) > 32 {
		b = append(b, '~')
		set = ^set
	}
	b = append(b, '[')
	for first := true; set != 0; set &= set - 1 {
		if !first {
			b = append(b, ' ')
		}
		first = false
		name, _ := SignalName(bits.TrailingZeros64(set) + 1)
		b = append(b, name[len("SIG"):]...)
	}
	return append(b, ']')
}
