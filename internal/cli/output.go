package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/vitrine-vmi/vitrine/event"
)

// printer writes to standard output. The first error sticks and is returned
// by flush.
type printer struct {
	w     *bufio.Writer
	color bool
	tty   bool
	buf   []byte
	err   error
}

func newPrinter(w io.Writer, color, tty bool) *printer {
	return &printer{w: bufio.NewWriterSize(w, 64<<10), color: color, tty: tty}
}

// errReaderLeft is returned when nobody reads our output any more.
var errReaderLeft = errors.New("the reader of the output has left")

// errAbandoned is returned by a printer whose output was given up. It is part
// of being interrupted, no failure of its own.
var errAbandoned = fmt.Errorf("output given up: %w", context.Canceled)

// abandoned returns a printer in place of p that prints nothing, for when a
// write of p does not return.
func (p *printer) abandoned() *printer {
	return &printer{w: bufio.NewWriter(io.Discard), color: p.color, tty: p.tty, err: errAbandoned}
}

// fail notes the first error. Only here EPIPE means the reader of the output:
// other pipes and sockets break too.
func (p *printer) fail(err error) {
	if errors.Is(err, syscall.EPIPE) {
		err = fmt.Errorf("%w: %w", errReaderLeft, err)
	}
	p.err = err
}

// record writes r as one line of JSON.
func (p *printer) record(r event.Record) error {
	p.buf = append(r.AppendJSON(p.buf[:0]), '\n')
	return p.write(p.buf)
}

// line writes one line of text. What went wrong is in p.err.
func (p *printer) line(s string) { _ = p.write([]byte(s + "\n")) }

func (p *printer) write(b []byte) error {
	if p.err == nil {
		_, err := p.w.Write(b)
		p.fail(err)
	}
	return p.err
}

// flush hands everything to the operating system.
func (p *printer) flush() error {
	if p.err == nil {
		p.fail(p.w.Flush())
	}
	return p.err
}

// Colours, used only on terminals and never the only carrier of a meaning.
const (
	bold  = "\x1b[1m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	dim   = "\x1b[2m"
	reset = "\x1b[0m"
)

func (p *printer) paint(color, s string) string {
	if !p.color || s == "" {
		return s
	}
	return color + s + reset
}

// column is one column of a table. A title that begins with '>' is aligned to
// the right.
type column string

func (c column) title() string { return strings.TrimPrefix(string(c), ">") }
func (c column) right() bool   { return strings.HasPrefix(string(c), ">") }

// table collects rows and writes them with aligned columns. The last column is
// not padded.
type table struct {
	columns []column
	rows    [][]string
}

func newTable(columns ...column) *table { return &table{columns: columns} }

// add adds a row: strings as they are, everything else by fmt.Sprint. Guest
// strings have to be quoted already.
func (t *table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = fmt.Sprint(c)
	}
	t.rows = append(t.rows, row)
}

// print writes the table; one without rows is its head line only.
func (t *table) print(p *printer) error {
	widths := t.widths()
	head := make([]string, len(t.columns))
	for i, c := range t.columns {
		head[i] = c.title()
	}
	p.line(p.paint(bold, t.format(head, widths)))
	for _, row := range t.rows {
		p.line(t.format(row, widths))
	}
	return p.err
}

func (t *table) widths() []int {
	w := make([]int, len(t.columns))
	for i, c := range t.columns {
		w[i] = utf8.RuneCountInString(c.title())
		for _, row := range t.rows {
			w[i] = max(w[i], utf8.RuneCountInString(row[i]))
		}
	}
	return w
}

func (t *table) format(row []string, widths []int) string {
	var b strings.Builder
	for i, cell := range row {
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if i > 0 {
			b.WriteString("  ")
		}
		if t.columns[i].right() {
			b.WriteString(pad + cell)
			continue
		}
		b.WriteString(cell)
		if i < len(row)-1 {
			b.WriteString(pad)
		}
	}
	return strings.TrimRight(b.String(), " ")
}
