package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// tracerMain is a run that gets killed: it takes control of the guest at socket
// and says where it is.
func tracerMain(socket, until string) int {
	ctx := context.Background()
	g, err := Attach(ctx, socket, nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c, err := g.OpenControl(ctx)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if until != "held" {
		err = errors.Join(c.Insert(arch.BreakSoftware, bootNop), c.Resume())
	}
	if until == "running" {
		err = errors.Join(err, c.Interrupt())
		// A hit may come first; the interrupt then comes next.
		s, err2 := c.Wait(ctx)
		if s.Reason == vitrine.StopBreakpoint {
			err2 = errors.Join(err2, c.Resume())
			s, err = c.Wait(ctx)
		}
		if s.Reason != vitrine.StopInterrupt {
			err = errors.Join(err, fmt.Errorf("stop %+v", s))
		}
		err = errors.Join(err, err2, c.Remove(arch.BreakSoftware, bootNop), c.Resume())
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("there")
	for until == "hits" {
		s, err := c.Wait(ctx)
		if err == nil {
			err = errors.Join(c.SetPC(s.CPU, bootAfter), c.Resume())
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
	}
	time.Sleep(time.Minute)
	return 0
}

// killTracer runs tracerMain up to the given state and kills it there.
func killTracer(t *testing.T, e *emulator, until string) {
	t.Helper()
	cmd := startTracer(t, e.qmp, until)
	if until == "hits" {
		time.Sleep(20 * time.Millisecond)
	}
	do(t, cmd.Process.Kill())
	cmd.Wait()
	t.Cleanup(func() {
		if left, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-*", stubPrefix, cmd.Process.Pid))); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// startTracer runs tracerMain up to the given state.
func startTracer(t *testing.T, socket, until string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	do(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "VITRINE_TRACER="+until, "VITRINE_SOCKET="+socket)
	out, err := cmd.StdoutPipe()
	do(t, err, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "there\n" {
		rest, _ := io.ReadAll(out)
		t.Fatalf("the tracer said %q %q, %v", line, rest, err)
	}
	return cmd
}

func TestAnotherRunIsNotRepaired(t *testing.T) {
	dir := t.TempDir()
	e, g := startCounter(t, second(dir)...)
	cmd := startTracer(t, dir+"/second", "held")
	if _, err := g.Repair(t.Context()); !errors.Is(err, vitrine.ErrBusy) {
		t.Errorf("repair: %v", err)
	}
	if _, err := g.OpenControl(t.Context()); !errors.Is(err, vitrine.ErrBusy) {
		t.Errorf("control: %v", err)
	}
	do(t, cmd.Process.Kill())
	cmd.Wait()
	for range 6000 { // until QEMU has seen the end of the connection
		if _, err := g.Repair(t.Context()); !errors.Is(err, vitrine.ErrBusy) {
			do(t, err)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	assertClean(t, e, g)
}

// breaking is a connection whose nth write or read fails, a write half way.
type breaking struct {
	net.Conn
	left *int
}

var errBroken = errors.New("broken by the test")

func (b breaking) Read(p []byte) (int, error) {
	if *b.left--; *b.left < 0 {
		return 0, errBroken
	}
	return b.Conn.Read(p)
}

func (b breaking) Write(p []byte) (int, error) {
	if *b.left--; *b.left < 0 {
		n, _ := b.Conn.Write(p[:len(p)/2])
		return n, errBroken
	}
	return b.Conn.Write(p)
}

// TestEveryBreakLeavesTheGuestRunning breaks the connection to the stub at its
// first read or write, its second, and so on through a whole use of it.
func TestEveryBreakLeavesTheGuestRunning(t *testing.T) {
	e, g := startCounter(t)
	g.Close()
	m := e.backend(t, nil)
	view := vitrine.New(m, vitrine.Info{CPUs: 1})
	for n := 0; ; n++ {
		left := n
		m.wrap = func(c net.Conn) net.Conn { return breaking{c, &left} }
		err := func() error {
			c, err := m.OpenControl(t.Context())
			if err != nil {
				return err
			}
			use := func() error {
				if err := errors.Join(c.Insert(arch.BreakSoftware, bootNop), c.Resume()); err != nil {
					return err
				}
				for range 2 {
					if _, err := c.Wait(t.Context()); err != nil {
						return err
					}
					if err := errors.Join(c.SetPC(0, bootAfter), c.Resume()); err != nil {
						return err
					}
				}
				return nil
			}
			err = use()
			if err2 := c.Close(); err2 != nil {
				t.Errorf("break %d: close: %v", n, err2)
			}
			return err
		}()
		assertClean(t, e, view)
		withoutStub(t, m)
		if err != nil && !errors.Is(err, errBroken) {
			t.Errorf("break %d: %v", n, err)
		}
		if left > 0 {
			t.Logf("%d breaks", n)
			return
		}
	}
}

// withoutStub checks that no gdbstub is open.
func withoutStub(t *testing.T, m *machine) {
	t.Helper()
	s, err := m.findStub(t.Context())
	do(t, err)
	if s != nil {
		t.Errorf("a gdbstub is open: %+v", s)
	}
}

func TestRepairAfterKill(t *testing.T) {
	e, g := startCounter(t)
	g.Close()
	for _, tt := range []struct{ until, says string }{
		{"hits", "gdbstub that an interrupted run had opened"},
		{"held", "where an interrupted run had stopped it"},
		{"running", "gdbstub that an interrupted run had opened"},
	} {
		t.Run(tt.until, func(t *testing.T) {
			killTracer(t, e, tt.until)
			g := e.attach(t, nil)
			defer g.Close()
			found, err := g.Repair(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(found, "\n"), tt.says) {
				t.Errorf("found %q", found)
			}
			assertClean(t, e, g)
			if found, err := g.Repair(t.Context()); err != nil || len(found) > 0 {
				t.Errorf("a second repair found %q, %v", found, err)
			}
			assertClean(t, e, g)
		})
		t.Run(tt.until+", then control", func(t *testing.T) {
			killTracer(t, e, tt.until)
			g := e.attach(t, nil)
			defer g.Close()
			mustClose(t, openControl(t, g))
			assertClean(t, e, g)
		})
	}
}

func TestRepairLeavesAUsersPause(t *testing.T) {
	e, g := startCounter(t)
	g.Close()
	for _, until := range []string{"none", "running"} {
		t.Run(until, func(t *testing.T) {
			if until != "none" {
				killTracer(t, e, until)
			}
			m := e.backend(t, nil)
			do(t, m.execute(t.Context(), "stop", nil, nil))
			found, err := m.Repair(t.Context())
			if err != nil || !strings.Contains(strings.Join(found, "\n"), "left paused") {
				t.Errorf("found %q, %v", found, err)
			}
			if s, err := m.runState(t.Context()); err != nil || s != "paused" {
				t.Errorf("state = %q, %v", s, err)
			}
			withoutStub(t, m)
			do(t, m.execute(t.Context(), "cont", nil, nil), m.Close())
			g := e.attach(t, nil)
			assertClean(t, e, g)
			g.Close()
		})
	}
}

// second gives QEMU another monitor, and returns what runs commands on it.
func second(dir string) []string {
	return []string{"-qmp", "unix:" + dir + "/second,server=on,wait=off"}
}

func hmpOn(t *testing.T, socket, line string) string {
	t.Helper()
	answer, err := oneCommand(socket, fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":%q}}`, line))
	do(t, err)
	return answer
}

func TestSomebodyElseActsDuringControl(t *testing.T) {
	for _, tt := range []struct {
		command string
		want    error
		after   string
	}{
		{"stop", vitrine.ErrPaused, "paused"},
		{"system_reset", vitrine.ErrReset, "running"},
		{"quit", vitrine.ErrGone, ""},
	} {
		t.Run(tt.command, func(t *testing.T) {
			dir := t.TempDir()
			e, g := startCounter(t, second(dir)...)
			c := openControl(t, g)
			// A breakpoint that is not hit: what is to come comes from elsewhere.
			do(t, c.Insert(arch.BreakSoftware, 0x7d00), c.Resume())
			go oneCommand(dir+"/second", fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":%q}}`, tt.command))
			if _, err := c.Wait(timeout(t, time.Minute)); !errors.Is(err, tt.want) {
				t.Fatalf("wait: %v, want %v", err, tt.want)
			}
			start := time.Now()
			mustClose(t, c)
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("closing took %v", d)
			}
			if tt.after == "" {
				if _, err := g.ReadPhysical(make([]byte, 8), 0x7c00); !errors.Is(err, vitrine.ErrGone) {
					t.Errorf("read: %v", err)
				}
				return
			}
			if answer := hmpOn(t, dir+"/second", "info status"); !strings.Contains(answer, tt.after) {
				t.Errorf("status: %s", answer)
			}
			if answer := hmpOn(t, dir+"/second", "info chardev"); strings.Contains(answer, "gdb:") {
				t.Errorf("the stub is still open: %s", answer)
			}
			if tt.after == "paused" {
				hmpOn(t, dir+"/second", "cont")
			}
			assertClean(t, e, g)
		})
	}
}

func TestControlOfAPausedGuest(t *testing.T) {
	e, g := startCounter(t)
	g.Close()
	m := e.backend(t, nil)
	do(t, m.execute(t.Context(), "stop", nil, nil))
	if _, err := m.OpenControl(t.Context()); !errors.Is(err, vitrine.ErrPaused) {
		t.Errorf("got %v", err)
	}
	if s, err := m.runState(t.Context()); err != nil || s != "paused" {
		t.Errorf("state = %q, %v", s, err)
	}
	withoutStub(t, m)
}

func TestControlBesideADebugger(t *testing.T) {
	dir := t.TempDir()
	stub := filepath.Join(dir, "gdb")
	e, g := startCounter(t, "-gdb", "unix:"+stub+",server=on,wait=off")
	debugger, err := net.Dial("unix", stub)
	do(t, err)
	for range 6000 { // connecting stops the guest
		if s, err := g.Status(t.Context()); err == nil && s == vitrine.StatusPaused {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := g.OpenControl(t.Context()); !errors.Is(err, vitrine.ErrBusy) {
		t.Errorf("control: %v", err)
	}
	if _, err := g.Repair(t.Context()); !errors.Is(err, vitrine.ErrBusy) {
		t.Errorf("repair: %v", err)
	}
	if s, err := g.Status(t.Context()); err != nil || s != vitrine.StatusPaused {
		t.Errorf("the debugger's guest is %q, %v", s, err)
	}
	if _, err := debugger.Write([]byte("$D#44")); err != nil {
		t.Fatal(err)
	}
	debugger.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := debugger.Read(make([]byte, 64)); err != nil {
		t.Errorf("the debugger's connection: %v", err)
	}
	debugger.Close()
	waitCounting(t, g)

	// Nobody uses the stub now: we may, and leave it open.
	c := openControl(t, g)
	do(t, c.Insert(arch.BreakSoftware, bootNop), c.Resume())
	wait(t, c)
	mustClose(t, c)
	assertClean(t, e, g)
	debugger, err = net.Dial("unix", stub)
	do(t, err)
	debugger.Close()
}

func TestControlIsExclusive(t *testing.T) {
	e, g := startCounter(t)
	c := openControl(t, g)
	if _, err := g.OpenControl(t.Context()); !errors.Is(err, vitrine.ErrBusy) {
		t.Errorf("control: %v", err)
	}
	if _, err := g.Repair(t.Context()); !errors.Is(err, vitrine.ErrBusy) {
		t.Errorf("repair: %v", err)
	}
	mustClose(t, c)
	assertClean(t, e, g)
}

func TestOpenControlWithAContextThatEnds(t *testing.T) {
	e, g := startCounter(t)
	for _, d := range []time.Duration{0, 200 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 5 * time.Millisecond, 8 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		c, err := g.OpenControl(ctx)
		cancel()
		if err == nil {
			mustClose(t, c)
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", d, err)
		}
		assertClean(t, e, g)
	}
}

func TestFindings(t *testing.T) {
	ours, users := &stub{ours: true}, &stub{}
	for _, tt := range []struct {
		state  string
		stub   *stub
		held   bool
		says   int
		resume bool
	}{
		{"running", nil, false, 0, true},
		{"running", users, false, 0, true},
		{"running", ours, false, 2, true},
		{"debug", nil, false, 1, true},
		{"debug", ours, true, 2, true},
		{"paused", nil, false, 1, false},
		{"paused", users, false, 1, false},
		{"paused", ours, false, 2, false},
		{"paused", ours, true, 2, true},
		{"shutdown", nil, false, 0, false},
		{"inmigrate", ours, false, 2, false},
	} {
		found, resume := findings(tt.state, tt.stub, tt.held)
		if len(found) != tt.says || resume != tt.resume {
			t.Errorf("%+v: %q, %v", tt, found, resume)
		}
	}
}

func TestParseStub(t *testing.T) {
	for filename, want := range map[string]stub{
		"disconnected:unix:/tmp/vitrine-gdb-1/s,server=on": {network: "unix", addr: "/tmp/vitrine-gdb-1/s", ours: true},
		"unix:/tmp/gdb,server=on":                          {network: "unix", addr: "/tmp/gdb", connected: true},
		"unix:/tmp/gdb,server=on <-> /tmp/x":               {network: "unix", addr: "/tmp/gdb", connected: true},
		"disconnected:tcp:127.0.0.1:45117,server=on":       {network: "tcp", addr: "127.0.0.1:45117"},
		"tcp:0.0.0.0:1234,server=on <-> 127.0.0.1:4000":    {network: "tcp", addr: "0.0.0.0:1234", connected: true},
		"disconnected:tcp:::1234,server=on":                {network: "tcp", addr: "::1234"},
		"stdio":                                            {connected: true},
	} {
		if got := *parseStub(filename); got != want {
			t.Errorf("%s: %+v", filename, got)
		}
	}
}
