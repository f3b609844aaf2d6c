package linux_test

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/osi"
)

// plainName is what every name of the test's programs and of the kernel's
// threads looks like: anything else is a torn read.
var plainName = regexp.MustCompile(`^[0-9A-Za-z_./:()<>+-]{1,15}$`)

// testManyProcesses lists a guest of many processes (2,000 with
// VITRINE_TEST_EVENTS=100: to fork them takes a guest under TCG a minute), while
// it is quiet and while it forks, executes and exits as fast as it goes. How long
// a list takes is for bench.
func testManyProcesses(t *testing.T, vm *testvm.VM, sys osi.System) {
	kids := vmtest.Spawn(t, vm, "procs", "many", strconv.Itoa(count(2000, 200))).TIDs
	checkKids(t, sys, kids)
	vmtest.Spawn(t, vm, "load", "load")
	unmoved := vmtest.NoStops(t, vm)
	rounds, asked := 0, map[string]int{}
	for start := time.Now(); rounds < 10 || time.Since(start) < 3*time.Second; rounds++ {
		for _, p := range checkKids(t, sys, kids) {
			if !strings.HasPrefix(p.Name, "kid") {
				askAll(t, sys, p, asked)
			}
		}
	}
	unmoved()
	t.Logf("under load: %d lists, answers %v", rounds, asked)
	vmtest.Healthy(t, vm)
}

// checkKids lists all processes. Each one of kids must be there, none twice,
// and what fails must be one part of one process.
func checkKids(t *testing.T, sys osi.System, kids []int) []osi.Process {
	t.Helper()
	var all []osi.Process
	seen := map[int]bool{}
	for p, err := range sys.Processes(t.Context()) {
		var part *osi.PartialError
		if err != nil && !errors.As(err, &part) {
			t.Errorf("list: %v", err)
			continue
		}
		if seen[p.PID] {
			t.Errorf("pid %d is listed twice", p.PID)
		}
		if !plainName.MatchString(p.Name) {
			t.Errorf("pid %d has the name %q", p.PID, p.Name)
		}
		seen[p.PID] = true
		all = append(all, p)
	}
	for _, pid := range kids {
		if !seen[pid] {
			t.Errorf("pid %d is not listed", pid)
		}
	}
	return all
}

// askAll asks for everything of a process that may be ending; what can't be had
// must be said by one of the errors that are for that.
func askAll(t *testing.T, sys osi.System, p osi.Process, asked map[string]int) {
	t.Helper()
	note := func(what string, err error) {
		var fault *osi.PartialError
		switch {
		case err == nil:
			asked[what+" ok"]++
		case errors.Is(err, osi.ErrNoProcess), errors.Is(err, osi.ErrNoUserMemory):
			asked[what+" gone"]++
		case errors.Is(err, osi.ErrTorn), errors.Is(err, osi.ErrCorrupt), errors.As(err, &fault), isFault(err):
			asked[what+" torn"]++
		default:
			t.Errorf("%s of pid %d: %v", what, p.PID, err)
		}
	}
	for m, err := range sys.Mappings(t.Context(), p.Handle) {
		note("mappings", err)
		if err == nil && (m.End <= m.Start || m.End > 1<<56) {
			t.Errorf("pid %d has the mapping %+v", p.PID, m)
		}
	}
	for f, err := range sys.Files(t.Context(), p.Handle) {
		note("files", err)
		if err == nil && f.Path == "" {
			t.Errorf("pid %d has the file %+v", p.PID, f)
		}
	}
	_, err := sys.Cwd(t.Context(), p.Handle)
	note("cwd", err)
}

func isFault(err error) bool {
	var fault *vitrine.FaultError
	return errors.As(err, &fault)
}
