package syscalls

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// The layouts are those of the kernel's user-space headers (include/uapi),
// little-endian; w is the size of long.

var timeNames = [2]string{"it_interval", "it_value"}

// timeSize is the size of one of the fields of struct timespec or timeval.
func (x *decoding) timeSize() int {
	if x.d.arch == arch.I386 && !strings.HasSuffix(x.e.name, "64") {
		return 4 // calls with 64-bit times have 64 at the end of their names (5.1)
	}
	return 8
}

// appendTimes appends one time, or a structure of two with names.
func (x *decoding) appendTimes(b []byte, v uint64, fraction string, names []string) ([]byte, error) {
	size := x.timeSize()
	p, err := x.read(v, 2*size*max(1, len(names)))
	if err != nil {
		return b, err
	}
	if len(names) == 0 {
		return appendTime(b, p, size, fraction), nil
	}
	for i, name := range names {
		b = append(append(append(b, "{,"[i]), " "[:i]...), name...)
		b = appendTime(append(b, '='), p[i*2*size:], size, fraction)
	}
	return append(b, '}'), nil
}

func appendTime(b, p []byte, size int, fraction string) []byte {
	b = append(b, "{tv_sec="...)
	b = strconv.AppendInt(b, intAt(p, 0, size), 10)
	b = append(append(append(b, ", "...), fraction...), '=')
	b = strconv.AppendInt(b, intAt(p, size, size), 10)
	return append(b, '}')
}

func intAt(p []byte, i, size int) int64 {
	if size == 4 {
		return int64(int32(le.Uint32(p[i:])))
	}
	return int64(le.Uint64(p[i:]))
}

// appendTimePair appends the access and modification times of utimensat.
func (x *decoding) appendTimePair(b []byte, v uint64, fraction string) ([]byte, error) {
	size := x.timeSize()
	p, err := x.read(v, 4*size)
	if err != nil {
		return b, err
	}
	for i := range 2 {
		b = append(append(b, "[,"[i]), " "[:i]...)
		switch q := p[2*i*size:]; {
		case fraction == "tv_nsec" && intAt(q, size, size) == 1<<30-1:
			b = append(b, "UTIME_NOW"...)
		case fraction == "tv_nsec" && intAt(q, size, size) == 1<<30-2:
			b = append(b, "UTIME_OMIT"...)
		default:
			b = appendTime(b, q, size, fraction)
		}
	}
	return append(b, ']'), nil
}

func (x *decoding) appendRlimit(b []byte, v uint64, size int) ([]byte, error) {
	p, err := x.read(v, 2*size)
	if err != nil {
		return b, err
	}
	for i, name := range []string{"{rlim_cur=", ", rlim_max="} {
		b = append(b, name...)
		switch n := intAt(p, i*size, size); {
		case n == -1 && size == 8:
			b = append(b, "RLIM64_INFINITY"...)
		case n == -1:
			b = append(b, "RLIM_INFINITY"...)
		case size == 4:
			b = strconv.AppendUint(b, uint64(uint32(n)), 10)
		default:
			b = strconv.AppendUint(b, uint64(n), 10)
		}
	}
	return append(b, '}'), nil
}

func (x *decoding) appendOpenHow(b []byte, v uint64) ([]byte, error) {
	p, err := x.read(v, 24)
	if err != nil {
		return b, err
	}
	b = famOpen.append(append(b, "{flags="...), x.d.arch, le.Uint64(p))
	b = appendMode(append(b, ", mode="...), le.Uint64(p[8:]))
	b = famResolve.append(append(b, ", resolve="...), x.d.arch, le.Uint64(p[16:]))
	return append(b, '}'), nil
}

// appendCloneArgs appends the first version of struct clone_args (5.3).
func (x *decoding) appendCloneArgs(b []byte, v uint64) ([]byte, error) {
	p, err := x.read(v, 64)
	if err != nil {
		return b, err
	}
	field := func(i int) uint64 { return le.Uint64(p[8*i:]) }
	b = famClone3.append(append(b, "{flags="...), x.d.arch, field(0))
	for i, name := range []string{", pidfd=", ", child_tid=", ", parent_tid="} {
		if field(i+1) != 0 {
			b = appendHex(append(b, name...), field(i+1))
		}
	}
	b = appendSignal(append(b, ", exit_signal="...), int(int32(field(4))))
	b = appendPtr(append(b, ", stack="...), field(5))
	b = appendHex(append(b, ", stack_size="...), field(6))
	if field(7) != 0 {
		b = appendHex(append(b, ", tls="...), field(7))
	}
	return append(b, '}'), nil
}

const saRestorer = 0x04000000

// appendSigaction appends the kernel's struct sigaction: handler, flags,
// restorer, mask.
func (x *decoding) appendSigaction(b []byte, v uint64) ([]byte, error) {
	w := x.d.wordSize()
	mask := 3 * w
	p, err := x.read(v, mask+8)
	if err != nil {
		return b, err
	}
	b = append(b, "{sa_handler="...)
	switch h := x.wordAt(p, 0); h {
	case 0:
		b = append(b, "SIG_DFL"...)
	case 1:
		b = append(b, "SIG_IGN"...)
	default:
		b = appendHex(b, h)
	}
	b = appendSigset(append(b, ", sa_mask="...), le.Uint64(p[mask:]))
	flags := x.wordAt(p, w)
	b = famSaflags.append(append(b, ", sa_flags="...), x.d.arch, flags)
	if flags&saRestorer != 0 {
		b = appendHex(append(b, ", sa_restorer="...), x.wordAt(p, 2*w))
	}
	return append(b, '}'), nil
}

func (x *decoding) appendOffset(b []byte, v uint64) ([]byte, error) {
	size := 8
	if x.d.arch == arch.I386 && x.e.name == "sendfile" {
		size = 4
	}
	p, err := x.read(v, size)
	if err != nil {
		return b, err
	}
	return append(strconv.AppendInt(append(b, '['), intAt(p, 0, size), 10), ']'), nil
}

func (x *decoding) appendInts(b []byte, v uint64, k kindID) ([]byte, error) {
	n := 1
	if k == kindOutInts {
		n = 2
	}
	p, err := x.read(v, 4*n)
	if err != nil {
		return b, err
	}
	for i := range n {
		b = append(append(b, "[,"[i]), " "[:i]...)
		b = strconv.AppendInt(b, intAt(p, 4*i, 4), 10)
	}
	return append(b, ']'), nil
}

// statLayout is where struct stat has what is shown of it.
type statLayout struct{ length, mode, modeSize, rdev, size, sizeSize int }

func (x *decoding) statLayout() statLayout {
	switch {
	case x.d.arch == arch.AMD64:
		return statLayout{64, 24, 4, 40, 48, 8}
	case x.d.arch == arch.ARM64:
		return statLayout{64, 16, 4, 32, 48, 8}
	case strings.HasSuffix(x.e.name, "64"):
		return statLayout{64, 16, 4, 32, 44, 8}
	}
	return statLayout{64, 8, 2, 16, 20, 4}
}

func (x *decoding) appendStat(b []byte, v uint64) ([]byte, error) {
	l := x.statLayout()
	p, err := x.read(v, l.length)
	if err != nil {
		return b, err
	}
	mode := uint64(le.Uint16(p[l.mode:]))
	b = appendMode(append(b, "{st_mode="...), mode)
	return x.appendSizeOrDevice(b, mode, uint64(intAt(p, l.size, l.sizeSize)), le.Uint32(p[l.rdev:]), "st_"), nil
}

// appendSizeOrDevice ends a stat structure with what is of use for its type.
func (x *decoding) appendSizeOrDevice(b []byte, mode, size uint64, rdev uint32, prefix string) []byte {
	b = append(append(b, ", "...), prefix...)
	if t := mode & 0o170000; t == 0o020000 || t == 0o060000 {
		b = appendDevice(append(b, "rdev="...), rdev)
	} else {
		b = strconv.AppendUint(append(b, "size="...), size, 10)
	}
	return append(b, ", ...}"...)
}

func (x *decoding) appendStatx(b []byte, v uint64) ([]byte, error) {
	p, err := x.read(v, 136)
	if err != nil {
		return b, err
	}
	mode := uint64(le.Uint16(p[28:]))
	b = famStatx.append(append(b, "{stx_mask="...), x.d.arch, uint64(le.Uint32(p)))
	b = appendMode(append(b, ", stx_mode="...), mode)
	rdev := le.Uint32(p[128:])<<8&0xfff00 | le.Uint32(p[132:])&0xff // stx_rdev_major, stx_rdev_minor
	return x.appendSizeOrDevice(b, mode, le.Uint64(p[40:]), rdev, "stx_"), nil
}

// appendWait appends a status as the macros of wait(2) take it apart.
func (x *decoding) appendWait(b []byte, v uint64) ([]byte, error) {
	p, err := x.read(v, 4)
	if err != nil {
		return b, err
	}
	s := le.Uint32(p)
	if x.returned() == 0 {
		return appendPtr(b, v), nil // nothing to report (WNOHANG): it was not written
	}
	switch sig := int(s & 0x7f); {
	case s == 0xffff:
		b = append(b, "[{WIFCONTINUED(s)"...)
	case s&0xff == 0x7f:
		b = appendSignal(append(b, "[{WIFSTOPPED(s) && WSTOPSIG(s) == "...), int(s>>8&0xff))
	case sig == 0:
		b = strconv.AppendUint(append(b, "[{WIFEXITED(s) && WEXITSTATUS(s) == "...), uint64(s>>8&0xff), 10)
	default:
		b = appendSignal(append(b, "[{WIFSIGNALED(s) && WTERMSIG(s) == "...), sig)
		if s&0x80 != 0 {
			b = append(b, " && WCOREDUMP(s)"...)
		}
	}
	return append(b, "}]"...), nil
}

// appendUname appends the first members of struct new_utsname, each of 65 bytes.
func (x *decoding) appendUname(b []byte, v uint64) ([]byte, error) {
	p, err := x.read(v, 3*65)
	if err != nil {
		return b, err
	}
	for i, name := range []string{"{sysname=", ", nodename=", ", release="} {
		s, _, _ := bytes.Cut(p[i*65:i*65+65], []byte{0})
		b = appendQuoted(append(b, name...), s, false)
	}
	return append(b, ", ...}"...), nil
}

func (x *decoding) appendSigsetAt(b []byte, v, size uint64) ([]byte, error) {
	if size != 8 {
		return appendPtr(b, v), nil // the kernel refuses any other size
	}
	p, err := x.read(v, 8)
	if err != nil {
		return b, err
	}
	return appendSigset(b, le.Uint64(p)), nil
}

// appendFDSet appends the descriptors below n in a bit set.
func (x *decoding) appendFDSet(b []byte, v, n uint64) ([]byte, error) {
	n = min(n&0x7fffffff, 1024) // FD_SETSIZE
	size := int(n+7) / 8
	p, err := x.read(v, size)
	if err != nil {
		return b, err
	}
	b = append(b, '[')
	first := true
	for fd := range int(n) {
		if p[fd/8]&(1<<(fd%8)) == 0 {
			continue
		}
		if !first {
			b = append(b, ' ')
		}
		first = false
		b = strconv.AppendInt(b, int64(fd), 10)
	}
	return append(b, ']'), nil
}

func (x *decoding) appendPollfds(b []byte, v, n uint64) ([]byte, error) {
	return x.list(b, v, n, 8, func(b []byte, at uint64) ([]byte, error) {
		p, err := x.read(at, 8)
		if err != nil {
			return b, err
		}
		fd, events := int(int32(le.Uint32(p))), uint64(le.Uint16(p[4:]))
		b = appendFD(append(b, "{fd="...), x.r, fd)
		b = famPoll.append(append(b, ", events="...), x.d.arch, events)
		return append(b, '}'), nil
	})
}

// appendEvents appends n struct epoll_event, as a list or as one. It is packed
// on x86-64 alone.
func (x *decoding) appendEvents(b []byte, v, n uint64, list bool) ([]byte, error) {
	data := uint64(8)
	if x.d.arch != arch.ARM64 {
		data = 4
	}
	one := func(b []byte, at uint64) ([]byte, error) {
		p, err := x.read(at, int(data)+8)
		if err != nil {
			return b, err
		}
		events, value := uint64(le.Uint32(p)), le.Uint64(p[data:])
		b = famEpoll.append(append(b, "{events="...), x.d.arch, events)
		b = appendHex(append(b, ", data="...), value)
		return append(b, '}'), nil
	}
	if list {
		return x.list(b, v, n, data+8, one)
	}
	return one(b, v)
}

// appendOutSockaddr appends an address whose length the kernel wrote to
// lenAt.
func (x *decoding) appendOutSockaddr(b []byte, v, lenAt uint64) ([]byte, error) {
	if lenAt == 0 {
		return appendPtr(b, v), nil
	}
	p, err := x.read(lenAt, 4)
	if err != nil {
		return b, err
	}
	return x.appendSockaddr(b, v, uint64(max(0, int32(le.Uint32(p)))))
}

// appendOption appends a socket option's value: an int, as most are, or bytes.
func (x *decoding) appendOption(b []byte, v, n uint64) ([]byte, error) {
	if n == 4 {
		return x.appendInts(b, v, kindOutInt)
	}
	return x.appendBuffer(b, v, n)
}

// appendOutOption is appendOption with the length that the kernel wrote to lenAt.
func (x *decoding) appendOutOption(b []byte, v, lenAt uint64) ([]byte, error) {
	p, err := x.read(lenAt, 4)
	if err != nil {
		return b, err
	}
	return x.appendOption(b, v, uint64(max(0, int32(le.Uint32(p)))))
}

// sockaddrMax is the size of struct sockaddr_storage.
const sockaddrMax = 128

func (x *decoding) appendSockaddr(b []byte, v, n uint64) ([]byte, error) {
	if n < 2 {
		return appendPtr(b, v), nil
	}
	p, err := x.read(v, int(min(n, sockaddrMax)))
	if err != nil {
		return b, err
	}
	family := uint64(le.Uint16(p))
	b = famDomain.append(append(b, "{sa_family="...), x.d.arch, family)
	switch rest := p[2:]; {
	case family == 1: // AF_UNIX
		b = appendUnixPath(b, rest)
	case family == 2 && len(p) >= 8: // AF_INET
		b = appendPort(append(b, ", sin_port="...), rest)
		ip, _ := netip.AddrFromSlice(rest[2:6])
		b = append(ip.AppendTo(append(b, `, sin_addr=inet_addr("`...)), `")`...)
	case family == 10 && len(p) >= 24: // AF_INET6
		b = appendPort(append(b, ", sin6_port="...), rest)
		ip, _ := netip.AddrFromSlice(rest[6:22])
		b = append(ip.AppendTo(append(b, `, inet_pton(AF_INET6, "`...)), `", &sin6_addr)`...)
	case family == 16 && len(p) >= 12: // AF_NETLINK
		b = strconv.AppendUint(append(b, ", nl_pid="...), uint64(le.Uint32(p[4:])), 10)
		b = appendHex(append(b, ", nl_groups="...), uint64(le.Uint32(p[8:])))
	default:
		b = hex.AppendEncode(append(b, ", sa_data=0x"...), rest[:min(len(rest), 14)])
	}
	return append(b, '}'), nil
}

func appendPort(b, p []byte) []byte {
	b = strconv.AppendUint(append(b, "htons("...), uint64(p[0])<<8|uint64(p[1]), 10)
	return append(b, ')')
}

// appendUnixPath appends a path, or after @ a name in the abstract namespace.
func appendUnixPath(b, path []byte) []byte {
	if len(path) == 0 {
		return b // an unnamed socket
	}
	b = append(b, ", sun_path="...)
	if path[0] == 0 {
		return appendQuoted(append(b, '@'), path[1:], false)
	}
	path, _, _ = bytes.Cut(path, []byte{0})
	return appendQuoted(b, path, false)
}
