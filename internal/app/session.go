package app

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/linux"   // the providers register themselves
	_ "github.com/vitrine-vmi/vitrine/osi/windows" // likewise
	"github.com/vitrine-vmi/vitrine/probe"
)

// Session is one guest that has been reached and, after Identify, understood.
type Session struct {
	target Target
	opts   *Options
	guest  *vitrine.Guest
	kernel *kernel.Kernel // nil before Identify; likewise below
	sys    osi.System
}

// Attach reaches the guest that target names, without stopping it and without
// looking into it.
func Attach(ctx context.Context, target string, opts *Options) (*Session, error) {
	t, err := ParseTarget(target)
	if err != nil {
		return nil, err
	}
	opts = opts.orDefault()
	opts.step("reaching the guest")
	g, err := openBackend(ctx, t, opts)
	if err != nil {
		return nil, err
	}
	return &Session{target: t, opts: opts, guest: g}, nil
}

// Identify finds out what runs in the guest. The methods below need it, but
// for Memory with physical addresses, Repair and Close.
func (s *Session) Identify(ctx context.Context) error {
	if s.sys != nil {
		return nil
	}
	s.opts.step("identifying the guest's kernel")
	// What is made here is small and stays: collecting garbage in between takes
	// as long as a step of it.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	k, err := kernel.Describe(ctx, s.guest, &kernel.Options{
		CacheDir: s.opts.CacheDir, Wait: s.opts.wait(), Progress: s.opts.Progress,
		Symbols: s.opts.Symbols, SymbolServer: s.opts.SymbolServer,
	})
	if err != nil && !s.guest.Info().Live { // what it is says why it may be
		return fmt.Errorf("identify guest %q (%s): %w", s.target.Text, s.guest.Info().Access, err)
	}
	if err != nil {
		return fmt.Errorf("identify guest %q: %w", s.target.Text, err)
	}
	s.opts.step("looking for the operating system")
	sys, err := osi.Open(ctx, s.guest, k, nil)
	if err != nil {
		return fmt.Errorf("understand guest %q: %w", s.target.Text, err)
	}
	s.kernel, s.sys = k, sys
	return nil
}

// Guest returns the guest.
func (s *Session) Guest() *vitrine.Guest { return s.guest }

// Close undoes what was done to the guest and lets go of it.
func (s *Session) Close() error { return s.guest.Close() }

// Repair takes out what a killed run left in the guest, and tells what that
// was, in words.
func (s *Session) Repair(ctx context.Context) ([]string, error) {
	found, err := s.guest.Repair(ctx)
	if err != nil {
		return found, fmt.Errorf("repair guest %q: %w", s.target.Text, err)
	}
	// What was planted in the kernel can be found only by who understands it. A
	// guest that is not understood has nothing of ours in it.
	if err := s.Identify(ctx); err != nil {
		if errors.Is(err, vitrine.ErrNotUnderstood) {
			return found, nil
		}
		return found, fmt.Errorf("repair guest %q: %w", s.target.Text, err)
	}
	implants, err := probe.Repair(ctx, s.guest, s.kernel)
	found = append(found, implants...)
	if err != nil {
		return found, fmt.Errorf("repair guest %q: %w", s.target.Text, err)
	}
	return found, nil
}

// Info returns what the guest's kernel says of itself.
func (s *Session) Info() event.Info {
	k := s.kernel
	return event.Info{
		OS: s.sys.OS(), Release: k.Release(), Banner: k.Banner(),
		Arch: k.Arch().String(), Paging: k.Paging().String(), Slide: event.Addr(k.Slide()),
		VCPUs: s.vcpus(), Facts: k.Facts(), Missing: k.Missing(),
	}
}
