package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/dump"
)

// DumpOptions say how a core is written.
type DumpOptions struct {
	Live     bool // let the guest run meanwhile
	Resume   bool // go on with what a failed one left
	Progress func(done, total uint64)
}

// DumpReport says what was written.
type DumpReport struct {
	dump.Report
	Note string // what the core lacks, "" for nothing
}

// ErrCoreExists is returned where a core would overwrite a file.
var ErrCoreExists = dump.ErrExists

// errContinued is returned when the guest did not stand still all the time.
var errContinued = errors.New("somebody let the guest run meanwhile: its memory is not of one moment")

// Dump writes an ELF core of the guest to path. Unless o says otherwise the
// guest stands still for as long as that takes. A guest that is not understood
// gives a core without the kernel's notes.
func (s *Session) Dump(ctx context.Context, path string, o DumpOptions) (*DumpReport, error) {
	w := &dump.WriteOptions{Resume: o.Resume, Progress: o.Progress}
	report := &DumpReport{}
	if err := s.identifyNow(ctx); err == nil {
		w.Info, w.Mappings = s.kernel.VMCoreInfo(), s.mappings()
	} else if !errors.Is(err, vitrine.ErrNotUnderstood) {
		return nil, err
	} else {
		report.Note = "no operating system was understood: the core has no notes of a kernel"
	}
	if !o.Live {
		resume, err := s.guest.Pause(ctx)
		if err != nil {
			return nil, fmt.Errorf("pause guest %q (--live does without): %w", s.target.Text, err)
		}
		defer func() { _ = resume() }() // once more where Written was not reached
		w.Written = func() error { return errors.Join(s.stoodStill(ctx), resume()) }
	}
	s.opts.step("writing memory")
	r, err := dump.Write(ctx, s.guest, path, w)
	if r != nil {
		report.Report = *r
	}
	return report, err
}

// identifyNow is Identify that does not wait for a guest that is still booting:
// what is wanted of it is what it has now.
func (s *Session) identifyNow(ctx context.Context) error {
	given := s.opts
	defer func() { s.opts = given }()
	now := *given
	now.Wait = 0
	s.opts = &now
	return s.Identify(ctx)
}

// stoodStill checks that the guest, which was paused, still is.
func (s *Session) stoodStill(ctx context.Context) error {
	if st, err := s.guest.Status(ctx); err == nil && st == vitrine.StatusRunning {
		return errContinued
	}
	return nil
}

// mappings returns where the kernel maps its image and, in one piece, all
// physical memory.
func (s *Session) mappings() []dump.Mapping {
	base, end := s.kernel.Image()
	out := []dump.Mapping{{Virtual: base, Physical: s.kernel.PhysBase(), Size: uint64(end - base)}}
	direct, ok := s.kernel.DirectMap()
	if !ok {
		return out
	}
	for _, r := range s.guest.Regions() {
		if m, err := s.kernel.AddressSpace().Translate(direct + arch.GVA(r.Start)); err == nil && m == r.Start {
			out = append(out, dump.Mapping{Virtual: direct + arch.GVA(r.Start), Physical: r.Start, Size: r.Size})
		}
	}
	return out
}
