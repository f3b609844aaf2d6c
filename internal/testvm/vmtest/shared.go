package vmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
)

// shared holds the guests that the tests of this package have in common, the one in use first, then those used before,
// which are paused.
var shared struct {
	sync.Mutex
	guests []*sharedGuest
}

type sharedGuest struct {
	key     string
	vm      *testvm.VM
	suspect bool // a test that used it has failed, and may have left it in any state
}

// sharedGuests is how many a package keeps: a paused one of 512 MiB takes half of that of the host's memory, and no
// processor time.
const sharedGuests = 5

// Shared returns a running guest with these options, booted on first use and used by all tests of the package that ask
// for the same options. One guest runs at a time: asking for another pauses it until it is asked for again. Workloads are
// ended before it is handed out. One whose kernel has died, that does not answer or that a failed test has used is ended,
// and a new one booted. The package's TestMain must be Main.
func Shared(t testing.TB, o *testvm.Options) *testvm.VM {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := sharedAgain(ctx, o.Key())
	if err != nil {
		t.Fatalf("get shared guest: %v", err)
	}
	if s == nil {
		s = &sharedGuest{key: o.Key(), vm: begin(t, o, bootPatiently(t))}
		shared.guests = slices.Insert(shared.guests, 0, s)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s (%s):\n%s", s.vm.Name, s.vm.Dir, s.vm.Console())
			shared.Lock()
			defer shared.Unlock()
			s.suspect = true
		}
	})
	return s.vm
}

// sharedAgain makes the guest with this key the first of all, or makes place for it and returns nil.
func sharedAgain(ctx context.Context, key string) (*sharedGuest, error) {
	if len(shared.guests) > 0 && shared.guests[0].key != key {
		if err := park(ctx); err != nil {
			return nil, err
		}
	}
	i := slices.IndexFunc(shared.guests, func(s *sharedGuest) bool { return s.key == key })
	if i < 0 {
		return nil, dropFrom(sharedGuests - 1)
	}
	s := shared.guests[i]
	shared.guests = slices.Insert(slices.Delete(shared.guests, i, i+1), 0, s)
	if i > 0 {
		if err := s.vm.Cont(ctx); err != nil {
			return nil, errors.Join(err, drop(0))
		}
	}
	if s.suspect || !usable(ctx, s.vm) {
		return nil, drop(0)
	}
	return s, nil
}

// park pauses the guest in use. One that a test has left paused or ended is of no more use.
func park(ctx context.Context) error {
	vm := shared.guests[0].vm
	if running, err := vm.Running(ctx); err != nil || !running {
		return drop(0)
	}
	if err := vm.Stop(ctx); err != nil {
		return errors.Join(err, drop(0))
	}
	return nil
}

// drop ends a guest.
func drop(i int) error {
	vm := shared.guests[i].vm
	shared.guests = slices.Delete(shared.guests, i, i+1)
	return vm.Close()
}

// dropFrom ends all guests but the first n.
func dropFrom(n int) error {
	var all error
	for len(shared.guests) > n {
		all = errors.Join(all, drop(len(shared.guests)-1))
	}
	return all
}

// deaths are texts by which a Linux kernel says on its console that part of it is dead.
var deaths = []string{"Kernel panic", "BUG:", "Oops", "general protection fault, ", "unable to handle"}

// usable reports whether a guest that tests have used serves for another: it runs, its kernel has had no trouble, its
// user space answers and its workloads could be ended.
func usable(ctx context.Context, vm *testvm.VM) bool {
	console := vm.Console() // first: a dead kernel lets Ping wait for nothing
	if slices.ContainsFunc(deaths, func(d string) bool { return strings.Contains(console, d) }) {
		return false
	}
	running, err := vm.Running(ctx)
	return err == nil && running && vm.Ping(ctx) == nil && vm.Quiet(ctx) == nil
}

// Main runs a package's tests and ends the shared guests: func TestMain(m *testing.M) { vmtest.Main(m) }.
func Main(m *testing.M) {
	code := m.Run()
	shared.Lock()
	if err := dropFrom(0); err != nil {
		fmt.Fprintln(os.Stderr, "end shared guests:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}
