package app

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/probe"
)

// CheckStatus says how a check ended.
type CheckStatus string

// The results of checks.
const (
	CheckOK      CheckStatus = "ok"
	CheckMissing CheckStatus = "missing" // something does not work without it
	CheckNote    CheckStatus = "note"    // worth knowing, nothing depends on it
)

// Check is one thing that was looked at.
type Check struct {
	Subject string      `json:"subject"` // "host" or "guest"
	Name    string      `json:"check"`
	Status  CheckStatus `json:"status"`
	Found   string      `json:"found"`
	Fix     string      `json:"fix"` // what to do, empty when there is nothing to do
}

// checker hands out checks until the caller has had enough.
type checker struct {
	subject string
	yield   func(Check) bool
	stopped bool
}

func (c *checker) report(name string, status CheckStatus, found, fix string) {
	if !c.stopped {
		c.stopped = !c.yield(Check{c.subject, name, status, found, fix})
	}
}

func (c *checker) ok(name, format string, args ...any) {
	c.report(name, CheckOK, fmt.Sprintf(format, args...), "")
}

// failure reports err with what can be done about it.
func (c *checker) failure(name string, err error) {
	c.report(name, CheckMissing, err.Error(), strings.Join(Hints(err), "; "))
}

// Diagnose checks this host and, unless target is empty, a guest. A check that
// others need and that fails ends them.
func Diagnose(ctx context.Context, target string, opts *Options) iter.Seq[Check] {
	return func(yield func(Check) bool) {
		host := &checker{subject: "host", yield: yield}
		diagnoseHost(ctx, host, opts.orDefault())
		if target != "" && !host.stopped {
			diagnoseGuest(ctx, &checker{subject: "guest", yield: yield}, target, opts)
		}
	}
}

func diagnoseGuest(ctx context.Context, c *checker, target string, opts *Options) {
	s, err := Attach(ctx, target, opts)
	if err != nil {
		c.failure("reached", err)
		return
	}
	defer s.Close()
	info := s.guest.Info()
	c.ok("reached", "%s guest of %s on %s, %d vCPUs, %d MiB", info.Arch, info.Backend, longer(info.Accel, "unknown accelerator"),
		info.CPUs, s.guest.MemoryBytes()>>20)
	diagnoseMemory(c, s)
	running := diagnoseState(ctx, c, s)
	if err := s.Identify(ctx); err != nil {
		c.failure("operating system", err)
		return
	}
	i := s.Info()
	c.ok("operating system", "%s %s, %d facts", i.OS, i.Release, len(i.Facts))
	if len(i.Missing) > 0 {
		c.report("facts", CheckNote, "not found: "+strings.Join(i.Missing, ", "), "")
	}
	if s.guest.Info().Live {
		diagnoseEngines(c, s, running)
	} else {
		c.report("tracing", CheckNote, "it is a memory image: what is in it can be read, nothing happens in it", "")
	}
}

// diagnoseMemory reads the first page of RAM and tells by which way.
func diagnoseMemory(c *checker, s *Session) {
	regions := s.guest.Regions()
	if len(regions) == 0 {
		c.report("memory", CheckMissing, "the guest has no RAM", "")
		return
	}
	if _, err := s.guest.ReadUint64Physical(regions[0].Start); err != nil {
		c.failure("memory", err)
		return
	}
	c.ok("memory", "readable: %s", s.guest.Info().Access)
}

// diagnoseState reports whether the guest runs.
func diagnoseState(ctx context.Context, c *checker, s *Session) bool {
	status, err := s.guest.Status(ctx)
	if err == nil && s.guest.Info().Live && !s.guest.CanControl() {
		c.report("state", CheckNote, "not known: there is no monitor to ask", "")
		return true
	}
	switch {
	case err != nil:
		c.failure("state", err)
	case status == vitrine.StatusRunning:
		c.ok("state", "running")
		return true
	default:
		err := fmt.Errorf("the guest is %s: %w", status, vitrine.ErrPaused)
		if !s.guest.Info().Live {
			return false
		}
		c.report("state", CheckNote, string(status)+": reading works, tracing does not", strings.Join(Hints(err), "; "))
	}
	return false
}

// diagnoseEngines tells which engines could trace. They are prepared, not
// started: that would stop the guest.
func diagnoseEngines(c *checker, s *Session, running bool) {
	if !s.guest.CanControl() {
		c.report("tracing", CheckMissing, "there is no monitor by which virtual processors could be controlled: "+
			"processes, memory and what they lead to can be read, registers and events cannot be had", "start QEMU with -qmp unix:PATH,server=on,wait=off")
		return
	}
	for _, e := range []struct {
		engine probe.Engine
		how    string
	}{
		{probe.Trap, "breakpoints of QEMU's gdbstub, which the monitor opens for the time of a trace"},
		{probe.Implant, "code in the guest's kernel that writes records; the gdbstub is open only while it is put in and taken out"},
	} {
		what := "engine " + string(e.engine)
		if !running {
			c.report(what, CheckMissing, "needs a running guest", "let it run")
			continue
		}
		session, err := probe.New(s.guest, s.kernel, &probe.Options{Engine: e.engine})
		if err == nil {
			err = session.Close()
		}
		if err != nil {
			c.failure(what, err)
		} else {
			c.ok(what, "%s", e.how)
		}
	}
}
