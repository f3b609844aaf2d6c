package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/windows" // the provider registers itself
	"github.com/vitrine-vmi/vitrine/qemu"
	"github.com/vitrine-vmi/vitrine/tests/ntguest"
)

// ntPart is the part that has guests of its own: kernels laid out as NT builds
// are (tests/ntguest). It is no part of a run that does not name it: the layouts
// are data that not everybody has.
const ntPart = "nt"

// ntCrowd is how many processes such a guest is asked to have.
const ntCrowd = 200

// ntLayouts are those that are measured.
func (o *options) ntLayouts() []string {
	all := ntguest.Layouts()
	if o.smoke {
		return all[len(all)-1:]
	}
	return all
}

// measureNT measures how long it takes to understand a guest with an NT kernel,
// and to list its processes with all that is known of them.
func measureNT(ctx context.Context, o *options, t *table) error {
	for _, layout := range o.ntLayouts() {
		if err := measureNTLayout(ctx, o, t, layout); err != nil {
			return fmt.Errorf("layout %s: %w", layout, err)
		}
	}
	return nil
}

func measureNTLayout(ctx context.Context, o *options, t *table, layout string) (err error) {
	vm, err := ntguest.Start(ctx, layout, &ntguest.Options{Processes: ntCrowd, Memory: 128})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	if err := measureIdentify(ctx, o, vm.QMP, t, "NT "+layout+": attach and identify", "< 1s", nil); err != nil {
		return err
	}
	g, err := qemu.Attach(ctx, vm.QMP, nil)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer g.Close()
	k, err := kernel.Describe(ctx, g, nil)
	if err != nil {
		return fmt.Errorf("describe kernel: %w", err)
	}
	sys, err := osi.Open(ctx, g, k, nil)
	if err != nil {
		return fmt.Errorf("open system: %w", err)
	}
	return measureList(ctx, o, sys, t, "NT "+layout+": ps of %d processes", "< 100ms", ntCrowd)
}
