package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// meter tells how often a workload has gone round. It reads the workload's
// counter out of guest memory: to ask the guest would be a load of its own,
// traced like any other, and take a traced guest long.
type meter struct {
	read func() (uint64, error)
	used func() time.Duration // processor time of QEMU
}

// startLoop starts a workload and returns its meter.
func (e *env) startLoop(ctx context.Context, l *loop) (*meter, int, error) {
	s, err := e.vm.Spawn(ctx, l.kind, "bench", l.args...)
	if err != nil {
		return nil, 0, fmt.Errorf("start workload %s: %w", l.name, err)
	}
	at, err := strconv.ParseUint(s.Info["counter"], 0, 64)
	if err != nil {
		return nil, 0, fmt.Errorf("find counter of %s: %w", l.name, err)
	}
	p, err := e.sys.ProcessByPID(ctx, s.PID)
	if err != nil {
		return nil, 0, fmt.Errorf("find counter of %s: %w", l.name, err)
	}
	as, err := e.sys.AddressSpace(ctx, p.Handle)
	if err != nil {
		return nil, 0, fmt.Errorf("find counter of %s: %w", l.name, err)
	}
	return &meter{counterAt(as, arch.GVA(at)), func() time.Duration { return processTime(e.vm.PID) }}, s.PID, nil
}

// processTime is how long the threads of a process have run; those that have
// ended are not counted, and QEMU's processors don't end.
func processTime(pid int) time.Duration {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		panic(err) // the pattern is right
	}
	sum := int64(0)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		first, _, _ := strings.Cut(string(b), " ")
		ns, _ := strconv.ParseInt(first, 10, 64)
		sum += ns
	}
	return time.Duration(sum)
}

func counterAt(as *vitrine.AddressSpace, at arch.GVA) func() (uint64, error) {
	return func() (uint64, error) {
		var b [8]byte
		if _, err := as.Read(b[:], at); err != nil {
			return 0, fmt.Errorf("read counter: %w", err)
		}
		return binary.LittleEndian.Uint64(b[:]), nil
	}
}

// reading is a rate of rounds, and the processor time of QEMU that each took.
// When none ended in the time, perSecond is what it is below of.
type reading struct {
	perSecond float64
	cpu       time.Duration
	below     bool
}

// glance is the time between two looks at a counter that is to change.
const glance = 500 * time.Microsecond

// next waits until the counter changes, for a limited time.
func (m *meter) next(ctx context.Context, limit time.Duration) (n uint64, at time.Time, changed bool, err error) {
	first, err := m.read()
	if err != nil {
		return 0, time.Now(), false, err
	}
	for end := time.Now().Add(limit); ; time.Sleep(glance) {
		n, err = m.read()
		at = time.Now()
		if err != nil || n != first || at.After(end) || ctx.Err() != nil {
			return n, at, n != first, joinErr(err, ctx)
		}
	}
}

func joinErr(err error, ctx context.Context) error {
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// rate measures from the end of a round to that of another, for the span at
// least; a round may take as long as the limit. Host time counts: the guest's
// own clock stands still while the guest does.
func (m *meter) rate(ctx context.Context, span, limit time.Duration) (reading, error) {
	first, begin, changed, err := m.next(ctx, limit)
	if err != nil || !changed {
		return reading{perSecond: 1 / limit.Seconds(), below: true}, err
	}
	used := m.used()
	select {
	case <-time.After(span):
	case <-ctx.Done():
		return reading{}, ctx.Err()
	}
	last, at, _, err := m.next(ctx, limit)
	if err != nil {
		return reading{}, err
	}
	took, cpu := at.Sub(begin).Seconds(), m.used()-used
	if last == first {
		return reading{perSecond: 1 / took, below: true}, nil
	}
	return reading{perSecond: float64(last-first) / took, cpu: cpu / time.Duration(last-first)}, nil
}
