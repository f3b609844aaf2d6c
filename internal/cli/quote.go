package cli

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// quote returns a guest string for a column of text: as it is when it is
// plain, else in Go's quotes. What it returns holds no space and nothing that
// a terminal acts on, unless it is quoted.
func quote(s string) string {
	if s == "" || plain(s) {
		return s
	}
	return strconv.Quote(s)
}

// quoteArg is quote for one word of a command line, where an empty string has
// to be seen.
func quoteArg(s string) string {
	if s == "" {
		return `""`
	}
	return quote(s)
}

func plain(s string) bool {
	for i, r := range s {
		if r == utf8.RuneError && invalidAt(s, i) {
			return false
		}
		if r == '"' || r == '\\' || unicode.IsSpace(r) || !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}

func invalidAt(s string, i int) bool {
	_, n := utf8.DecodeRuneInString(s[i:])
	return n == 1
}

// quoteLines makes a text of ours that may hold guest strings fit for a
// terminal: lines stay, other characters that are not printable are escaped.
func quoteLines(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\n' || r == '\t':
			b.WriteRune(r)
		case r == utf8.RuneError && invalidAt(s, i):
			b.WriteString(`\x` + strconv.FormatUint(uint64(s[i])|0x100, 16)[1:])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}
