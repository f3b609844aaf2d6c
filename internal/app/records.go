package app

import (
	"context"
	"errors"
	"iter"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Partial reports whether the record beside err holds, but for one part.
func Partial(err error) bool {
	var p *osi.PartialError
	return errors.As(err, &p)
}

// convert turns a list of osi's records into one of event's.
func convert[A, B any](seq iter.Seq2[A, error], f func(A) B) iter.Seq2[B, error] {
	return func(yield func(B, error) bool) {
		for a, err := range seq {
			if !yield(f(a), err) {
				return
			}
		}
	}
}

// failed is a list of one error.
func failed[T any](err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		yield(zero, err)
	}
}

// Processes lists the processes of the guest or, if threads is set, each
// process with its other threads behind it.
func (s *Session) Processes(ctx context.Context, threads bool) iter.Seq2[event.Process, error] {
	list := convert(s.sys.Processes(ctx), processRecord)
	if !threads {
		return list
	}
	return func(yield func(event.Process, error) bool) {
		for p, err := range list {
			if !yield(p, err) {
				return
			}
			if err != nil && !Partial(err) || p.Threads < 2 {
				continue
			}
			if !s.otherThreads(ctx, p, yield) {
				return
			}
		}
	}
}

// otherThreads yields the threads of p but the first.
func (s *Session) otherThreads(ctx context.Context, p event.Process, yield func(event.Process, error) bool) bool {
	for t, err := range s.sys.Threads(ctx, handle(p)) {
		if err == nil && t.TID == t.PID {
			continue
		}
		if !yield(threadRecord(t, p), err) {
			return false
		}
	}
	return true
}

func processRecord(p osi.Process) event.Process {
	return event.Process{
		PID: p.PID, PPID: p.PPID, TGID: p.PID, Name: longer(p.FullName, p.Name), Exe: p.Exe, Args: p.Args,
		UID: p.UID, GID: p.GID, State: p.State.String(), KThread: p.KThread, Threads: p.Threads,
		StartTime: p.StartTime, ASID: event.Addr(p.ASID), Task: event.Addr(p.Task),
		CommandLine: p.CommandLine, User: p.User, Session: p.Session, WOW64: p.WOW64, Handles: p.Handles,
		Compat: p.Compat,
	}
}

// longer returns a, or b when a is empty.
func longer(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// threadRecord is a thread as a record of ps: what belongs to its process is
// that of p.
func threadRecord(t osi.Thread, p event.Process) event.Process {
	r := p
	r.PID, r.TGID, r.PPID, r.Name = t.TID, p.PID, t.PPID, t.Name
	r.UID, r.GID, r.State, r.StartTime = t.UID, t.GID, t.State.String(), t.StartTime
	r.Task = event.Addr(t.Task)
	return r
}

// Current tells what each virtual processor runs.
func (s *Session) Current(ctx context.Context) iter.Seq2[event.Current, error] {
	return func(yield func(event.Current, error) bool) {
		for cpu := range s.vcpus() {
			t, err := s.sys.Current(ctx, cpu)
			r := event.Current{VCPU: cpu, PID: t.PID, TID: t.TID, Name: t.Name, Task: event.Addr(t.Task)}
			if !yield(r, err) {
				return
			}
		}
	}
}

// vcpus returns the number of virtual processors. Many images do not tell it:
// there the kernel does.
func (s *Session) vcpus() int {
	n := s.guest.CPUs()
	if !s.guest.Info().Live {
		n = max(n, s.kernel.CPUs())
	}
	return n
}

// Modules lists the kernel's modules.
func (s *Session) Modules(ctx context.Context) iter.Seq2[event.Module, error] {
	return convert(s.sys.Modules(ctx), func(m osi.Module) event.Module {
		return event.Module{Name: m.Name, Base: event.Addr(m.Base), Size: m.Size, File: m.File}
	})
}

// Libraries lists the shared objects of a process.
func (s *Session) Libraries(ctx context.Context, pid int) iter.Seq2[event.Library, error] {
	h, err := s.process(ctx, pid)
	if err != nil {
		return failed[event.Library](err)
	}
	return convert(s.sys.Libraries(ctx, h), func(l osi.Library) event.Library {
		return event.Library{Name: l.Name, Path: l.Path, Base: event.Addr(l.Base), Size: l.Size}
	})
}

// Mappings lists the address space of a process.
func (s *Session) Mappings(ctx context.Context, pid int) iter.Seq2[event.Mapping, error] {
	h, err := s.process(ctx, pid)
	if err != nil {
		return failed[event.Mapping](err)
	}
	return convert(s.sys.Mappings(ctx, h), func(m osi.Mapping) event.Mapping {
		return event.Mapping{
			Start: event.Addr(m.Start), End: event.Addr(m.End), Perms: m.Perms, Offset: m.Offset, Name: m.Name,
		}
	})
}

// Files lists the open files of a process.
func (s *Session) Files(ctx context.Context, pid int) iter.Seq2[event.File, error] {
	h, err := s.process(ctx, pid)
	if err != nil {
		return failed[event.File](err)
	}
	return convert(s.sys.Files(ctx, h), func(f osi.File) event.File {
		return event.File{FD: f.FD, Path: f.Path, Pos: f.Pos, Flags: f.FlagNames, Type: f.Type}
	})
}

// process returns the handle of the process with this pid.
func (s *Session) process(ctx context.Context, pid int) (osi.Handle, error) {
	p, err := s.sys.ProcessByPID(ctx, pid)
	if err != nil && !Partial(err) {
		return osi.Handle{}, err
	}
	return p.Handle, nil
}

func handle(p event.Process) osi.Handle {
	return osi.Handle{Task: arch.GVA(p.Task), ASID: arch.GPA(p.ASID)}
}
