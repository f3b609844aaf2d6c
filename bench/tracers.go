package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/sink"
	"github.com/vitrine-vmi/vitrine/trace"
)

// tracer is a way to see all system calls of the guest.
type tracer struct {
	name    string
	inside  bool   // it runs in the guest: its processor time is the guest's
	slow    bool   // it takes thousands of times as long as the call: measured once
	brief   bool   // a short run measures every loop under it
	only    string // name of the only loop that it is for
	records string // what it counts
	start   func(ctx context.Context, e *env, pid int) (*tracing, error)
}

// nobody is a process id that is never given away, and that the guest's side of a
// filter has a bit for: PID_MAX_LIMIT of 64-bit kernels, less one.
const nobody = 1<<22 - 1

// tracers see all system calls, entry and return, of every process.
var tracers = []tracer{
	{name: "implant, stream", records: "entries and returns", start: probes(probe.Implant, probe.Stream, nil)},
	{name: "implant, stream, decoded to JSON", brief: true, records: "calls", start: startDecoded},
	{name: "implant, stream, filtered out", only: "getppid", records: "entries and returns", start: probes(probe.Implant, probe.Stream, &probe.Filter{PIDs: []int{nobody}})},
	{name: "implant, sync, empty callback", records: "entries and returns", start: probes(probe.Implant, probe.Sync, nil)},
	{name: "ftrace in the guest, with a reader", inside: true, brief: true, records: "entries and returns", start: startFtrace},
	{name: "strace in the guest", inside: true, slow: true, start: startStrace},
	{name: "trap", slow: true, records: "entries and returns", start: probes(probe.Trap, probe.Sync, nil)},
}

// tally is what a tracer has counted up to a moment.
type tally struct{ records, lost uint64 }

// tracing is a tracer at work.
type tracing struct {
	count func(context.Context) (tally, error) // nil: it does not count
	stop  func() error                         // valid once
	// planted and removed are how long the guest stood still before the end and
	// at the end, once stop has returned.
	planted, removed time.Duration
	note             string
}

// probes returns a start of probes that do nothing on all system calls.
func probes(engine probe.Engine, delivery probe.Delivery, filter *probe.Filter) func(context.Context, *env, int) (*tracing, error) {
	return func(ctx context.Context, e *env, _ int) (*tracing, error) {
		s, err := probe.New(e.g, e.k, &probe.Options{Engine: engine, Delivery: delivery})
		if err != nil {
			return nil, fmt.Errorf("prepare probes: %w", err)
		}
		t := &tracing{count: func(context.Context) (tally, error) {
			st := s.Stats()
			return tally{st.Entries + st.Returns, st.Lost}, nil
		}}
		if t.note, err = hookAll(e, s, filter); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		if err := planted(ctx, s, ended); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		t.stop = func() error {
			t.planted = s.Stats().Stopped
			s.Quit()
			err := <-ended
			t.removed = s.Stats().Stopped - t.planted
			return errors.Join(err, s.Close())
		}
		return t, nil
	}
}

// hookAll adds a probe to each system call, and tells how many it could not.
func hookAll(e *env, s *probe.Session, filter *probe.Filter) (note string, err error) {
	calls, err := e.k.Syscalls()
	if err != nil {
		return "", err
	}
	var all []*probe.Probe
	for _, c := range calls {
		all = append(all, &probe.Probe{
			Func: "__x64_sys_" + c.Name, User: probe.UserRegs64, Filter: filter,
			Enter: func(*probe.Hit) any { return nil }, Return: func(*probe.Hit, any) {},
		})
	}
	added, err := s.AddAll(all)
	n := 0
	for _, p := range added {
		if p != nil {
			n++
		}
	}
	switch {
	case n == 0:
		return "", err
	case err != nil:
		return fmt.Sprintf("%d of %d calls hooked", n, len(all)), nil
	}
	return "", nil
}

// planted waits until the probes are in: there are hits, or the guest has been
// stopped and is no more.
func planted(ctx context.Context, s *probe.Session, ended <-chan error) error {
	last, since := time.Duration(0), time.Now()
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("run: ended early: %w", errors.Join(err, ctx.Err()))
		case <-time.After(5 * time.Millisecond):
		}
		st := s.Stats()
		if st.Entries > 0 {
			return nil
		}
		if st.Stopped != last {
			last, since = st.Stopped, time.Now()
		}
		if last > 0 && time.Since(since) > 500*time.Millisecond {
			return nil
		}
	}
}

// startDecoded does what vitrine trace --json does with its output thrown away.
func startDecoded(ctx context.Context, e *env, _ int) (*tracing, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	out := sink.NewFanout(sink.Output{Name: "null", Sink: sink.NewJSON(null), Policy: sink.Block})
	var calls atomic.Uint64
	ended := make(chan error, 1)
	t := &tracing{note: "a record is a call"}
	var lost atomic.Uint64
	t.count = func(context.Context) (tally, error) { return tally{calls.Load(), lost.Load()}, nil }
	go func() {
		st, err := trace.Calls(ctx, e.g, e.k, e.sys, &trace.CallsOptions{Engine: string(probe.Implant)}, func(c *event.Call) error {
			calls.Add(1)
			return out.Write(ctx, c)
		})
		lost.Store(st.Lost)
		ended <- errors.Join(ignoreEnd(err), out.Close(context.WithoutCancel(ctx)), null.Close())
	}()
	t.stop = func() error { cancel(); return <-ended }
	for calls.Load() == 0 {
		select {
		case err := <-ended:
			cancel()
			return nil, fmt.Errorf("trace: ended early: %w", errors.Join(err, ctx.Err()))
		case <-time.After(5 * time.Millisecond):
		}
	}
	return t, nil
}

// ignoreEnd forgets that a call was being written when the trace ended.
func ignoreEnd(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
