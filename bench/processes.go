package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/vitrine-vmi/vitrine/osi"
)

// listAll lists all processes with everything that is known of them.
func listAll(ctx context.Context, sys osi.System) (int, error) {
	n := 0
	for _, err := range sys.Processes(ctx) {
		if err != nil {
			return n, fmt.Errorf("list processes: %w", err)
		}
		n++
	}
	return n, nil
}

// portion is how many processes one workload makes: a loaded host's guest needs
// its time for each, and the harness waits for a workload only so long.
const portion = 250

// measureProcesses measures lists of crowds of processes, each crowd made of
// the one before.
func measureProcesses(ctx context.Context, e *env, t *table) error {
	made := 0
	defer func() {
		// A guest whose workloads don't end says so at the next step.
		_ = e.vm.Quiet(context.WithoutCancel(ctx))
	}()
	for _, n := range e.o.crowds() {
		for made < n {
			more := min(portion, n-made)
			if _, err := e.vm.Spawn(ctx, "procs", fmt.Sprint("crowd", made), strconv.Itoa(more)); err != nil {
				return fmt.Errorf("make %d processes: %w", n, err)
			}
			made += more
		}
		if err := measureCrowd(ctx, e, t, n); err != nil {
			return err
		}
	}
	return nil
}

func measureCrowd(ctx context.Context, e *env, t *table, n int) error {
	goal := ""
	if n == 2000 {
		goal = "< 100ms"
	}
	return measureList(ctx, e.o, e.sys, t, "ps of %d processes", goal, n)
}

// measureList measures lists of all processes, of which there are at least n.
// What has a place for how many there are.
func measureList(ctx context.Context, o *options, sys osi.System, t *table, what, goal string, n int) error {
	var all, handles times
	listed := 0
	for range o.repeat() {
		start := time.Now()
		got, err := listAll(ctx, sys)
		if err != nil {
			return err
		}
		all = append(all, time.Since(start))
		if got < n {
			return fmt.Errorf("%d processes listed, at least %d are there", got, n)
		}
		listed = got
		start = time.Now()
		for _, err := range sys.ProcessHandles(ctx) {
			if err != nil {
				return fmt.Errorf("list handles: %w", err)
			}
		}
		handles = append(handles, time.Since(start))
	}
	t.add(fmt.Sprintf(what, listed), short(all.median()).String(), goal,
		fmt.Sprintf("%v a process; handles alone %v; %v", short(all.median()/time.Duration(listed)), short(handles.median()), all))
	return nil
}
