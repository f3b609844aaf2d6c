package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/probe"
)

// EventsOptions say which events of processes to tell of.
type EventsOptions struct {
	Threads    bool          // also threads, but the first one of each process
	NoExisting bool          // not the processes that are there already
	Engine     string        // "auto", "trap", "implant"
	Count      uint64        // end after this many records, 0 for no limit
	Duration   time.Duration // end when they were watched for this time, 0 for no limit
}

// errEnough ends a watch at its limit.
var errEnough = errors.New("as many as were asked for")

// Events tells of the life of the guest's processes, until ctx ends, a limit of o
// is reached or emit fails. The guest is left as it was found in any case. The
// second argument of emit says what of a record could not be read. The end of
// ctx is an error, that of the duration is not.
func (s *Session) Events(ctx context.Context, o EventsOptions, emit func(*event.Life, error) error) error {
	if err := s.mustRun(ctx); err != nil {
		return fmt.Errorf("watch guest %q: %w", s.target.Text, err)
	}
	session, err := probe.New(s.guest, s.kernel, &probe.Options{Engine: probe.Engine(o.Engine)})
	if err != nil {
		return err
	}
	defer session.Close()
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.Duration > 0 {
		end := time.AfterFunc(o.Duration, cancel)
		end.Stop() // until there is something to see
		defer end.Stop()
		session.WhenRunning(func() { end.Reset(o.Duration) })
	}
	n := uint64(0)
	err = osi.Events(watched, s.sys, session, &osi.EventsOptions{Threads: o.Threads, NoExisting: o.NoExisting}, func(e *osi.Event) error {
		r, ok := lifeRecord(e)
		if !ok {
			return nil
		}
		if err := emit(&r, e.Err); err != nil {
			return err
		}
		if n++; n == o.Count {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	return context.Cause(ctx)
}

// mustRun fails unless the guest runs: one that stands still has no events, and
// its probes could not be planted.
func (s *Session) mustRun(ctx context.Context) error {
	status, err := s.guest.Status(ctx)
	if err == nil && status != vitrine.StatusRunning {
		err = fmt.Errorf("it is %s: %w", status, vitrine.ErrPaused)
	}
	return err
}

// lifeKinds are the kinds of records for those of events.
var lifeKinds = map[osi.EventKind]event.LifeKind{
	osi.EventExisting: event.Existing, osi.EventStart: event.Start, osi.EventExec: event.Exec, osi.EventExit: event.Exit,
	osi.EventThreadStart: event.Start, osi.EventThreadExit: event.Exit,
}

// lifeRecord makes a record of an event; false for those that there is none for.
// What has the process's id for its thread id is of the process, so the end of a
// first thread before others has no record.
func lifeRecord(e *osi.Event) (event.Life, bool) {
	kind, ok := lifeKinds[e.Kind]
	if !ok || e.Kind == osi.EventThreadExit && e.TID == e.PID {
		return event.Life{}, false
	}
	r := event.Life{
		Time: e.Time, Event: kind, PID: e.PID, PPID: e.PPID, TID: e.PID, Name: e.Name, Exe: e.Exe, Args: e.Args,
		UID: e.UID, ExitCode: e.ExitCode, ID: e.ID, ParentID: e.ParentID, VCPU: e.VCPU,
	}
	if e.ThreadID != "" {
		r.TID = e.TID
	}
	if e.Signal != 0 {
		r.ExitCode = -e.Signal
	}
	return r, true
}
