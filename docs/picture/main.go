// Command picture draws what a terminal showed as an SVG: it reads the bytes
// that programs wrote to a terminal, with the few escape sequences that vitrine
// uses, and writes one text line for each line. docs/picture/session.sh makes
// the picture of the README with it, from a real session.
package main

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

func main() {
	b, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = draw(os.Stdout, parse(string(b)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "picture:", err)
		os.Exit(1)
	}
}

// style is how a piece of text looks.
type style struct {
	bold, dim bool
	color     string
}

// span is text of one style.
type span struct {
	style style
	text  string
}

type line []span

// colors are those of SGR 30 to 37 that are readable on the dark background.
var colors = [8]string{"#c9d1d9", "#ff7b72", "#7ee787", "#e3b341", "#79c0ff", "#d2a8ff", "#76e3ea", "#ffffff"}

// parse understands SGR sequences, erase-to-end-of-line and carriage returns;
// other sequences are dropped.
func parse(s string) []line {
	var lines []line
	var st style
	for raw := range strings.Lines(s) {
		var l line
		raw = strings.TrimRight(raw, "\r\n")
		for raw != "" {
			i := strings.IndexAny(raw, "\x1b\r")
			if i < 0 {
				i = len(raw)
			}
			if i > 0 {
				l = append(l, span{st, raw[:i]})
				raw = raw[i:]
				continue
			}
			if raw[0] == '\r' { // what follows overwrites the line
				l, raw = nil, raw[1:]
				continue
			}
			raw = escape(raw, &st)
		}
		lines = append(lines, l)
	}
	return lines
}

// escape takes one escape sequence off s.
func escape(s string, st *style) string {
	if !strings.HasPrefix(s, "\x1b[") {
		return s[1:]
	}
	end := strings.IndexFunc(s[2:], func(r rune) bool { return r >= '@' && r <= '~' })
	if end < 0 {
		return ""
	}
	if s[2+end] == 'm' {
		for f := range strings.SplitSeq(s[2:2+end], ";") {
			sgr(f, st)
		}
	}
	return s[2+end+1:]
}

func sgr(f string, st *style) {
	n, err := strconv.Atoi(f)
	switch {
	case err != nil || n == 0:
		*st = style{}
	case n == 1:
		st.bold = true
	case n == 2:
		st.dim = true
	case n >= 30 && n <= 37:
		st.color = colors[n-30]
	}
}

const (
	charWidth  = 8.4 // of the font at this size, in pixels
	lineHeight = 18
	fontSize   = 14
	margin     = 16
)

func draw(w io.Writer, lines []line) error {
	width := 0
	for _, l := range lines {
		n := 0
		for _, s := range l {
			n += utf8.RuneCountInString(s.text)
		}
		width = max(width, n)
	}
	b := bufio.NewWriter(w)
	pw, ph := int(float64(width)*charWidth)+2*margin, len(lines)*lineHeight+2*margin
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">`+"\n", pw, ph, pw, ph)
	fmt.Fprintf(b, `<rect width="%d" height="%d" rx="8" fill="#0d1117"/>`+"\n", pw, ph)
	fmt.Fprintf(b, `<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="%d" fill="#c9d1d9" xml:space="preserve">`+"\n", fontSize)
	for i, l := range lines {
		if len(l) > 0 {
			fmt.Fprintf(b, `<text x="%d" y="%d">%s</text>`+"\n", margin, margin+(i+1)*lineHeight-4, l.svg())
		}
	}
	fmt.Fprintln(b, "</g>\n</svg>")
	return b.Flush()
}

func (l line) svg() string {
	var b bytes.Buffer
	for _, s := range l {
		attrs := ""
		if s.style.bold {
			attrs += ` font-weight="bold"`
		}
		if s.style.dim {
			attrs += ` opacity="0.6"`
		}
		if s.style.color != "" {
			attrs += ` fill="` + s.style.color + `"`
		}
		b.WriteString("<tspan" + attrs + ">")
		_ = xml.EscapeText(&b, []byte(s.text)) // a bytes.Buffer takes everything
		b.WriteString("</tspan>")
	}
	return b.String()
}
