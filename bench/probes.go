package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/trace"
)

// loop is a workload and the functions to hook under it; a round of it calls
// the first of them once.
type loop struct {
	name  string
	kind  string
	args  []string
	funcs []string
	calls []string // the same as system calls
}

// loops are the cheapest system call, and a pair with some work in it.
var loops = []loop{
	{"getppid loop", "getppid", nil, []string{"__x64_sys_getppid"}, []string{"getppid"}},
	{"open+close loop", "open", []string{"0", "/etc/hostname"}, []string{"__x64_sys_openat", "__x64_sys_close"}, []string{"openat", "close"}},
}

// hooks are the ways to hook functions: probes alone, and a trace with decoded
// arguments.
var hooks = []struct {
	name  string
	start func(ctx context.Context, e *env, l *loop, engine probe.Engine) (*hooked, error)
}{
	{"entries", func(ctx context.Context, e *env, l *loop, engine probe.Engine) (*hooked, error) {
		return startProbes(ctx, e, l, engine, false)
	}},
	{"entries and returns", func(ctx context.Context, e *env, l *loop, engine probe.Engine) (*hooked, error) {
		return startProbes(ctx, e, l, engine, true)
	}},
	{"decoded trace", startTrace},
}

// firstHook leaves out what the next one has in it.
func (o *options) firstHook() int {
	if o.smoke {
		return 1
	}
	return 0
}

// counters are what was counted up to a moment.
type counters struct {
	hits, rounds, lost uint64
	stopped            time.Duration
}

func (c counters) since(before counters) counters {
	return counters{c.hits - before.hits, c.rounds - before.rounds, c.lost - before.lost, c.stopped - before.stopped}
}

// hooked is a running measurement.
type hooked struct {
	look  func() counters
	ended chan error
	quit  func() // ended gets Run's error then
}

// measureProbes measures each loop untraced, then hooked in all ways.
func measureProbes(ctx context.Context, e *env, t *table) error {
	for _, l := range loops {
		err := e.workload(ctx, l.kind, l.args, func() error {
			for _, engine := range []probe.Engine{probe.Trap, probe.Implant} {
				for _, h := range hooks[e.o.firstHook():] {
					start := func(ctx context.Context) (*hooked, error) { return h.start(ctx, e, &l, engine) }
					if err := measureHooked(ctx, e, t, fmt.Sprintf("%s, %s, %s", engine, l.name, h.name), start); err != nil {
						return fmt.Errorf("%s, %s: %w", engine, h.name, err)
					}
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

func measureHooked(ctx context.Context, e *env, t *table, name string, start func(context.Context) (*hooked, error)) error {
	before, err := e.best(ctx, "bench")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	h, err := start(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		t.add(name, "not here", "", err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	c, during, took, err := h.watch(ctx, e)
	if err != nil {
		return err
	}
	t.add(name+": hits", count(float64(c.hits)/took.Seconds())+"/s", "",
		fmt.Sprintf("%d in %v, %d lost; guest stopped %.0f%% of the time", c.hits, short(took), c.lost, 100*c.stopped.Seconds()/took.Seconds()))
	t.add(name+": slowdown", count(before.wall/during)+"x", "", fmt.Sprintf("%s/s rounds untraced, %s/s traced", count(before.wall), count(during)))
	return backToSpeed(ctx, e, before)
}

// watch measures a hooked workload after its first hits, which are not typical,
// and ends the hooking.
func (h *hooked) watch(ctx context.Context, e *env) (c counters, during float64, took time.Duration, err error) {
	if err := h.await(ctx); err != nil {
		return c, 0, 0, err
	}
	start, first := time.Now(), h.look()
	best, err := e.best(ctx, "bench")
	during = best.wall
	took, c = time.Since(start), h.look().since(first)
	h.quit()
	if ended := <-h.ended; ended != nil {
		err = errors.Join(err, fmt.Errorf("run: %w", ended))
	}
	if err != nil {
		return c, during, took, err
	}
	// The workload's own counter goes up in steps of 256, which is too much for
	// a slow one; where nothing is lost, hits tell too.
	if during*took.Seconds() < 20*256 && c.lost == 0 {
		during = float64(c.rounds) / took.Seconds()
	}
	if during == 0 || c.hits == 0 {
		return c, during, took, fmt.Errorf("nothing was hit in %v: %+v", took, c)
	}
	return c, during, took, nil
}

// await waits until there are hits.
func (h *hooked) await(ctx context.Context) error {
	for h.look().hits < 10 {
		select {
		case err := <-h.ended:
			return fmt.Errorf("run: ended early: %w", err)
		case <-ctx.Done():
			h.quit()
			return fmt.Errorf("run: %d hits only: %w", h.look().hits, errors.Join(ctx.Err(), <-h.ended))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// startProbes hooks the loop's functions by probes that do nothing.
func startProbes(ctx context.Context, e *env, l *loop, engine probe.Engine, returns bool) (*hooked, error) {
	s, err := probe.New(e.g, e.k, &probe.Options{Engine: engine})
	if err != nil {
		return nil, fmt.Errorf("prepare probes: %w", err)
	}
	for _, f := range l.funcs {
		p := &probe.Probe{Func: f, Enter: func(*probe.Hit) any { return nil }}
		if returns {
			p.Return = func(*probe.Hit, any) {}
		}
		if _, err := s.Add(p); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	h := &hooked{quit: s.Quit, ended: make(chan error, 1), look: func() counters {
		st := s.Stats()
		return counters{st.Entries + st.Returns, st.PerFunc[l.funcs[0]], st.Lost, st.Stopped}
	}}
	go func() { h.ended <- errors.Join(s.Run(ctx), s.Close()) }()
	return h, nil
}

// startTrace traces the loop's system calls with decoded arguments.
func startTrace(ctx context.Context, e *env, l *loop, engine probe.Engine) (*hooked, error) {
	ctx, quit := context.WithCancel(ctx)
	var hits, rounds atomic.Uint64
	h := &hooked{quit: quit, ended: make(chan error, 1), look: func() counters {
		return counters{hits: hits.Load(), rounds: rounds.Load()}
	}}
	emit := func(c *event.Call) error {
		hits.Add(1)
		if c.Name == l.calls[0] {
			rounds.Add(1)
		}
		return nil
	}
	go func() {
		_, err := trace.Calls(ctx, e.g, e.k, e.sys, &trace.CallsOptions{Names: l.calls, Engine: string(engine)}, emit)
		h.ended <- err
	}()
	return h, nil
}

// backToSpeed holds that the workload takes as little processor time as before.
// The first measurements may still see QEMU translate code anew.
func backToSpeed(ctx context.Context, e *env, before pace) error {
	var after pace
	for range 10 {
		var err error
		if after, err = e.rate(ctx, "bench"); err != nil {
			return err
		}
		if after.cpu >= before.cpu/2 {
			return nil
		}
	}
	return fmt.Errorf("the guest did not get back to speed: %s rounds for a second of processor time before, %s after", count(before.cpu), count(after.cpu))
}
