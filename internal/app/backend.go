package app

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/dump"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/qemu"
)

// openBackend reaches the guest that t names.
func openBackend(ctx context.Context, t Target, opts *Options) (g *vitrine.Guest, err error) {
	o := &qemu.Options{Wait: opts.WaitThere}
	if opts.Layout != "" && t.Kind != TargetImage {
		return nil, fmt.Errorf("%w %q: a layout is for a file of raw memory", ErrTarget, t.Text)
	}
	switch t.Kind {
	case TargetImage:
		return openImage(ctx, t.Path, opts.Layout)
	case TargetQMP:
		g, err = qemu.Attach(ctx, t.Path, o)
	case TargetPID:
		g, err = attachPID(ctx, t.PID, o)
	default:
		g, err = qemu.AttachName(ctx, t.Text, o)
	}
	if errors.Is(err, vitrine.ErrBusy) {
		if who := holders(monitorOf(ctx, t)); len(who) > 0 {
			err = fmt.Errorf("%w; %s has it now", err, strings.Join(who, ", "))
		}
	}
	return g, err
}

// attachPID reaches the guest of a process: by its monitor where it is a QEMU
// that has one, else by its memory alone.
func attachPID(ctx context.Context, pid int, o *qemu.Options) (*vitrine.Guest, error) {
	g, err := qemu.AttachPID(ctx, pid, o)
	if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, vitrine.ErrNotFound) {
		return g, err
	}
	g, verr := attachVMM(ctx, pid)
	if verr == nil {
		return g, nil
	}
	return nil, fmt.Errorf("%w; %w", err, verr)
}

// openImage opens a memory image; layout says how raw memory is laid out, "" that
// it is none.
func openImage(ctx context.Context, path, layout string) (*vitrine.Guest, error) {
	o := &dump.Options{}
	if layout != "" {
		var size uint64
		if fi, err := os.Stat(path); err == nil {
			size = uint64(fi.Size())
		}
		l, err := dump.ParseLayout(layout, size)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTarget, err)
		}
		o.Layout = l
	}
	return dump.Open(ctx, path, o)
}

// monitorOf returns the path of the monitor's socket, "" when it can't be told.
func monitorOf(ctx context.Context, t Target) string {
	if t.Kind == TargetQMP {
		return t.Path
	}
	all, err := qemu.List(ctx)
	if err != nil {
		return ""
	}
	for _, r := range all {
		if t.Kind == TargetPID && r.PID == t.PID || t.Kind == TargetName && r.Name == t.Text {
			return r.QMP
		}
	}
	return ""
}

// Guests lists the guests that run on this host.
func Guests(ctx context.Context) iter.Seq2[event.Guest, error] {
	all, err := qemu.List(ctx)
	if err != nil {
		return failed[event.Guest](err)
	}
	return func(yield func(event.Guest, error) bool) {
		for _, r := range all {
			if !yield(event.Guest{
				Name: r.Name, PID: r.PID, Accel: r.Accel, MemoryBytes: r.MemoryBytes, VCPUs: r.CPUs, QMP: r.QMP,
			}, nil) {
				return
			}
		}
	}
}
