package syscalls

import (
	"encoding/binary"
	"strconv"

	"github.com/vitrine-vmi/vitrine/arch"
)

// le is the byte order of all guests that Vitrine knows.
var le = binary.LittleEndian

// memory appends argument i, which points to memory of kind k.
func (x *decoding) memory(i int, k kind) {
	v := x.value(i)
	if v == 0 {
		x.buf = append(x.buf, "NULL"...)
		return
	}
	start := len(x.buf)
	b, err := x.pointed(x.buf, v, k)
	if err != nil && len(b) == start {
		b = appendUnreadable(b, v, err)
	}
	x.buf, x.errs[i] = b, err
}

// pointed appends what v points to. With an error it appends either nothing or
// a text that already says why it is not complete.
func (x *decoding) pointed(b []byte, v uint64, k kind) ([]byte, error) {
	switch k.id {
	case kindPath:
		return x.appendCString(b, v, x.d.opts.Paths)
	case kindString:
		return x.appendCString(b, v, x.d.opts.Strings)
	case kindBuf:
		return x.appendBuffer(b, v, x.length(k))
	case kindOutBuf:
		return x.appendBuffer(b, v, x.returned())
	case kindOutStr:
		return x.appendCString(b, v, min(x.d.opts.Paths, int(min(x.returned(), scratchSize))))
	case kindArgv:
		return x.appendArgv(b, v)
	case kindEnvp:
		return x.appendEnvp(b, v)
	case kindIovec, kindOutIovec:
		return x.appendIovecs(b, v, x.length(k), x.available(k))
	case kindMsghdr, kindOutMsghdr:
		return x.appendMsghdr(b, v, k.id == kindOutMsghdr)
	case kindSockaddr:
		return x.appendSockaddr(b, v, x.length(k))
	case kindOutSockaddr:
		return x.appendOutSockaddr(b, v, x.value(int(k.ref)))
	case kindOption:
		return x.appendOption(b, v, x.length(k))
	case kindOutOption:
		return x.appendOutOption(b, v, x.value(int(k.ref)))
	case kindSigset, kindOutSigset:
		return x.appendSigsetAt(b, v, x.length(k))
	case kindFDSet:
		return x.appendFDSet(b, v, x.value(0))
	case kindPollfds:
		return x.appendPollfds(b, v, x.length(k))
	case kindEpollEvent:
		return x.appendEvents(b, v, 1, false)
	case kindOutEvents:
		return x.appendEvents(b, v, x.returned(), true)
	case kindOutInts, kindOutInt:
		return x.appendInts(b, v, k.id)
	}
	return x.pointedStruct(b, v, k)
}

// pointedStruct is pointed for structures of one fixed size.
func (x *decoding) pointedStruct(b []byte, v uint64, k kind) ([]byte, error) {
	switch k.id {
	case kindTimespec, kindOutTimespec:
		return x.appendTimes(b, v, "tv_nsec", timeNames[:0])
	case kindTimeval, kindOutTimeval:
		return x.appendTimes(b, v, "tv_usec", timeNames[:0])
	case kindItimerspec, kindOutItimerspec:
		return x.appendTimes(b, v, "tv_nsec", timeNames[:])
	case kindItimerval, kindOutItimerval:
		return x.appendTimes(b, v, "tv_usec", timeNames[:])
	case kindTimespecs:
		return x.appendTimePair(b, v, "tv_nsec")
	case kindTimevals:
		return x.appendTimePair(b, v, "tv_usec")
	case kindRlimit, kindOutRlimit:
		return x.appendRlimit(b, v, x.d.wordSize())
	case kindRlimit64, kindOutRlimit64:
		return x.appendRlimit(b, v, 8)
	case kindOpenHow:
		return x.appendOpenHow(b, v)
	case kindCloneArgs:
		return x.appendCloneArgs(b, v)
	case kindSigaction, kindOutSigaction:
		return x.appendSigaction(b, v)
	case kindOffset:
		return x.appendOffset(b, v)
	case kindOutStat:
		return x.appendStat(b, v)
	case kindOutStatx:
		return x.appendStatx(b, v)
	case kindOutWait:
		return x.appendWait(b, v)
	case kindOutUname:
		return x.appendUname(b, v)
	}
	return appendPtr(b, v), nil
}

// length is the argument that k's length stands in, never negative.
func (x *decoding) length(k kind) uint64 {
	n := x.value(int(k.ref))
	if x.e.params[k.ref].Type == "int" || x.e.params[k.ref].Type == "unsigned int" {
		n = uint64(max(0, int64(int32(n))))
	}
	return n
}

// returned is the call's result as a length.
func (x *decoding) returned() uint64 { return uint64(max(0, x.d.result(x.c))) }

// available is how many bytes behind a list of buffers mean something.
func (x *decoding) available(k kind) uint64 {
	if k.id == kindOutIovec {
		return x.returned()
	}
	return ^uint64(0)
}

// pointer reads the word at v.
func (x *decoding) pointer(v uint64) (uint64, error) {
	p, err := x.read(v, x.d.wordSize())
	if err != nil {
		return 0, err
	}
	return x.wordAt(p, 0), nil
}

// wordAt is the word at byte i of p.
func (x *decoding) wordAt(p []byte, i int) uint64 {
	if x.d.wordSize() == 4 {
		return uint64(le.Uint32(p[i:]))
	}
	return le.Uint64(p[i:])
}

// list appends a list of at most n elements of the given size from v on. What
// can't be read ends the list with the reason; the error is returned too.
func (x *decoding) list(b []byte, v, n, size uint64, one func(b []byte, at uint64) ([]byte, error)) ([]byte, error) {
	start := len(b)
	b = append(b, '[')
	for j := range min(n, uint64(x.d.opts.Elements)) {
		if j > 0 {
			b = append(b, ", "...)
		}
		if len(b)-start > textLimit {
			return append(b, "...]"...), nil
		}
		var err error
		if b, err = one(b, v+j*size); err != nil {
			if j == 0 {
				return b[:start], err
			}
			return append(appendReason(append(b, "..."...), err), ']'), err
		}
	}
	if n > uint64(x.d.opts.Elements) {
		b = append(b, ", ..."...)
	}
	return append(b, ']'), nil
}

// appendArgv appends the strings that a NULL-terminated list of pointers at v
// points to.
func (x *decoding) appendArgv(b []byte, v uint64) ([]byte, error) {
	if m, ok := x.m.(Vectors); ok {
		list, more, cut, err, ok := m.Strings(x.strings[:0], arch.GVA(v))
		if x.strings = list; ok {
			return x.appendStrings(b, list, more, cut, err)
		}
	}
	start := len(b)
	b = append(b, '[')
	size := uint64(x.d.wordSize())
	var failed error
	for j := range uint64(x.d.opts.Args) {
		p, err := x.pointer(v + j*size)
		switch {
		case err != nil && j == 0:
			return b[:start], err
		case err != nil:
			return append(appendReason(append(b, ", ..."...), err), ']'), err
		case p == 0:
			return append(b, ']'), failed
		}
		if j > 0 {
			b = append(b, ", "...)
		}
		if len(b)-start > textLimit {
			return append(b, "...]"...), failed
		}
		if b, err = x.appendCString(b, p, x.d.opts.Paths); err != nil {
			failed = err
		}
	}
	return append(b, ", ...]"...), failed
}

// appendStrings appends a list of strings that is here.
func (x *decoding) appendStrings(b []byte, list [][]byte, more, cut bool, err error) ([]byte, error) {
	if err != nil && len(list) == 0 {
		return b, err
	}
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ", "...)
		}
		if i == x.d.opts.Args {
			return append(b, "...]"...), nil
		}
		part := s[:min(len(s), x.d.opts.Paths)]
		b = appendQuoted(b, part, len(part) < len(s) || cut && i == len(list)-1)
	}
	switch {
	case err != nil:
		b = appendReason(append(b, ", ..."...), err)
	case more:
		b = append(b, ", ..."...)
	}
	return append(b, ']'), err
}

// maxVars bounds how many environment variables are counted.
const maxVars = 4096

// appendEnvp appends the pointer and how many strings are in the list.
func (x *decoding) appendEnvp(b []byte, v uint64) ([]byte, error) {
	n, err := x.pointers(v)
	if err != nil {
		return b, err
	}
	b = append(appendPtr(b, v), " /* "...)
	b = strconv.AppendInt(b, int64(n), 10)
	switch n {
	case 1:
		return append(b, " var */"...), nil
	case maxVars:
		b = append(b, '+')
	}
	return append(b, " vars */"...), nil
}

// pointers counts the pointers at v before a NULL, up to maxVars.
func (x *decoding) pointers(v uint64) (int, error) {
	if m, ok := x.m.(Vectors); ok {
		if n, ok := m.Pointers(arch.GVA(v), maxVars); ok {
			return min(n, maxVars), nil
		}
	}
	for n := range maxVars {
		p, err := x.pointer(v + uint64(n*x.d.wordSize()))
		if err != nil || p == 0 {
			return n, err
		}
	}
	return maxVars, nil
}

// appendIovecs appends a list of n struct iovec, with the buffers as far as
// bytes remain.
func (x *decoding) appendIovecs(b []byte, v, n, bytes uint64) ([]byte, error) {
	w := x.d.wordSize()
	var failed error
	b, err := x.list(b, v, n, uint64(2*w), func(b []byte, at uint64) ([]byte, error) {
		p, err := x.read(at, 2*w)
		if err != nil {
			return b, err
		}
		base, size := x.wordAt(p, 0), x.wordAt(p, w)
		b, err = x.appendBuffer(append(b, "{iov_base="...), base, min(size, bytes))
		if err != nil {
			failed = err
		}
		bytes -= min(size, bytes)
		b = strconv.AppendUint(append(b, ", iov_len="...), size, 10)
		return append(b, '}'), nil
	})
	if err == nil {
		err = failed
	}
	return b, err
}

// appendMsghdr appends a struct msghdr's address, buffers and flags.
func (x *decoding) appendMsghdr(b []byte, v uint64, out bool) ([]byte, error) {
	w := x.d.wordSize()
	p, err := x.read(v, 7*w)
	if err != nil {
		return b, err
	}
	name, size := x.wordAt(p, 0), uint64(le.Uint32(p[w:]))
	iov, n := x.wordAt(p, 2*w), x.wordAt(p, 3*w)
	control, flags := x.wordAt(p, 5*w), uint64(le.Uint32(p[6*w:]))
	b = append(b, "{msg_name="...)
	if b, err = x.appendNested(b, name, func(b []byte) ([]byte, error) { return x.appendSockaddr(b, name, size) }); err != nil {
		return append(b, '}'), err
	}
	b = strconv.AppendUint(append(b, ", msg_namelen="...), size, 10)
	available := ^uint64(0)
	if out {
		available = x.returned()
	}
	b = append(b, ", msg_iov="...)
	b, err = x.appendNested(b, iov, func(b []byte) ([]byte, error) { return x.appendIovecs(b, iov, n, available) })
	b = strconv.AppendUint(append(b, ", msg_iovlen="...), n, 10)
	b = strconv.AppendUint(append(b, ", msg_controllen="...), control, 10)
	b = famMsg.append(append(b, ", msg_flags="...), x.d.arch, flags)
	return append(b, '}'), err
}

// appendNested appends what a pointer inside a structure points to.
func (x *decoding) appendNested(b []byte, v uint64, follow func([]byte) ([]byte, error)) ([]byte, error) {
	if v == 0 {
		return append(b, "NULL"...), nil
	}
	start := len(b)
	b, err := follow(b)
	if err != nil && len(b) == start {
		b = appendUnreadable(b, v, err)
	}
	return b, err
}
