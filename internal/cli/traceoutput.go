package cli

import (
	"context"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/sink"
)

// traceOutput prints the records of a trace. It writes from a goroutine of its
// own, so that a reader that does not read (a pager, Ctrl-S) can't keep a trace
// from ending: at its end the guest is left first, and the output may then wait.
//
// The queue is bounded; when it is full, write waits and so does the guest.
type traceOutput struct {
	env    *env
	ctx    context.Context // ended by the first write error
	cancel context.CancelCauseFunc
	fanout *sink.Fanout
}

// traceGrace is how long a reader that does not read holds up the end of a
// trace that was ended by a signal.
const traceGrace = 300 * time.Millisecond

// newTraceOutput returns the output, and the context with which to trace: it
// ends when the output can't be written any more.
func (e *env) newTraceOutput(parent context.Context) (context.Context, *traceOutput) {
	t := &traceOutput{env: e}
	t.ctx, t.cancel = context.WithCancelCause(parent)
	var s sink.Sink
	if e.json {
		s = sink.NewJSON(direct{e.out})
	} else {
		s = sink.NewText(direct{e.out}, &sink.TextOptions{Color: e.out.color, Time: true, Zone: time.Local})
	}
	t.fanout = sink.NewFanout(sink.Output{Name: "standard output", Sink: alarm{s, t.cancel}, Policy: sink.Block})
	return t.ctx, t
}

// write queues a record, which must not be changed afterwards.
func (t *traceOutput) write(r event.Record) error {
	if err := t.fanout.Write(t.ctx, r); err != nil {
		return err
	}
	return context.Cause(t.ctx)
}

// close waits until everything is written and returns the first error. After
// the end of the context it does not wait for long: the goroutine that writes
// then keeps the printer it is stuck in, and env gets one that prints nothing.
func (t *traceOutput) close() error {
	defer t.cancel(nil)
	patience, stop := context.WithCancel(context.WithoutCancel(t.ctx))
	defer stop()
	unwatch := context.AfterFunc(t.ctx, func() { time.AfterFunc(traceGrace, stop) })
	defer unwatch()
	err := t.fanout.Close(patience)
	if patience.Err() != nil {
		t.env.out = t.env.out.abandoned()
	}
	return err
}

// direct writes through a printer at once.
type direct struct{ p *printer }

func (d direct) Write(b []byte) (int, error) {
	if err := d.p.write(b); err != nil {
		return 0, err
	}
	return len(b), d.p.flush()
}

// alarm calls failed as soon as its sink fails, without waiting for the next
// record to find out.
type alarm struct {
	sink.Sink
	failed context.CancelCauseFunc
}

func (a alarm) Write(r event.Record) error { return a.check(a.Sink.Write(r)) }
func (a alarm) Flush() error               { return a.check(a.Sink.Flush()) }

func (a alarm) check(err error) error {
	if err != nil {
		a.failed(err)
	}
	return err
}
