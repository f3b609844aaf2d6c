package providertest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/osi"
)

func TestFaults(t *testing.T) {
	ev := func(k osi.EventKind, id string, change ...func(*osi.Event)) osi.Event {
		e := osi.Event{Kind: k, ID: id, PID: 1, Name: "x", Time: time.Unix(1, 0), ParentID: "a"}
		for _, f := range change {
			f(&e)
		}
		return e
	}
	thread := func(e *osi.Event) { e.ThreadID = "t" }
	a := ev(osi.EventExisting, "a")
	for want, events := range map[string][]osi.Event{
		"":                     {a, ev(osi.EventStart, "b"), ev(osi.EventExec, "b"), ev(osi.EventThreadStart, "b", thread), ev(osi.EventThreadExit, "b", thread), ev(osi.EventExit, "b")},
		"begins twice":         {a, ev(osi.EventStart, "a")},
		"before its begin":     {a, ev(osi.EventExec, "b")},
		"after its end":        {a, ev(osi.EventExit, "a"), ev(osi.EventExec, "a")},
		"no living parent":     {ev(osi.EventStart, "b")},
		"against its kind":     {a, ev(osi.EventThreadStart, "a")},
		"thread twice":         {a, ev(osi.EventThreadStart, "a", thread), ev(osi.EventThreadStart, "a", thread)},
		"status without":       {ev(osi.EventExisting, "a", func(e *osi.Event) { e.Signal = 9 })},
		"not tell the process": {ev(osi.EventExisting, "")},
		"not tell the thread":  {ev(osi.EventTaskChange, "a")},
		"has an error":         {ev(osi.EventExisting, "a", func(e *osi.Event) { e.Err = errors.New("torn") })},
	} {
		got := faults(events)
		if want == "" && len(got) != 0 || want != "" && (len(got) == 0 || !strings.Contains(got[len(got)-1], want)) {
			t.Errorf("faults = %q, want one with %q", got, want)
		}
	}
}
