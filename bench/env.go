package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	o        *options
	progress io.Writer
	vm       *testvm.VM
	g        *vitrine.Guest
	k        *kernel.Kernel
	sys      osi.System
}

// boot boots the guest that everything is measured on: 1 GiB, two vCPUs, RAM
// that the host can map, and a device to tell VMCOREINFO to QEMU's dumps by,
// which the guest uses once a module is loaded.
func boot(ctx context.Context, o *options, progress io.Writer) (*env, error) {
	vm, err := testvm.Boot(ctx, &testvm.Options{
		Kernel: o.kernel, CPU: o.cpu, CPUs: 2, Memory: 1024, RAM: testvm.SharedMemfd, Progress: progress,
		Args:     []string{"-device", "vmcoreinfo"},
		Programs: []string{"/usr/bin/tar", "/usr/bin/strace"}, Files: tree(),
	})
	if err != nil {
		return nil, fmt.Errorf("boot guest: %w", err)
	}
	e := &env{o: o, progress: progress, vm: vm}
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
