package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// tracefs is where the guest's kernel is told what to trace.
const tracefs = "/sys/kernel/tracing"

// startFtrace lets the guest's kernel record each system call's entry and
// return, and a program in the guest read the records.
func startFtrace(ctx context.Context, e *env, _ int) (*tracing, error) {
	if _, err := e.vm.ReadFile(ctx, tracefs+"/tracing_on"); err != nil {
		if _, err := e.vm.Run(ctx, "mount", "-t", "tracefs", "tracefs", tracefs); err != nil {
			return nil, err
		}
	}
	enable := func(ctx context.Context, on string) error {
		_, err := e.vm.Run(ctx, "sh", "-c", "echo "+on+" > "+tracefs+"/events/raw_syscalls/enable")
		return err
	}
	if _, err := e.vm.SpawnProgram(ctx, "reader", "/bin/sh", "-c", "exec cat "+tracefs+"/trace_pipe > /dev/null"); err != nil {
		return nil, err
	}
	t := &tracing{count: func(ctx context.Context) (tally, error) { return e.ftraceTally(ctx) }}
	t.stop = func() error {
		ctx := context.WithoutCancel(ctx)
		return errors.Join(enable(ctx, "0"), e.vm.Kill(ctx, "reader"))
	}
	if err := enable(ctx, "1"); err != nil {
		return nil, errors.Join(err, t.stop())
	}
	return t, nil
}

// ftraceTally adds up what the kernel says of its buffers.
func (e *env) ftraceTally(ctx context.Context) (tally, error) {
	var sum tally
	for cpu := range e.g.CPUs() {
		b, err := e.vm.ReadFile(ctx, path.Join(tracefs, "per_cpu", "cpu"+strconv.Itoa(cpu), "stats"))
		if err != nil {
			return tally{}, err
		}
		t := parseBufferStats(string(b))
		sum.records += t.records
		sum.lost += t.lost
	}
	return sum, nil
}

// parseBufferStats reads per_cpu/cpuN/stats. What was read has been delivered;
// what a full buffer overwrote, or did not take, is lost.
func parseBufferStats(text string) tally {
	var t tally
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		switch name {
		case "read events":
			t.records += n
		case "overrun", "dropped events", "commit overrun":
			t.lost += n
		}
	}
	return t
}

// startStrace attaches strace to the workload and its children.
func startStrace(ctx context.Context, e *env, pid int) (*tracing, error) {
	_, err := e.vm.SpawnProgram(ctx, "strace", "/usr/bin/strace", "-f", "-qq", "-o", "/dev/null", "-p", strconv.Itoa(pid))
	if err != nil {
		return nil, err
	}
	t := &tracing{stop: func() error { return e.vm.Kill(context.WithoutCancel(ctx), "strace") }}
	for end := time.Now().Add(time.Minute); ; {
		status, err := e.vm.ReadFile(ctx, fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return nil, errors.Join(err, t.stop())
		}
		if tracer := field(string(status), "TracerPid"); tracer != "" && tracer != "0" {
			return t, nil
		}
		if time.Now().After(end) {
			return nil, errors.Join(errors.New("strace did not attach within a minute"), t.stop())
		}
	}
}

// field returns the value behind "name:" at the beginning of a line.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if n, v, ok := strings.Cut(line, ":"); ok && n == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
