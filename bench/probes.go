package main

import (
	"context"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine/probe"
)

// tried is one way of tracing a workload.
type tried struct {
	what     string
	workload string
	args     []string
	funcs    []string
	returns  bool
}

// loops are the workloads under which probes are measured: the cheapest system
// call, and a pair with some work in it.
var loops = []tried{
	{"getppid loop, entries", "getppid", nil, []string{"__x64_sys_getppid"}, false},
	{"getppid loop, entries and returns", "getppid", nil, []string{"__x64_sys_getppid"}, true},
	{"open+close loop, entries and returns", "open", []string{"0", "/etc/hostname"}, []string{"__x64_sys_openat", "__x64_sys_close"}, true},
}

// measureProbes measures each loop untraced, then with probes on it.
func measureProbes(ctx context.Context, e *env, t *table) error {
	for _, l := range loops {
		err := e.workload(ctx, l.workload, l.args, func() error { return measureLoop(ctx, e, t, &l, probe.Trap) })
		if err != nil {
			return fmt.Errorf("%s: %w", l.what, err)
		}
	}
	return nil
}

func measureLoop(ctx context.Context, e *env, t *table, l *tried, engine probe.Engine) error {
	before, err := e.rate(ctx, "bench", e.o.span())
	if err != nil {
		return err
	}
	st, took, err := underProbes(ctx, e, l, engine)
	if err != nil {
		return err
	}
	// A round of the loop is one call of the first function. The workload's own
	// counter goes up in steps that are too large for a traced one.
	during := float64(st.PerFunc[l.funcs[0]]) / took.Seconds()
	if during == 0 {
		return fmt.Errorf("nothing was hit: %+v", st)
	}
	name := string(st.Engine) + ", " + l.what
	t.add(name+": hits", count(float64(st.Entries+st.Returns)/took.Seconds())+"/s", "",
		fmt.Sprintf("%d entries, %d returns, %d lost; guest stopped %.0f%% of the time", st.Entries, st.Returns, st.Lost, 100*st.Stopped.Seconds()/took.Seconds()))
	t.add(name+": slowdown", count(before/during)+"x", "",
		fmt.Sprintf("%s/s rounds untraced, %s/s traced", count(before), count(during)))
	return backToSpeed(ctx, e, before)
}

// backToSpeed holds that the workload is as fast as it was. A loaded host makes
// single measurements slow, so there are several, and a wide margin.
func backToSpeed(ctx context.Context, e *env, before float64) error {
	var after float64
	for range 10 {
		now, err := e.rate(ctx, "bench", e.o.span())
		if err != nil {
			return err
		}
		if after = max(after, now); after >= before/2 {
			return nil
		}
	}
	return fmt.Errorf("the guest did not get back to speed: %s/s rounds before, %s/s after", count(before), count(after))
}

// underProbes runs a session for a time, and returns what it counted after the
// first hits, which are not typical.
func underProbes(ctx context.Context, e *env, l *tried, engine probe.Engine) (probe.Stats, time.Duration, error) {
	s, err := probe.New(e.g, e.k, &probe.Options{Engine: engine})
	if err != nil {
		return probe.Stats{}, 0, fmt.Errorf("prepare probes: %w", err)
	}
	defer s.Close()
	for _, f := range l.funcs {
		p := &probe.Probe{Func: f, Enter: func(*probe.Hit) any { return nil }}
		if l.returns {
			p.Return = func(*probe.Hit, any) {}
		}
		if _, err := s.Add(p); err != nil {
			return probe.Stats{}, 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	if err := awaitHits(ctx, s, ended); err != nil {
		return probe.Stats{}, 0, err
	}
	start, first := time.Now(), s.Stats()
	time.Sleep(e.o.span())
	took, last := time.Since(start), s.Stats()
	s.Quit()
	if err := <-ended; err != nil {
		return last, took, fmt.Errorf("run probes: %w", err)
	}
	return since(last, first), took, nil
}

// awaitHits waits until a session delivers.
func awaitHits(ctx context.Context, s *probe.Session, ended chan error) error {
	for s.Stats().Entries < 10 {
		select {
		case err := <-ended:
			return fmt.Errorf("run probes: ended early: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("run probes: %d hits only: %w", s.Stats().Entries, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// since returns what was counted between two looks at the counters.
func since(last, first probe.Stats) probe.Stats {
	last.Entries -= first.Entries
	last.Returns -= first.Returns
	last.Lost -= first.Lost
	last.Stopped -= first.Stopped
	for f, n := range first.PerFunc {
		last.PerFunc[f] -= n
	}
	return last
}
