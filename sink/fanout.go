package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
)

// Policy says what happens when an output can't keep up.
type Policy uint8

const (
	// Block makes the source wait. Nothing is lost, and a guest that is traced
	// synchronously stands still meanwhile.
	Block Policy = iota
	// Drop loses the record and counts it.
	Drop
)

// String returns "block" or "drop".
func (p Policy) String() string {
	if p == Drop {
		return "drop"
	}
	return "block"
}

// Output is one sink of a Fanout.
type Output struct {
	Name   string // for statistics and errors
	Sink   Sink
	Policy Policy
	Queue  int // records that may wait; default 1024
}

// OutputStats are the counters of one output.
type OutputStats struct {
	Name    string
	Written uint64        // records that the sink took
	Dropped uint64        // records lost, also after the sink failed
	Blocked time.Duration // how long the source has waited for this output
	Err     error         // what the sink failed with
}

// ErrClosed is returned by Write after Close.
var ErrClosed = errors.New("sinks are closed")

// Fanout gives each record to several outputs, each at its own speed.
//
//	Write ──> queue ──> goroutine ──> sink A
//	      └─> queue ──> goroutine ──> sink B
//
// Write may be called by several goroutines; records of one goroutine stay in
// order.
type Fanout struct {
	outputs []*output
	wg      sync.WaitGroup
	closing chan struct{} // closed by the first Close: Write waits no longer
	once    sync.Once

	mu     sync.RWMutex // held for reading by Write: queues close only without one
	closed bool
}

// output is an Output at work.
type output struct {
	Output
	queue   chan item
	written atomic.Uint64
	dropped atomic.Uint64
	blocked atomic.Int64    // nanoseconds
	missing atomic.Uint64   // dropped since the last record that was queued
	failed  chan struct{}   // closed when the sink has failed
	ending  <-chan struct{} // closed when the source ends

	mu  sync.Mutex
	err error // why failed is closed
}

// NewFanout starts the outputs. Close ends them.
func NewFanout(outputs ...Output) *Fanout {
	f := &Fanout{closing: make(chan struct{})}
	for _, o := range outputs {
		out := &output{
			Output: o,
			queue:  make(chan item, cmp.Or(max(o.Queue, 0), 1024)),
			failed: make(chan struct{}),
			ending: f.closing,
		}
		f.outputs = append(f.outputs, out)
		f.wg.Go(out.run)
	}
	return f
}

// Write gives a record to all outputs. The record and what it points to must
// not be changed afterwards. Write waits for outputs that block, until ctx
// ends; the record is then lost for those that were not reached, and counted.
// It returns the first error of the outputs once all of them have failed:
// nobody is listening any more.
func (f *Fanout) Write(ctx context.Context, r event.Record) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return ErrClosed
	}
	var first error
	alive := len(f.outputs) == 0
	for _, o := range f.outputs {
		if err := o.offer(ctx, r); err == nil {
			alive = true
		} else if first == nil {
			first = err
		}
	}
	if alive {
		return ctx.Err()
	}
	return first
}

// Close delivers what waits in the queues, closes the sinks and returns their
// errors. A Write that waits for room ends at once. Close itself waits until
// ctx ends; what was not delivered then is lost.
func (f *Fanout) Close(ctx context.Context) error {
	f.once.Do(func() { close(f.closing) })
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		for _, o := range f.outputs {
			close(o.queue)
		}
	}
	f.mu.Unlock()
	done := make(chan struct{})
	go func() {
		f.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("close sinks: %w", ctx.Err())
	}
	var errs []error
	for _, o := range f.outputs {
		errs = append(errs, o.error())
	}
	return errors.Join(errs...)
}

// Stats returns the counters of all outputs, in their order.
func (f *Fanout) Stats() []OutputStats {
	var out []OutputStats
	for _, o := range f.outputs {
		out = append(out, OutputStats{
			Name: o.Name, Written: o.written.Load(), Dropped: o.dropped.Load(),
			Blocked: time.Duration(o.blocked.Load()), Err: o.error(),
		})
	}
	return out
}

// item is a record in a queue.
type item struct {
	r      event.Record
	before uint64 // how many records are missing before it
}

// offer queues a record. It returns an error if the sink has failed.
func (o *output) offer(ctx context.Context, r event.Record) error {
	select {
	case <-o.failed:
		o.dropped.Add(1)
		return o.error()
	default:
	}
	it := item{r, o.missing.Swap(0)}
	select {
	case o.queue <- it:
		return nil
	default:
	}
	if o.Policy == Drop {
		o.lose(it)
		return nil
	}
	start := time.Now()
	defer func() { o.blocked.Add(int64(time.Since(start))) }()
	select {
	case o.queue <- it:
		return nil
	case <-o.failed:
		o.lose(it)
		return o.error()
	case <-ctx.Done():
		o.lose(it)
		return nil
	case <-o.ending:
		o.lose(it)
		return ErrClosed
	}
}

// lose counts an item that did not get into the queue.
func (o *output) lose(it item) {
	o.dropped.Add(1)
	o.missing.Add(it.before + 1)
}

// run takes records out of the queue until it is closed.
func (o *output) run() {
	for it := range o.queue {
		if o.error() != nil {
			o.dropped.Add(1)
			continue
		}
		o.check(o.tell(it.before))
		if err := o.Sink.Write(it.r); err != nil {
			o.dropped.Add(1)
			o.check(err)
			continue
		}
		o.written.Add(1)
		if len(o.queue) == 0 {
			o.check(o.Sink.Flush())
		}
	}
	if o.error() == nil {
		o.check(o.tell(o.missing.Load()))
	}
	o.check(o.Sink.Close())
}

// tell writes into the stream that n records are missing there.
func (o *output) tell(n uint64) error {
	if n == 0 {
		return nil
	}
	return o.Sink.Write(event.Lost{Time: time.Now().UTC(), Count: n})
}

// check notes the first error of the sink.
func (o *output) check(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil || o.err != nil {
		return
	}
	o.err = fmt.Errorf("write to %s: %w", o.Name, err)
	close(o.failed)
}

func (o *output) error() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}
