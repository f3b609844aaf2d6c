package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

func TestTruncatedFileIsAnErrorAndNoCrash(t *testing.T) {
	ram := filepath.Join(t.TempDir(), "ram")
	e := startQEMU(t, "-m", "64", "-object", "memory-backend-file,id=m0,size=64M,share=on,mem-path="+ram, "-machine", "memory-backend=m0")
	m := e.backend(t, nil)
	do(t, m.execute(t.Context(), "stop", nil, nil))
	do(t, os.Truncate(ram, 1<<20))
	var b [8]byte
	if _, err := m.ReadPhysical(b[:], 0x1000); err != nil {
		t.Errorf("what is left of the file: %v", err)
	}
	for _, size := range []int{8, 4096, bulk} {
		n, err := m.ReadPhysical(make([]byte, size), 32<<20)
		var pe *vitrine.PhysicalError
		if err == nil || n != 0 || !errors.As(err, &pe) {
			t.Errorf("%d bytes of what is gone: %d, %v", size, n, err)
		}
	}
	if err := m.WritePhysical(b[:], 32<<20); !errors.Is(err, errTruncated) {
		t.Errorf("write: %v", err)
	}
	// QEMU itself does not outlive this: it is killed with the test.
}

func TestReadsAtTheEdges(t *testing.T) {
	m := startQEMU(t, "-m", "64", "-object", "memory-backend-memfd,id=m0,size=64M,share=on", "-machine", "memory-backend=m0").backend(t, nil)
	var b [32]byte
	var pe *vitrine.PhysicalError
	if n, err := m.ReadPhysical(b[:], 64<<20-8); n != 8 || !errors.As(err, &pe) || pe.Addr != 64<<20 || pe.Err != nil {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if n, err := m.ReadPhysical(b[:], 1<<40); n != 0 || !errors.As(err, &pe) {
		t.Errorf("nowhere: %d, %v", n, err)
	}
	if n, err := m.ReadPhysical(b[:], ^vitrine.Region{}.Start); n != 0 || err == nil {
		t.Errorf("the last address: %d, %v", n, err)
	}
	if n, err := m.ReadPhysical(nil, 1<<40); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
	for _, a := range []uint64{64<<20 - 8, 0xfffc0000} {
		if err := m.mem.write(b[:], a); !errors.Is(err, errNotRAM) {
			t.Errorf("write at %#x: %v", a, err)
		}
	}
	if _, err := m.ReadPhysical(b[:], 64<<20-32); err != nil || b != [32]byte{} {
		t.Errorf("a refused write has written: %x, %v", b, err)
	}
	for _, tt := range []struct {
		a, n uint64
		ok   bool
	}{{0x100000, 4096, true}, {64<<20 - 8, 8, true}, {64<<20 - 8, 9, false}, {1 << 40, 1, false}, {0x100000, 1 << 63, false}, {0xfffc0000, 16, false}} {
		if s := m.mem.slice(tt.a, tt.n); (s != nil) != tt.ok || s != nil && uint64(len(s)) != tt.n {
			t.Errorf("slice(%#x, %d) has %d bytes", tt.a, tt.n, len(s))
		}
	}
	m.Close()
	if _, err := m.ReadPhysical(b[:], 0x1000); !errors.Is(err, vitrine.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	if _, err := m.Registers(t.Context(), 0); !errors.Is(err, vitrine.ErrClosed) {
		t.Errorf("registers after close: %v", err)
	}
	if m.MapPhysical(0, 1) != nil {
		t.Error("mapped after close")
	}
}

// strangerMain attaches as whoever it runs as, and tells what it got.
func strangerMain(socket, slow string) int {
	g, err := Attach(context.Background(), socket, &Options{AllowSlow: slow == "slow"})
	if err != nil {
		fmt.Println(errors.Is(err, vitrine.ErrPermission), err)
		return 0
	}
	var b [16]byte
	n, err := g.ReadPhysical(b[:], 0xffff0)
	fmt.Println(g.Info().Access, n, err, g.WritePhysical(b[:], 0x200000))
	return 0
}

// runAs runs this test binary as another user.
func runAs(t *testing.T, uid uint32, env ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vq")
	do(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	do(t, os.Chmod(dir, 0o755))
	self, err := os.Executable()
	do(t, err)
	in, err := os.Open(self)
	do(t, err)
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, "test"), os.O_WRONLY|os.O_CREATE, 0o755)
	do(t, err)
	_, err = io.Copy(out, in)
	do(t, err, out.Close())
	cmd := exec.Command(filepath.Join(dir, "test"))
	cmd.Dir = "/"
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return string(text)
}

func TestStrangersAreToldWhatToDo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	dir, err := os.MkdirTemp("", "vq")
	do(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	do(t, os.Chmod(dir, 0o755))
	socket := filepath.Join(dir, "second")
	e := startQEMU(t, "-m", "64", "-qmp", "unix:"+socket+",server=on,wait=off")
	if out := runAs(t, 65534, "VITRINE_STRANGER=fast", "VITRINE_SOCKET="+e.qmp); !strings.HasPrefix(out, "true ") || !strings.Contains(out, "not yours to open") {
		t.Errorf("a socket that is not ours: %s", out)
	}
	do(t, os.Chmod(socket, 0o777))
	out := runAs(t, 65534, "VITRINE_STRANGER=fast", "VITRINE_SOCKET="+socket)
	if !strings.HasPrefix(out, "true ") || !strings.Contains(out, "CAP_SYS_PTRACE") {
		t.Errorf("a process that is not ours: %s", out)
	}
	out = runAs(t, 65534, "VITRINE_STRANGER=slow", "VITRINE_SOCKET="+socket)
	if !strings.HasPrefix(out, "monitor (slow) 16 <nil>") || !strings.Contains(out, errors.ErrUnsupported.Error()) {
		t.Errorf("through the monitor: %s", out)
	}
}

// TestControlAsRootOfAnotherUsersGuest: QEMU makes its socket in our private
// folder, which is therefore handed to its user.
func TestControlAsRootOfAnotherUsersGuest(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	e, g := startCounter(t, "-runas", "nobody")
	c := openControl(t, g)
	do(t, c.Resume())
	mustClose(t, c)
	assertClean(t, e, g)
}

func TestStubOnTCPWhereSocketsAreForbidden(t *testing.T) {
	e, g := startCounter(t)
	g.Close()
	m := e.backend(t, nil)
	// A folder that QEMU cannot make a socket in, as AppArmor would have it.
	t.Setenv("TMPDIR", "/proc")
	s, err := m.openStub(t.Context())
	do(t, err)
	if s.network != "tcp" || !s.ours || s.connected || strings.HasSuffix(s.addr, ":0") {
		t.Fatalf("stub = %+v", s)
	}
	if left, err := m.findStub(t.Context()); err != nil || !left.ours {
		t.Errorf("not known again: %+v, %v", left, err)
	}
	do(t, m.clean(t.Context(), s, true), m.closeStub(t.Context(), s))
	withoutStub(t, m)
	if _, err := os.Stat(m.folder(s)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its mark is left: %v", err)
	}
	c, err := m.OpenControl(t.Context())
	do(t, err)
	do(t, c.Resume())
	mustClose(t, c)
	withoutStub(t, m)
	if st, err := m.Status(t.Context()); err != nil || st != vitrine.StatusRunning {
		t.Errorf("status = %q, %v", st, err)
	}
}

// TestRepairOfAStubOnTCP kills a run that held the guest by a port.
func TestRepairOfAStubOnTCP(t *testing.T) {
	e, g := startCounter(t)
	g.Close()
	t.Setenv("TMPDIR", "/proc")
	cmd := startTracer(t, e.qmp, "held")
	do(t, cmd.Process.Kill())
	cmd.Wait()
	g = e.attach(t, nil)
	var found []string
	err := vitrine.ErrBusy
	for range 6000 { // until QEMU has seen the end of the connection
		if found, err = g.Repair(t.Context()); !errors.Is(err, vitrine.ErrBusy) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	do(t, err)
	if text := strings.Join(found, "; "); !strings.Contains(text, "gdbstub that an interrupted run had opened") || !strings.Contains(text, "running again") {
		t.Errorf("found %q", text)
	}
	assertClean(t, e, g)
	if left, _ := filepath.Glob(fmt.Sprintf("/tmp/%sof-%d-*", stubPrefix, e.cmd.Process.Pid)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestControlOfAGuestElsewhere(t *testing.T) {
	m := startQEMU(t, "-m", "32").backend(t, nil)
	m.mem.proc = 0
	if _, err := m.OpenControl(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

func TestLifeEvents(t *testing.T) {
	e := startQEMU(t, "-m", "32")
	m := e.backend(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch := m.WatchLife(ctx)
	do(t, m.execute(ctx, "stop", nil, nil), m.execute(ctx, "cont", nil, nil), m.execute(ctx, "system_reset", nil, nil), m.execute(ctx, "quit", nil, nil))
	var got []vitrine.LifeEvent
	for ev := range ch {
		if got = append(got, ev); ev == vitrine.LifeGone {
			cancel()
		}
	}
	want := []vitrine.LifeEvent{vitrine.LifeStop, vitrine.LifeResume, vitrine.LifeReset, vitrine.LifeShutdown, vitrine.LifeGone}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if ev := <-m.WatchLife(t.Context()); ev != vitrine.LifeGone {
		t.Errorf("a late watcher got %v", ev)
	}
	if _, err := m.Status(t.Context()); !errors.Is(err, vitrine.ErrGone) {
		t.Errorf("status: %v", err)
	}
}

func TestSlowWatcherLosesTheOldest(t *testing.T) {
	var h hub
	ctx, cancel := context.WithCancel(t.Context())
	ch := h.watch(ctx)
	for range 3 * watchBuffer {
		h.event(vitrine.LifeReset)
	}
	h.end()
	cancel()
	n, last := 0, vitrine.LifeEvent("")
	for deadline := time.After(time.Minute); ; {
		select {
		case ev, ok := <-ch:
			if !ok {
				if n != watchBuffer || last != vitrine.LifeGone {
					t.Errorf("%d events, the last %q", n, last)
				}
				return
			}
			n, last = n+1, ev
		case <-deadline:
			t.Fatal("the channel is not closed")
		}
	}
}

// TestBreakpointBytesOfKVM: this QEMU plants no byte, so the test does it.
func TestBreakpointBytesOfKVM(t *testing.T) {
	e, g := startCounter(t)
	g.Close()
	m := e.backend(t, nil)
	m.accel = "kvm"
	oc, err := m.OpenControl(t.Context())
	do(t, err)
	c := oc.(*control)
	at := func(a uint64) byte {
		var b [1]byte
		_, err := m.ReadPhysical(b[:], arch.GPA(a))
		do(t, err)
		return b[0]
	}
	leave := func(a uint64) { do(t, m.WritePhysical([]byte{int3}, arch.GPA(a))) }
	do(t, c.Insert(arch.BreakSoftware, 0x7d00), c.Insert(arch.BreakSoftware, 0x7d10), c.Insert(arch.BreakHardware, 0x7d20))
	before := at(0x7d00)
	leave(0x7d00)
	do(t, c.Remove(arch.BreakSoftware, 0x7d00))
	if got := at(0x7d00); got != before {
		t.Errorf("after removal there is %#x, before insertion was %#x", got, before)
	}
	leave(0x7d10)
	leave(0x7d20)
	mustClose(t, c)
	if a, b := at(0x7d10), at(0x7d20); a != before || b != int3 {
		t.Errorf("after closing there is %#x and %#x", a, b)
	}
	// No processor maps the address: the guest's fault, and control goes on.
	oc, err = m.OpenControl(t.Context())
	do(t, err)
	c = oc.(*control)
	_, err = c.Registers(0)
	do(t, err)
	c.regs[0].regs.CR0 |= arch.CR0PG | arch.CR0PE
	var f *vitrine.FaultError
	if err := c.Insert(arch.BreakSoftware, 1<<40); !errors.As(err, &f) {
		t.Errorf("got %v", err)
	}
	c.regs[0] = nil
	do(t, c.Insert(arch.BreakSoftware, bootNop), c.Resume())
	wait(t, c)
	mustClose(t, c)
}
