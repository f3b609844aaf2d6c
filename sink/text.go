package sink

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vitrine-vmi/vitrine/event"
)

// TextOptions choose how Text looks.
type TextOptions struct {
	Color bool           // colour by ANSI escapes; only for terminals
	Time  bool           // begin lines with the time of day
	Zone  *time.Location // of the time of day; nil is UTC
}

// Text writes records for people: calls as strace does, one a line, behind
// columns with the process. Records that are not part of a stream (processes,
// modules, ...) are for tables, which are not made here; it writes them as JSON.
type Text struct {
	buffer
	opts TextOptions
}

var _ Sink = (*Text)(nil)

// NewText makes a sink that writes to w. Lines are held back until Flush or
// until many have come together. Options may be nil.
func NewText(w io.Writer, opts *TextOptions) *Text {
	t := &Text{buffer: buffer{w: w}}
	if opts != nil {
		t.opts = *opts
	}
	if t.opts.Zone == nil {
		t.opts.Zone = time.UTC
	}
	return t
}

// Write implements Sink.
func (t *Text) Write(r event.Record) error {
	t.line(r)
	return t.done()
}

// Append implements Encoder. A Text that is used as one must not be written to.
func (t *Text) Append(b []byte, r event.Record) []byte {
	t.b = b
	t.line(r)
	b, t.b = t.b, nil
	return b
}

// line appends a record's line to b.
func (t *Text) line(r event.Record) {
	switch r := r.(type) {
	case *event.Call:
		t.call(r)
	case event.Call:
		t.call(&r)
	case *event.Life:
		t.life(r)
	case event.Life:
		t.life(&r)
	case event.Stats:
		t.stats(&r)
	case *event.Stats:
		t.stats(r)
	case event.Lost:
		t.lost(&r)
	case *event.Lost:
		t.lost(r)
	default:
		t.b = r.AppendJSON(t.b)
	}
	t.b = append(t.b, '\n')
}

// Widths of the columns before a call; longer values push the rest to the right.
const (
	pidWidth  = 7
	commWidth = 15 // of the kernel's comm, without its NUL
	kindWidth = 8
)

// SGR sequences of ECMA-48.
const (
	dim   = "\x1b[2m"
	bold  = "\x1b[1m"
	red   = "\x1b[31m"
	reset = "\x1b[0m"
)

func (t *Text) colored(code string, write func()) {
	if t.opts.Color {
		t.b = append(t.b, code...)
		defer func() { t.b = append(t.b, reset...) }()
	}
	write()
}

// columns begins a line: time, pid, name.
func (t *Text) columns(at time.Time, pid int, name string) {
	t.colored(dim, func() {
		if t.opts.Time {
			t.b = append(appendClock(t.b, at.In(t.opts.Zone)), ' ')
		}
		start := len(t.b)
		t.b = strconv.AppendInt(t.b, int64(pid), 10)
		if n := pidWidth - (len(t.b) - start); n > 0 { // right-aligned
			t.b = slices.Insert(t.b, start, spaces[:n]...)
		}
		t.b = append(t.b, ' ')
	})
	t.padded(commWidth, func() { t.b = appendName(t.b, name) })
	t.b = append(t.b, ' ')
}

// appendClock appends the time of day as 15:04:05.000000.
func appendClock(b []byte, t time.Time) []byte {
	hour, minute, second := t.Clock()
	for i, n := range [...]int{hour, minute, second} {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, byte('0'+n/10), byte('0'+n%10))
	}
	b = append(b, '.')
	n := t.Nanosecond() / 1000
	for digit := 100_000; digit > 0; digit /= 10 {
		b = append(b, byte('0'+n/digit%10))
	}
	return b
}

var spaces = []byte("                                ")

// padded pads what is written to a number of characters.
func (t *Text) padded(width int, write func()) {
	start := len(t.b)
	write()
	if n := width - utf8.RuneCount(t.b[start:]); n > 0 {
		t.b = append(t.b, spaces[:n]...)
	}
}

func (t *Text) call(c *event.Call) {
	t.columns(c.Time, c.TID, c.Comm)
	name := cmp.Or(c.Name, c.Func)
	if c.Event == event.Return {
		t.b = append(appendSafe(append(t.b, "<... "...), name), " resumed>)"...)
	} else {
		t.colored(bold, func() { t.b = appendSafe(t.b, name) })
		t.b = append(t.b, '(')
		for i := range c.Args {
			if i > 0 {
				t.b = append(t.b, ", "...)
			}
			t.b = appendSafe(t.b, c.Args[i].Text)
		}
		if c.Event == event.Enter {
			t.unfinished(name)
			return
		}
		t.b = append(t.b, ')')
	}
	t.result(c)
}

// unfinished ends the line of a call that has not returned: exits never do.
func (t *Text) unfinished(name string) {
	if name == "exit" || name == "exit_group" {
		t.b = append(t.b, ") = ?"...)
		return
	}
	t.b = append(t.b, " <unfinished ...>"...)
}

func (t *Text) result(c *event.Call) {
	t.b = append(t.b, " = "...)
	text := c.RetText
	if text == "" {
		text = strconv.FormatInt(c.Ret, 10)
	}
	if c.Errno != "" {
		t.colored(red, func() { t.b = appendSafe(t.b, text) })
	} else {
		t.b = appendSafe(t.b, text)
	}
	if c.Duration > 0 {
		t.b = strconv.AppendFloat(append(t.b, " <"...), c.Duration.Seconds(), 'f', 6, 64)
		t.b = append(t.b, '>')
	}
}

func (t *Text) life(l *event.Life) {
	t.columns(l.Time, l.TID, l.Name)
	t.colored(bold, func() {
		t.padded(kindWidth, func() { t.b = appendSafe(t.b, string(l.Event)) })
	})
	t.b = append(t.b, ' ')
	switch l.Event {
	case event.Exit:
		t.exit(l.ExitCode)
	case event.Start:
		t.b = strconv.AppendInt(append(t.b, "by "...), int64(l.PPID), 10)
		if l.TID != l.PID {
			t.b = strconv.AppendInt(append(t.b, ", thread of "...), int64(l.PID), 10)
		}
	default:
		t.b = append(appendName(t.b, l.Exe), ' ')
		t.args(l.Args)
	}
}

func (t *Text) exit(code int) {
	if code >= 0 {
		t.b = strconv.AppendInt(append(t.b, "with "...), int64(code), 10)
		return
	}
	t.colored(red, func() { t.b = strconv.AppendInt(append(t.b, "by signal "...), -int64(code), 10) })
}

// args are always quoted, so that their borders show.
func (t *Text) args(args []string) {
	t.b = append(t.b, '[')
	for i, a := range args {
		if i > 0 {
			t.b = append(t.b, ", "...)
		}
		t.b = strconv.AppendQuote(t.b, a)
	}
	t.b = append(t.b, ']')
}

func (t *Text) lost(l *event.Lost) {
	t.colored(red, func() {
		t.b = strconv.AppendUint(append(t.b, "... "...), l.Count, 10)
		t.b = append(t.b, " records lost: the output was too slow ..."...)
	})
}

// stats writes a summary of several lines, functions with most calls first.
func (t *Text) stats(s *event.Stats) {
	t.b = append(strconv.AppendUint(t.b, s.Events, 10), " events in "...)
	t.b = append(t.b, s.Duration.Round(time.Millisecond).String()...)
	if sec := s.Duration.Seconds(); sec > 0 {
		t.b = strconv.AppendFloat(append(t.b, " ("...), float64(s.Events)/sec, 'f', 0, 64)
		t.b = append(t.b, "/s)"...)
	}
	t.b = append(strconv.AppendUint(append(t.b, ", "...), s.Lost, 10), " lost, guest stopped for "...)
	t.b = append(t.b, s.GuestStopped.Round(time.Microsecond).String()...)
	if s.Planting+s.Removing > 0 {
		t.b = append(append(t.b, " ("...), s.Planting.Round(time.Microsecond).String()...)
		t.b = append(append(t.b, " to plant, "...), s.Removing.Round(time.Microsecond).String()...)
		t.b = append(t.b, " to take out)"...)
	}
	if s.Stalls > 0 {
		t.b = append(strconv.AppendUint(append(t.b, ", "...), s.Stalls, 10), " stalls"...)
	}
	if s.OutputWait >= time.Millisecond {
		t.b = append(append(t.b, ", waited "...), s.OutputWait.Round(time.Millisecond).String()...)
		t.b = append(t.b, " for the reader of the output"...)
	}
	t.b = appendSafe(append(t.b, ", engine "...), s.Engine)
	t.b = appendSafe(append(t.b, ", delivery "...), s.Delivery)
	for _, n := range s.Notes {
		t.b = appendSafe(append(t.b, "\nnote: "...), n)
	}
	names := slices.SortedFunc(maps.Keys(s.PerFunc), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.PerFunc[b], s.PerFunc[a]), cmp.Compare(a, b))
	})
	for _, n := range names {
		t.b = append(t.b, '\n')
		start := len(t.b)
		t.b = strconv.AppendUint(t.b, s.PerFunc[n], 10)
		if pad := 10 - (len(t.b) - start); pad > 0 {
			t.b = slices.Insert(t.b, start, spaces[:pad]...)
		}
		t.b = appendSafe(append(t.b, "  "...), n)
	}
}

// appendName appends a name from the guest, in quotes if it has anything but
// printable characters and would not stand for itself.
func appendName(b []byte, s string) []byte {
	plain := s != ""
	if plain && isASCII(s) && !strings.ContainsAny(s, ` "`) {
		return append(b, s...)
	}
	for _, r := range s {
		plain = plain && r != ' ' && r != '"' && r != utf8.RuneError && strconv.IsPrint(r)
	}
	if plain {
		return append(b, s...)
	}
	return strconv.AppendQuote(b, s)
}

// appendSafe appends text that is readable already, with everything escaped
// that a terminal might act on.
func appendSafe(b []byte, s string) []byte {
	if isASCII(s) {
		return append(b, s...)
	}
	safe := true
	for _, r := range s {
		safe = safe && r != utf8.RuneError && strconv.IsPrint(r)
	}
	if safe {
		return append(b, s...)
	}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || !strconv.IsPrint(r) {
			q := strconv.AppendQuote(nil, s[i:i+n])
			b = append(b, q[1:len(q)-1]...)
		} else {
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return b
}

// isASCII reports whether s is printable ASCII.
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
