package app

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Every error that a user can do something about has a hint that says what.
func TestHints(t *testing.T) {
	for err, want := range map[error]string{
		vitrine.ErrNotFound:   "vitrine list",
		vitrine.ErrPermission: "setcap cap_sys_ptrace+ep",
		vitrine.ErrBusy:       "one client at a time",
		vitrine.ErrPaused:     "left paused",
		vitrine.ErrNotBooted:  "--wait",
		vitrine.ErrGone:       "nothing of ours",
		vitrine.ErrReset:      "nothing of ours",
		osi.ErrNoProcess:      "vitrine ps",
	} {
		got := strings.Join(Hints(fmt.Errorf("wrapped: %w", err)), "\n")
		if !strings.Contains(got, want) {
			t.Errorf("hints for %q: %q, want %q in them", err, got, want)
		}
	}
	if got := Hints(errors.New("else")); got != nil {
		t.Errorf("hints for an error that we know nothing of: %q", got)
	}
	if got := Hints(nil); got != nil {
		t.Errorf("hints for no error: %q", got)
	}
}

func TestDiagnoseHost(t *testing.T) {
	seen := map[string]Check{}
	for c := range Diagnose(t.Context(), "", &Options{CacheDir: t.TempDir()}) {
		seen[c.Name] = c
		if c.Subject != "host" || c.Found == "" || c.Status == CheckMissing && c.Fix == "" {
			t.Errorf("check %+v: want a host's, with what was found and, if missing, what to do", c)
		}
	}
	for _, name := range []string{"system", "right to read", "/dev/kvm", "qemu-system-x86_64", "virsh", "cache"} {
		if seen[name].Status == "" {
			t.Errorf("no check %q", name)
		}
	}
	n := 0
	for range Diagnose(t.Context(), "", nil) {
		if n++; n == 2 {
			break // a caller may have had enough
		}
	}
}
