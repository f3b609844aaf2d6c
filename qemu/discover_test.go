package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
)

// running returns what List tells of the emulator.
func running(t *testing.T, e *emulator) Running {
	t.Helper()
	all, err := List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.PID == e.cmd.Process.Pid {
			return r
		}
	}
	t.Fatalf("process %d is not among %v", e.cmd.Process.Pid, all)
	return Running{}
}

func TestListAndAttachByName(t *testing.T) {
	name := fmt.Sprintf("vitrine-test-%d", os.Getpid())
	e := startQEMU(t, "-name", "guest="+name+",debug-threads=on", "-m", "64", "-smp", "2")
	r := running(t, e)
	if r.Name != name || r.MemoryBytes != 64<<20 || r.CPUs != 2 || r.Accel != "tcg" || r.QMP != e.qmp || r.Domain {
		t.Errorf("got %+v", r)
	}
	g, err := AttachName(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if i := g.Info(); i.Name != name || i.CPUs != 2 || i.Accel != "tcg" || !i.Live {
		t.Errorf("info = %+v", i)
	}
	g.Close()
	g, err = AttachPID(t.Context(), e.cmd.Process.Pid, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.Close()

	_, err = AttachName(t.Context(), name[:len(name)-1]+"x", nil)
	if !errors.Is(err, vitrine.ErrNotFound) || !strings.Contains(err.Error(), name) {
		t.Errorf("a name that is nearly right: %v", err)
	}
	startQEMU(t, "-name", name, "-m", "32")
	_, err = AttachName(t.Context(), name, nil)
	if err == nil || errors.Is(err, vitrine.ErrNotFound) || !strings.Contains(err.Error(), fmt.Sprintf("pid:%d or pid:", e.cmd.Process.Pid)) {
		t.Errorf("a name that two have: %v", err)
	}
}

func TestRelativeSocketCountsFromQEMUsFolder(t *testing.T) {
	e := startQEMU(t, "-m", "32", "-chardev", "socket,id=m2,path=second,server=on,wait=off", "-mon", "chardev=m2,mode=control")
	first, err := Attach(t.Context(), e.qmp, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	// The first socket is held: the second is found and used.
	g, err := AttachPID(t.Context(), e.cmd.Process.Pid, &Options{BusyWait: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
}

func TestAttachRefuses(t *testing.T) {
	e := startQEMU(t, "-m", "32")
	dead := filepath.Join(t.TempDir(), "dead")
	quiet := listenQuietly(t)
	for _, tt := range []struct {
		name string
		call func() error
		want error
		text string
	}{
		{"no such socket", func() error { _, err := Attach(t.Context(), dead, nil); return err }, vitrine.ErrNotFound, "no such socket"},
		{"no such process", func() error { _, err := AttachPID(t.Context(), 1<<22+1, nil); return err }, vitrine.ErrNotFound, "process"},
		{"negative process", func() error { _, err := AttachPID(t.Context(), -1, nil); return err }, vitrine.ErrNotFound, "process -1"},
		{"not a QEMU", func() error { _, err := AttachPID(t.Context(), os.Getpid(), nil); return err }, vitrine.ErrNotFound, "not a QEMU"},
		{"a peer that never speaks", func() error {
			_, err := Attach(t.Context(), quiet, &Options{BusyWait: 50 * time.Millisecond})
			return err
		}, vitrine.ErrBusy, "one client at a time"},
		{"a held monitor", func() error {
			g := e.attach(t, nil)
			defer g.Close()
			start := time.Now()
			_, err := Attach(t.Context(), e.qmp, &Options{BusyWait: 200 * time.Millisecond})
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("took %v", d)
			}
			return err
		}, vitrine.ErrBusy, "one client at a time"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.call()
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
	// A client that was turned away does not keep the next one out.
	e.attach(t, nil)
}

func TestAttachPIDWithoutMonitor(t *testing.T) {
	e := startQEMU(t, "-m", "32")
	r := running(t, e)
	r.sockets = nil
	if _, err := r.attach(t.Context(), nil); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "-qmp unix:") {
		t.Errorf("got %v", err)
	}
}

func TestSuggest(t *testing.T) {
	for _, tt := range []struct {
		name  string
		names []string
		want  string
	}{
		{"web", nil, "; no guest with a name runs on this host"},
		{"web", []string{"", ""}, "; no guest with a name runs on this host"},
		{"wbe1", []string{"database", "web2", "web1", "web1", "mail"}, `; did you mean "web1", "web2", "mail"?`},
		{"web", []string{"x", "prod-web-7"}, `; did you mean "prod-web-7", "x"?`},
	} {
		if got := suggest(tt.name, tt.names); got != tt.want {
			t.Errorf("suggest(%q, %q) = %s, want %s", tt.name, tt.names, got, tt.want)
		}
	}
}
