package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/linux" // the provider registers itself
	"github.com/vitrine-vmi/vitrine/qemu"
)

// env is a guest that has been booted and understood.
type env struct {
	o   *options
	vm  *testvm.VM
	g   *vitrine.Guest
	k   *kernel.Kernel
	sys osi.System
}

// boot boots the guest that everything is measured on: 512 MiB, two vCPUs, RAM
// that the host can map.
func boot(ctx context.Context, o *options, progress io.Writer) (*env, error) {
	vm, err := testvm.Boot(ctx, &testvm.Options{
		Kernel: o.kernel, CPU: o.cpu, CPUs: 2, RAM: testvm.SharedMemfd, Progress: progress,
	})
	if err != nil {
		return nil, fmt.Errorf("boot guest: %w", err)
	}
	e := &env{o: o, vm: vm}
	if err := e.open(ctx); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *env) open(ctx context.Context) error {
	var err error
	if e.g, err = qemu.Attach(ctx, e.vm.QMP, nil); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if e.k, err = kernel.Describe(ctx, e.g, nil); err != nil {
		return fmt.Errorf("describe kernel: %w", err)
	}
	if e.sys, err = osi.Open(ctx, e.g, e.k, nil); err != nil {
		return fmt.Errorf("open system: %w", err)
	}
	return nil
}

func (e *env) close() error {
	var err error
	if e.g != nil {
		err = e.g.Close()
	}
	return errors.Join(err, e.vm.Close())
}

// pace is a workload's operations per second: of the host's time, and of the
// processor time that QEMU used, which a loaded host hardly changes.
type pace struct{ wall, cpu float64 }

// rate measures a workload. The guest's own clock stands still while the guest
// does, so it cannot tell.
func (e *env) rate(ctx context.Context, workload string) (pace, error) {
	start, used := time.Now(), e.vmTime()
	r, err := e.vm.Rate(ctx, workload, e.o.span().Seconds())
	if err != nil {
		return pace{}, fmt.Errorf("rate of %s: %w", workload, err)
	}
	n := float64(r.Count)
	return pace{n / time.Since(start).Seconds(), n / max(e.vmTime()-used, tick).Seconds()}, nil
}

// tick is the unit of times in /proc/PID/stat (USER_HZ is 100 on every Linux
// that QEMU's guests are measured on).
const tick = 10 * time.Millisecond

// vmTime is the processor time that QEMU has used, 0 if it has ended.
func (e *env) vmTime() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", e.vm.PID))
	if err != nil {
		return 0
	}
	// The fields behind the name, which is in parentheses: utime and stime are
	// the 14th and the 15th of all (proc(5)).
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * tick
}

// best is the highest of several rates: on a loaded host, the others say more
// of the load than of the guest.
func (e *env) best(ctx context.Context, workload string) (pace, error) {
	var best pace
	for range e.o.tries() {
		v, err := e.rate(ctx, workload)
		if err != nil {
			return pace{}, err
		}
		best = pace{max(best.wall, v.wall), max(best.cpu, v.cpu)}
	}
	return best, nil
}

// workload runs one while f does.
func (e *env) workload(ctx context.Context, kind string, args []string, f func() error) error {
	if _, err := e.vm.Spawn(ctx, kind, "bench", args...); err != nil {
		return fmt.Errorf("start workload %s: %w", kind, err)
	}
	err := f()
	ended, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, e.vm.Kill(ended, "bench"))
}
