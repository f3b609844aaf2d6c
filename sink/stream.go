package sink

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
)

// Encoder turns records into bytes. JSON and Text are encoders.
type Encoder interface {
	// Append appends a record's line to b. It does not keep the record.
	Append(b []byte, r event.Record) []byte
}

var (
	_ Encoder = (*JSON)(nil)
	_ Encoder = (*Text)(nil)
)

// Stream encodes records where they are written, and hands their bytes to a
// writer from a goroutine of its own, many at a time. For one output it is
// several times faster than a Fanout, and records may be used again after Write.
//
//	Write ──> bytes ──> goroutine ──> writer
//
// When streamLimit bytes wait, Write waits. Its methods are for one goroutine.
type Stream struct {
	enc     Encoder
	w       io.Writer
	failed  func(error)
	done    chan struct{}
	written uint64
	blocked time.Duration

	mu      sync.Mutex // protects the fields below
	changed sync.Cond
	b       []byte // what waits
	err     error  // of the writer, or why no more is taken
	closing bool
}

const (
	streamLimit = 1 << 20
	// gather is how long the first record waits for others.
	gather = 2 * time.Millisecond
)

// NewStream starts a stream to w. Failed, if not nil, is called by the stream's
// goroutine with the writer's first error, after which nothing more is written.
func NewStream(w io.Writer, enc Encoder, failed func(error)) *Stream {
	s := &Stream{enc: enc, w: w, failed: failed, done: make(chan struct{})}
	s.changed.L = &s.mu
	go s.run()
	return s
}

// Write takes a record. It waits while too much is waiting, until ctx ends or
// the writer has failed; the record is then lost, and the error returned.
func (s *Stream) Write(ctx context.Context, r event.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.b) >= streamLimit && s.err == nil {
		if err := s.wait(ctx); err != nil {
			return err
		}
	}
	if s.err != nil {
		return s.err
	}
	first := len(s.b) == 0
	s.b = s.enc.Append(s.b, r)
	s.written++
	if first {
		s.changed.Broadcast()
	}
	return nil
}

// wait waits for room. The caller holds mu.
func (s *Stream) wait(ctx context.Context) error {
	begun := time.Now()
	defer func() { s.blocked += time.Since(begun) }()
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer stop()
	for len(s.b) >= streamLimit && s.err == nil && ctx.Err() == nil {
		s.changed.Wait()
	}
	return ctx.Err()
}

// run writes until the stream is closed and empty, or the writer fails.
func (s *Stream) run() {
	defer close(s.done)
	var b []byte
	for {
		var last bool
		if b, last = s.next(b[:0]); len(b) > 0 {
			if _, err := s.w.Write(b); err != nil {
				s.fail(fmt.Errorf("write records: %w", err))
				return
			}
		}
		if last {
			return
		}
	}
}

// next waits for bytes and takes them, leaving spare in their place. It reports
// whether they are the last.
func (s *Stream) next(spare []byte) (b []byte, last bool) {
	s.mu.Lock()
	for len(s.b) == 0 && !s.closing {
		s.changed.Wait()
	}
	if !s.closing && len(s.b) < bufferSize {
		s.mu.Unlock()
		time.Sleep(gather)
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	b, s.b = s.b, spare
	s.changed.Broadcast()
	return b, s.closing
}

func (s *Stream) fail(err error) {
	s.mu.Lock()
	s.err, s.b = err, nil
	s.changed.Broadcast()
	s.mu.Unlock()
	if s.failed != nil {
		s.failed(err)
	}
}

// Close waits until everything is written, until ctx ends, and returns the
// writer's error. After ctx has ended the stream's goroutine may still be stuck
// in the writer.
func (s *Stream) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.changed.Broadcast()
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("write records: %w", ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stats returns how many records were taken, and how long Write has waited for
// the writer. It is for the goroutine that writes, or for after Close.
func (s *Stream) Stats() OutputStats {
	return OutputStats{Written: s.written, Blocked: s.blocked}
}
