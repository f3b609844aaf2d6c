package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// comparison is a loop under one tracer, against the same loop without.
type comparison struct {
	Loop    string    `json:"loop"`
	Tracer  string    `json:"tracer"`
	Thing   string    `json:"thing"`                             // what the rate counts
	Rate    float64   `json:"rate_per_s"`                        // median of the rounds
	Slower  float64   `json:"slower,omitempty"`                  // median of the ratios untraced to traced
	AtLeast bool      `json:"at_least,omitempty"`                // no round of the loop ended: Slower is a bound
	Ratios  []float64 `json:"ratios"`                            // of each round; for untraced, to the median
	Work    float64   `json:"slower_by_qemu_cpu_time,omitempty"` // the same of QEMU's processor time for a round, all vCPUs
	Records float64   `json:"records_per_s"`                     // median; what a record is depends on the tracer
	Counts  string    `json:"record,omitempty"`                  // what a record is; empty: not counted
	Lost    uint64    `json:"lost"`                              // of all rounds
	CPU     float64   `json:"host_cpu_percent"`                  // of this process, median
	Inside  bool      `json:"inside,omitempty"`                  // the tracer is a program of the guest
	Note    string    `json:"note,omitempty"`                    // why there is no figure, or what to know of it
	Planted []float64 `json:"planted_ms,omitempty"`              // how long the guest stood still
	Removed []float64 `json:"taken_out_ms,omitempty"`            // likewise
	rates   []float64
	works   []float64
	records []float64
	cpus    []float64
}

// measureTracers measures each loop under each tracer.
func measureTracers(ctx context.Context, e *env, t *table) error {
	defer t.addStops()
	for i := range loops {
		l := &loops[i]
		if !e.o.wantsLoop(*l) {
			continue
		}
		if err := e.compare(ctx, t, l); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

// compare measures one loop. Each measurement of a traced one lies between two
// of the untraced one, which it is compared with: what else the host does comes
// and goes.
func (e *env) compare(ctx context.Context, t *table, l *loop) error {
	m, pid, err := e.startLoop(ctx, l)
	if err != nil {
		return err
	}
	defer e.endLoop(ctx)
	all := []*comparison{{Loop: l.name, Tracer: "untraced", Thing: l.thing}}
	for i := range tracers {
		all = append(all, &comparison{Loop: l.name, Tracer: tracers[i].name, Thing: l.thing, Counts: tracers[i].records, Inside: tracers[i].inside})
	}
	defer t.addCompared(all)
	base, err := e.untraced(ctx, m, l, all[0])
	if err != nil {
		return err
	}
	for round := range e.o.rounds() {
		for i := range tracers {
			tr, c := &tracers[i], all[i+1]
			switch {
			case tr.only != "" && tr.only != l.name, tr.slow && round > 0, round > 0 && len(c.rates) == 0:
				continue
			case e.o.leavesOut(tr, l):
				c.Note = "left out of a short run"
				continue
			}
			fmt.Fprintf(e.progress, "%s %s, %s\n", time.Now().UTC().Format(time.TimeOnly), l.name, tr.name)
			r, err := e.traced(ctx, m, l, tr, c, pid)
			if err != nil {
				return fmt.Errorf("%s: %w", tr.name, err)
			}
			after, err := e.untraced(ctx, m, l, all[0])
			if err != nil {
				return err
			}
			c.add(r, mean(base, after))
			base = after
		}
	}
	return nil
}

func (e *env) endLoop(ctx context.Context) {
	ended, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_ = e.vm.Kill(ended, "bench") // a guest in which it does not end says so at the next step
}

// untraced measures the loop alone.
func (e *env) untraced(ctx context.Context, m *meter, l *loop, c *comparison) (reading, error) {
	select {
	case <-time.After(e.o.settle()): // after a tracer, QEMU translates the guest's code anew
	case <-ctx.Done():
		return reading{}, ctx.Err()
	}
	r, err := m.rate(ctx, e.o.spanOf(l), time.Minute)
	if err == nil && r.below {
		err = errors.New("the untraced loop stands still")
	}
	if err == nil {
		c.rates = append(c.rates, r.perSecond)
	}
	return r, err
}

// traced measures the loop under a tracer; the reading is empty and the
// comparison has a note where that cannot be used here.
func (e *env) traced(ctx context.Context, m *meter, l *loop, tr *tracer, c *comparison, pid int) (reading, error) {
	t, err := tr.start(ctx, e, pid)
	if errors.Is(err, errors.ErrUnsupported) {
		c.Note = "not here: " + err.Error()
		return reading{}, nil
	}
	if err != nil {
		return reading{}, err
	}
	c.Note = t.note
	r, err := e.watch(ctx, m, l, t, c)
	if err := errors.Join(err, t.stop()); err != nil {
		return r, err
	}
	if !tr.inside && t.removed > 0 && !tr.slow {
		c.Planted = append(c.Planted, t.planted.Seconds()*1e3)
		c.Removed = append(c.Removed, t.removed.Seconds()*1e3)
	}
	return r, nil
}

// watch measures the loop, and meanwhile what the tracer counts.
func (e *env) watch(ctx context.Context, m *meter, l *loop, t *tracing, c *comparison) (reading, error) {
	time.Sleep(e.o.settle())
	before, err := t.tally(ctx)
	if err != nil {
		return reading{}, err
	}
	start, used := time.Now(), processorTime()
	r, err := m.rate(ctx, e.o.spanOf(l), e.o.patience())
	took, cpu := time.Since(start), processorTime()-used
	if err != nil {
		return r, err
	}
	after, err := t.tally(ctx)
	took2 := time.Since(start)
	if err != nil {
		return r, err
	}
	c.records = append(c.records, float64(after.records-before.records)/took2.Seconds())
	c.Lost += after.lost - before.lost
	c.cpus = append(c.cpus, 100*cpu.Seconds()/took.Seconds())
	return r, nil
}

// tally is what the tracer has counted; of one that does not count, nothing.
func (t *tracing) tally(ctx context.Context) (tally, error) {
	if t.count == nil {
		return tally{}, nil
	}
	return t.count(ctx)
}

// add takes one round's rate, with that of the untraced loop around it.
func (c *comparison) add(r, untraced reading) {
	if r.perSecond == 0 {
		return
	}
	c.rates = append(c.rates, r.perSecond)
	c.Ratios = append(c.Ratios, untraced.perSecond/r.perSecond)
	if r.cpu > 0 && untraced.cpu > 0 {
		c.works = append(c.works, r.cpu.Seconds()/untraced.cpu.Seconds())
	}
	c.AtLeast = c.AtLeast || r.below
}

// mean is a reading between two.
func mean(a, b reading) reading {
	return reading{perSecond: (a.perSecond + b.perSecond) / 2, cpu: (a.cpu + b.cpu) / 2}
}

// finish sums the rounds up.
func (c *comparison) finish() {
	c.Rate, c.Work, c.Records, c.CPU = median(c.rates), median(c.works), median(c.records), median(c.cpus)
	if c.Tracer != "untraced" {
		c.Slower = median(c.Ratios)
		return
	}
	c.Slower = 1
	for _, r := range c.rates {
		c.Ratios = append(c.Ratios, c.Rate/r)
	}
}

// median is 0 of nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
