package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// identified is how long the steps to an understood guest took.
type identified struct{ attach, describe, open time.Duration }

// identify attaches anew, identifies the guest and lets go of it.
func identify(ctx context.Context, qmp string, opts *kernel.Options) (identified, error) {
	var d identified
	start := time.Now()
	g, err := qemu.Attach(ctx, qmp, nil)
	if err != nil {
		return d, fmt.Errorf("attach: %w", err)
	}
	defer g.Close()
	d.attach = time.Since(start)
	start = time.Now()
	k, err := kernel.Describe(ctx, g, opts)
	if err != nil {
		return d, fmt.Errorf("describe kernel: %w", err)
	}
	d.describe = time.Since(start)
	start = time.Now()
	if _, err = osi.Open(ctx, g, k, nil); err != nil {
		return d, fmt.Errorf("open system: %w", err)
	}
	d.open = time.Since(start)
	return d, nil
}

// measureAttach measures how long it takes to understand a guest that is seen
// for the first time, and one that has been seen before.
func measureAttach(ctx context.Context, e *env, t *table) error {
	if err := e.g.Close(); err != nil { // one monitor, one client
		return fmt.Errorf("let go of the guest: %w", err)
	}
	dir, err := os.MkdirTemp("", "vitrine-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := measureIdentify(ctx, e.o, e.vm.QMP, t, "attach and identify, cold", "< 1s", nil); err != nil {
		return err
	}
	opts := &kernel.Options{CacheDir: dir}
	if _, err := identify(ctx, e.vm.QMP, opts); err != nil { // fills the cache
		return err
	}
	if err := measureIdentify(ctx, e.o, e.vm.QMP, t, "attach and identify, warm", "< 200ms", opts); err != nil {
		return err
	}
	return e.open(ctx)
}

func measureIdentify(ctx context.Context, o *options, qmp string, t *table, what, goal string, opts *kernel.Options) error {
	var attach, describe, open, all times
	for range o.repeat() {
		d, err := identify(ctx, qmp, opts)
		if err != nil {
			return err
		}
		attach, describe, open = append(attach, d.attach), append(describe, d.describe), append(open, d.open)
		all = append(all, d.attach+d.describe+d.open)
	}
	t.add(what, short(all.median()).String(), goal, fmt.Sprintf("attach %v, kernel %v, system %v; %v",
		short(attach.median()), short(describe.median()), short(open.median()), all))
	return nil
}
