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
// What waits is bounded; when it is too much, write waits and so does the guest.
type traceOutput struct {
	env    *env
	ctx    context.Context // ended by the first write error
	cancel context.CancelCauseFunc
	stream *sink.Stream
}

// traceGrace is how long a reader that does not read holds up the end of a
// trace that was ended by a signal.
const traceGrace = 300 * time.Millisecond

// newTraceOutput returns the output, and the context with which to trace: it
// ends when the output can't be written any more.
func (e *env) newTraceOutput(parent context.Context) (context.Context, *traceOutput) {
	t := &traceOutput{env: e}
	t.ctx, t.cancel = context.WithCancelCause(parent)
	var enc sink.Encoder = sink.NewJSON(nil)
	if !e.json {
		enc = sink.NewText(nil, &sink.TextOptions{Color: e.out.color, Time: true, Zone: time.Local})
	}
	t.stream = sink.NewStream(direct{e.out}, enc, t.cancel)
	return t.ctx, t
}

// write takes a record and does not keep it.
func (t *traceOutput) write(r event.Record) error {
	if err := t.stream.Write(t.ctx, r); err != nil {
		if cause := context.Cause(t.ctx); cause != nil {
			return cause
		}
		return err
	}
	return nil
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
	err := t.stream.Close(patience)
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
