package event

import (
	"encoding/json"
	"strconv"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                  "",
		"plain":             "plain",
		"grün \u2028":       "grün \u2028",
		"a\xffb":            `a\xffb`,
		"\xc3":              `\xc3`,
		"\xed\xa0\x80":      `\xed\xa0\x80`, // a surrogate is not a character
		"\ufffd stays \xf0": "\ufffd stays \\xf0",
	} {
		if got := Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAppendString(t *testing.T) {
	for in, want := range map[string]string{
		"":              `""`,
		"a b":           `"a b"`,
		`q"b\`:          `"q\"b\\"`,
		"<&>":           `"<&>"`,
		"\b\f\n\r\t":    `"\b\f\n\r\t"`,
		"\x00\x1b[2J":   `"\u0000\u001b[2J"`,
		"\x7f\u009b":    `"\u007f\u009b"`, // DEL, and the one-character CSI
		"\u202eexe.txt": `"\u202eexe.txt"`,
		"ü世😀":           `"ü世😀"`,
		"\U000e0001":    `"\udb40\udc01"`,
		"x\xfey\ufffd":  `"x\\xfey` + "\ufffd\"",
		"\u2028\u2029":  `"\u2028\u2029"`,
	} {
		if got := string(AppendString(nil, in)); got != want {
			t.Errorf("AppendString(%q) = %s, want %s", in, got, want)
		}
	}
}

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "a\"\\", "\x00\x7f\x80\xff", "\u202e\u2028", "\xed\xa0\x80", "\U000e0001😀"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := AppendString(nil, s)
		var got string
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("AppendString(%q) = %s: %v", s, b, err)
		}
		if got != Text(s) {
			t.Fatalf("AppendString(%q) reads back as %q, want %q", s, got, Text(s))
		}
		if !utf8.Valid(b) {
			t.Fatalf("AppendString(%q) = %q is not UTF-8", s, b)
		}
		for _, r := range string(b) {
			if !strconv.IsPrint(r) {
				t.Fatalf("AppendString(%q) = %q holds %U", s, b, r)
			}
		}
	})
}
