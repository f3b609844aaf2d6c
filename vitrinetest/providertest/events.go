package providertest

import (
	"fmt"
	"testing"

	"github.com/vitrine-vmi/vitrine/osi"
)

// Events checks what must hold of the events of any provider, whatever the
// guest does, in the order in which osi.Events has told them.
func Events(t testing.TB, events []osi.Event) {
	t.Helper()
	for i, fault := range faults(events) {
		if i == 10 {
			t.Errorf("and more of that kind")
			return
		}
		t.Error(fault)
	}
}

// The stages of a life.
const (
	alive = iota + 1
	over
)

// faults goes through the lives: each process begins once and before all else of
// it, ends once and after all else, and is made by one that is there.
func faults(events []osi.Event) (out []string) {
	stage := map[string]int{}
	threads := map[string]bool{}
	for i := range events {
		e := &events[i]
		if fault := faultOf(e, stage, threads); fault != "" {
			out = append(out, fmt.Sprintf("event %d, %s: %+v", i, fault, *e))
		}
		switch e.Kind {
		case osi.EventExisting, osi.EventStart:
			stage[e.ID] = alive
		case osi.EventExit:
			stage[e.ID] = over
		case osi.EventThreadStart:
			threads[e.ThreadID] = true
		}
	}
	return out
}

func faultOf(e *osi.Event, stage map[string]int, threads map[string]bool) string {
	begins := e.Kind == osi.EventExisting || e.Kind == osi.EventStart
	switch {
	case e.Err != nil:
		return "has an error"
	case e.Kind == osi.EventTaskChange:
		if e.ThreadID == "" || e.Task == 0 {
			return "does not tell the thread"
		}
	case e.ID == "" || e.PID == 0 || e.Name == "" || e.Time.IsZero():
		return "does not tell the process"
	case begins && stage[e.ID] != 0:
		return "begins twice"
	case !begins && stage[e.ID] != alive:
		return "comes before its begin or after its end"
	case e.Kind == osi.EventStart && stage[e.ParentID] != alive:
		return "has no living parent"
	case (e.Kind == osi.EventThreadStart || e.Kind == osi.EventThreadExit) != (e.ThreadID != ""):
		return "tells of a thread, or does not, against its kind"
	case e.Kind == osi.EventThreadStart && threads[e.ThreadID]:
		return "starts a thread twice"
	case e.Kind != osi.EventExit && e.Kind != osi.EventThreadExit && (e.ExitCode != 0 || e.Signal != 0 || e.Core):
		return "has a status without an end"
	}
	return ""
}
