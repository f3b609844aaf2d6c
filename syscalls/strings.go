package syscalls

import (
	"bytes"
	"errors"
	"strconv"
	"unicode/utf8"

	"github.com/vitrine-vmi/vitrine/arch"
)

// read fills small with n bytes from the guest and returns them; they are good
// until the next read.
func (x *decoding) read(a uint64, n int) ([]byte, error) {
	p := x.small[:n]
	if x.m == nil {
		return nil, errNoMemory
	}
	if got, err := x.m.Read(p, arch.GVA(a)); got < n || err != nil {
		return nil, readError(err)
	}
	return p, nil
}

var (
	errNoMemory  = errors.New("read memory: there is none")
	errShortRead = errors.New("read memory: short read")
)

func readError(err error) error {
	if err == nil {
		return errShortRead
	}
	return err
}

// upTo reads as much of n bytes as can be read, at most as much as scratch
// holds, and returns it until the next call.
func (x *decoding) upTo(a, n uint64) ([]byte, error) {
	if x.m == nil {
		return nil, errNoMemory
	}
	p := x.scratch[:min(n, scratchSize)]
	got, err := x.m.Read(p, arch.GVA(a))
	got = max(0, min(got, len(p)))
	if got == len(p) {
		return p, nil
	}
	return p[:got], readError(err)
}

// cstring reads a string that ends with a NUL, at most limit bytes of it. It
// reports whether the end was found; an error comes with what could be read.
func (x *decoding) cstring(a uint64, limit int) (s []byte, ended bool, err error) {
	if x.m == nil {
		return nil, false, errNoMemory
	}
	const first = 128 // most strings end within, and no page is crossed needlessly
	have, step := 0, first
	for have < limit {
		at := a + uint64(have)
		step = min(step, limit-have, arch.PageSize-int(at%arch.PageSize))
		got, err := x.m.Read(x.scratch[have:have+step], arch.GVA(at))
		got = max(0, min(got, step))
		if i := bytes.IndexByte(x.scratch[have:have+got], 0); i >= 0 {
			return x.scratch[:have+i], true, nil
		}
		have += got
		if got < step {
			return x.scratch[:have], false, readError(err)
		}
		step = arch.PageSize
	}
	return x.scratch[:have], false, nil
}

// appendCString appends the string at a, quoted; more than limit bytes are cut.
func (x *decoding) appendCString(b []byte, a uint64, limit int) ([]byte, error) {
	if a == 0 {
		return append(b, "NULL"...), nil
	}
	// One byte more tells a string of just limit bytes from a longer one.
	s, ended, err := x.cstring(a, min(limit+1, scratchSize))
	if err != nil && len(s) == 0 {
		return appendUnreadable(b, a, err), err
	}
	cut := !ended
	if len(s) > limit {
		s, cut = s[:limit], true
	}
	b = appendQuoted(b, s, cut)
	if err != nil {
		b = appendReason(b, err)
	}
	return b, err
}

// appendBuffer appends the first bytes of n at a, quoted.
func (x *decoding) appendBuffer(b []byte, a, n uint64) ([]byte, error) {
	if a == 0 {
		return append(b, "NULL"...), nil
	}
	show := min(n, uint64(x.d.opts.Strings))
	p, err := x.upTo(a, show)
	if err != nil && len(p) == 0 {
		return appendUnreadable(b, a, err), err
	}
	b = appendBytes(b, p, uint64(len(p)) < n)
	if err != nil {
		b = appendReason(b, err)
	}
	return b, err
}

// appendUnreadable appends the pointer itself and why it is not followed.
func appendUnreadable(b []byte, a uint64, err error) []byte {
	return appendReason(appendPtr(b, a), err)
}

// appendReason appends an error as a comment.
func appendReason(b []byte, err error) []byte {
	b = append(b, " /* "...)
	var fault *arch.FaultError
	if errors.As(err, &fault) {
		b = append(b, "page not present"...)
	} else {
		text := err.Error()
		b = appendEscaped(b, []byte(text[:min(len(text), 120)]), '*')
	}
	return append(b, " */"...)
}

// appendQuoted appends s between quotes, and dots behind if there is more.
func appendQuoted(b, s []byte, more bool) []byte {
	b = append(b, '"')
	b = appendEscaped(b, s, '"')
	b = append(b, '"')
	if more {
		b = append(b, "..."...)
	}
	return b
}

// appendBytes is appendQuoted for what need not be text: unless all of it is,
// bytes beyond ASCII that happen to form characters are escaped too.
func appendBytes(b, s []byte, more bool) []byte {
	if isText(s, more) {
		return appendQuoted(b, s, more)
	}
	b = append(b, '"')
	for i, c := range s {
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			b = append(b, c)
		} else {
			b = appendEscape(b, c, s[i+1:])
		}
	}
	b = append(b, '"')
	if more {
		b = append(b, "..."...)
	}
	return b
}

// isText reports whether s is UTF-8, of which the last character may be cut.
func isText(s []byte, cut bool) bool {
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRune(s[i:])
		if r == utf8.RuneError && n == 1 {
			return cut && !utf8.FullRune(s[i:])
		}
		i += n
	}
	return true
}

// appendEscaped appends s with everything escaped that is not printable: as in
// C, \n and the like, otherwise an octal number of as few digits as the next
// character allows. Printable characters beyond ASCII stay as they are. The
// backslash and the closing character are escaped too.
func appendEscaped(b, s []byte, closing byte) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c < 0x7f && c != '\\' && c != closing {
				b = append(b, c)
			} else {
				b = appendEscape(b, c, s[i+1:])
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(s[i:])
		if r == utf8.RuneError && n == 1 || !strconv.IsPrint(r) {
			for j := range n {
				b = appendEscape(b, s[i+j], s[i+j+1:])
			}
		} else {
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return b
}

func appendEscape(b []byte, c byte, rest []byte) []byte {
	b = append(b, '\\')
	switch c {
	case '\n':
		return append(b, 'n')
	case '\t':
		return append(b, 't')
	case '\r':
		return append(b, 'r')
	case '\f':
		return append(b, 'f')
	case '\v':
		return append(b, 'v')
	}
	if c >= ' ' && c < 0x7f {
		return append(b, c)
	}
	if len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
		return append(b, '0'+c>>6, '0'+c>>3&7, '0'+c&7)
	}
	return strconv.AppendUint(b, uint64(c), 8)
}
