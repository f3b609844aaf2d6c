package event

import (
	"strconv"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// Text returns s as valid UTF-8: bytes that are not part of valid UTF-8 become
// the four characters \xNN. Valid strings are returned as they are, without
// allocating; so the result is for reading, and can't always be turned back
// (a guest may have written the four characters itself).
func Text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	b := make([]byte, 0, len(s)+12)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			b = append(b, '\\', 'x', hexDigits[s[i]>>4], hexDigits[s[i]&15])
		} else {
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return string(b)
}

// plain marks the ASCII characters that stand for themselves in JSON.
var plain = func() (t [utf8.RuneSelf]bool) {
	for c := ' '; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// AppendString appends s as a JSON string with its quotes, by the rules of the
// package comment. It does not escape <, > and &.
func AppendString(b []byte, s string) []byte {
	b = append(b, '"')
	i := 0
	for i < len(s) && s[i] < utf8.RuneSelf && plain[s[i]] {
		i++
	}
	if i == len(s) {
		return append(append(b, s...), '"')
	}
	start := 0
	for i < len(s) {
		if c := s[i]; c < utf8.RuneSelf {
			if plain[c] {
				i++
				continue
			}
			b = appendASCII(append(b, s[start:i]...), c)
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || !strconv.IsPrint(r) {
			b = appendRune(append(b, s[start:i]...), r, s[i], n)
			start = i + n
		}
		i += n
	}
	return append(append(b, s[start:]...), '"')
}

// appendASCII appends an ASCII character that is not plain.
func appendASCII(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\b':
		return append(b, '\\', 'b')
	case '\f':
		return append(b, '\\', 'f')
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	return appendU(b, uint16(c))
}

// appendRune appends a character that must not stand for itself: the invalid
// byte first, or r, which is n bytes long.
func appendRune(b []byte, r rune, first byte, n int) []byte {
	switch {
	case n == 1:
		return append(b, '\\', '\\', 'x', hexDigits[first>>4], hexDigits[first&15])
	case r < 0x10000:
		return appendU(b, uint16(r))
	}
	r -= 0x10000 // JSON knows only UTF-16 escapes (RFC 8259, section 7)
	return appendU(appendU(b, 0xd800|uint16(r>>10)), 0xdc00|uint16(r&0x3ff))
}

func appendU(b []byte, u uint16) []byte {
	return append(b, '\\', 'u', hexDigits[u>>12], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}
