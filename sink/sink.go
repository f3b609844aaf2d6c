package sink

import (
	"io"

	"github.com/vitrine-vmi/vitrine/event"
)

// Sink takes records. Its methods are called by one goroutine at a time.
type Sink interface {
	// Write takes a record and does not keep it. An error means that this and
	// later records can't be delivered.
	Write(r event.Record) error
	// Flush delivers what was held back.
	Flush() error
	// Close flushes and gives back what the sink itself has opened.
	Close() error
}

// bufferSize is how much a sink holds back at most, in bytes.
const bufferSize = 64 << 10

// buffer collects records and writes them in large pieces. After an error it
// only returns the error.
type buffer struct {
	w   io.Writer
	b   []byte
	err error
}

// done is called after something was appended to b.
func (b *buffer) done() error {
	if len(b.b) < bufferSize {
		return b.err
	}
	return b.Flush()
}

// Flush implements Sink.
func (b *buffer) Flush() error {
	if b.err == nil && len(b.b) > 0 {
		_, b.err = b.w.Write(b.b)
	}
	b.b = b.b[:0]
	return b.err
}

// Close implements Sink. It does not close the writer.
func (b *buffer) Close() error { return b.Flush() }

// JSON writes one JSON object a line.
type JSON struct{ buffer }

var _ Sink = (*JSON)(nil)

// NewJSON makes a sink that writes to w. Lines are held back until Flush or
// until many have come together.
func NewJSON(w io.Writer) *JSON { return &JSON{buffer{w: w}} }

// Write implements Sink.
func (j *JSON) Write(r event.Record) error {
	j.b = j.Append(j.b, r)
	return j.done()
}

// Append implements Encoder.
func (j *JSON) Append(b []byte, r event.Record) []byte { return append(r.AppendJSON(b), '\n') }
