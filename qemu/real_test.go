package qemu

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
)

// emulator is a real QEMU that runs its firmware only, which ends up waiting
// for a disk in 32-bit or 16-bit code: enough for everything but an operating
// system.
type emulator struct {
	cmd *exec.Cmd
	qmp string
	dir string
}

// startQEMU starts a QEMU with a QMP socket and ends it with the test. Without
// QEMU installed the test is skipped, unless VITRINE_REQUIRE_QEMU is set.
func startQEMU(t testing.TB, args ...string) *emulator {
	t.Helper()
	bin, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		if os.Getenv("VITRINE_REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skip("needs qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)")
	}
	e := &emulator{dir: t.TempDir()}
	e.qmp = filepath.Join(e.dir, "qmp")
	if len(e.qmp) > 100 { // sun_path
		e.dir, err = os.MkdirTemp("", "vq")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(e.dir) })
		e.qmp = filepath.Join(e.dir, "qmp")
	}
	all := append([]string{"-display", "none", "-serial", "none", "-monitor", "none", "-nic", "none",
		"-qmp", "unix:" + e.qmp + ",server=on,wait=off"}, args...)
	var out strings.Builder
	e.cmd = exec.Command(bin, all...)
	e.cmd.Dir = e.dir
	e.cmd.Stderr = &out
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { e.cmd.Wait(); close(exited) }()
	t.Cleanup(func() { e.cmd.Process.Kill(); <-exited })
	for deadline := time.Now().Add(time.Minute); ; {
		// The socket is there a moment before QEMU listens at it.
		if conn, err := net.Dial("unix", e.qmp); err == nil {
			conn.Close()
			return e
		}
		select {
		case <-exited:
			t.Fatalf("%s: %s", strings.Join(e.cmd.Args, " "), &out)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("QEMU made no QMP socket within a minute: %s", strings.Join(e.cmd.Args, " "))
		}
	}
}

func (e *emulator) attach(t testing.TB, opts *Options) *vitrine.Guest {
	t.Helper()
	g, err := Attach(t.Context(), e.qmp, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// backend returns the machine behind a fresh attachment.
func (e *emulator) backend(t testing.TB, opts *Options) *machine {
	t.Helper()
	o := opts.orDefault()
	m := &machine{timeout: o.Timeout, allowSlow: o.AllowSlow}
	s, err := dialMonitor(t.Context(), e.qmp, o.BusyWait, m.onEvent)
	if err != nil {
		t.Fatal(err)
	}
	m.mon = s
	if _, err := m.open(t.Context(), e.qmp); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestAttachReadsWhatQEMUReads(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name   string
		args   []string
		access string
		ram    uint64
		pieces int
	}{
		{"pc anonymous", []string{"-m", "96"}, "process_vm_readv", 96 << 20, 2},
		{"q35 anonymous", []string{"-M", "q35", "-m", "96"}, "process_vm_readv", 96 << 20, 2},
		{"pc memfd 5 GiB with a hole", []string{"-m", "5G", "-object", "memory-backend-memfd,id=m0,size=5G,share=on", "-machine", "memory-backend=m0"}, "mapped", 5 << 30, 3},
		{"q35 memfd 5 GiB with a hole", []string{"-m", "5G", "-object", "memory-backend-memfd,id=m0,size=5G,share=on", "-machine", "q35,memory-backend=m0"}, "mapped", 5 << 30, 3},
		{"pc file shared", []string{"-m", "128", "-object", "memory-backend-file,id=m0,size=128M,share=on,mem-path=" + dir + "/a", "-machine", "memory-backend=m0"}, "mapped", 128 << 20, 2},
		{"pc file private", []string{"-m", "128", "-object", "memory-backend-file,id=m0,size=128M,share=off,mem-path=" + dir + "/b", "-machine", "memory-backend=m0"}, "process_vm_readv", 128 << 20, 2},
		{"two nodes", []string{"-m", "256", "-smp", "2", "-object", "memory-backend-ram,id=a,size=128M",
			"-object", "memory-backend-memfd,id=b,size=128M,share=on", "-numa", "node,memdev=a", "-numa", "node,memdev=b"}, "partly mapped, partly process_vm_readv", 256 << 20, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := startQEMU(t, tt.args...).backend(t, nil)
			if got := m.mem.access(); got != tt.access {
				t.Errorf("access = %q, want %q", got, tt.access)
			}
			var total uint64
			for _, r := range m.Regions() {
				total += r.Size
			}
			// The window of video memory at 0xa0000 hides 128 KiB of RAM.
			if want := tt.ram - 128<<10; total != want || len(m.Regions()) != tt.pieces {
				t.Errorf("regions = %+v: %d bytes, want %d in %d pieces", m.Regions(), total, want, tt.pieces)
			}
			compareWithMonitor(t, m)
		})
	}
}

// waitForShadow lets the firmware copy itself into the RAM that lies under its ROM: until then a processor sees the ROM
// there, and so does the monitor, while we read the RAM.
func waitForShadow(t *testing.T, m *machine) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var shadow [16]byte
		if _, err := m.mem.read(shadow[:], 0xf0000); err != nil {
			t.Fatal(err)
		}
		if shadow != [16]byte{} {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no firmware in RAM at 0xf0000 within 30 s")
		}
	}
}

// compareWithMonitor reads places all over guest RAM both ways, with the guest
// paused so that they cannot differ, after writing marks through our way.
func compareWithMonitor(t *testing.T, m *machine) {
	t.Helper()
	ctx := context.Background()
	waitForShadow(t, m)
	if err := m.execute(ctx, "stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	var places []uint64
	for i, r := range m.Regions() {
		start, size := uint64(r.Start), r.Size
		places = append(places, start, start+size/2&^7, start+size-16)
		for j, a := range []uint64{start + size/3&^7, start + size - 8} {
			if start < 1<<20 {
				continue // firmware lives there
			}
			mark := fmt.Appendf(nil, "mark%02d%02d", i, j)
			if err := m.mem.write(mark, a); err != nil {
				t.Fatal(err)
			}
			places = append(places, a)
		}
	}
	places = append(places, 0xf0000, 0x400)
	for _, a := range places {
		var got, want [16]byte
		n := min(16, int(m.mem.find(a).end()-a))
		if _, err := m.mem.read(got[:n], a); err != nil {
			t.Errorf("read %#x: %v", a, err)
		}
		if _, err := m.readByMonitor(want[:n], a); err != nil {
			t.Errorf("xp %#x: %v", a, err)
		}
		if got != want {
			t.Errorf("at %#x we read %x, QEMU says %x", a, got, want)
		}
	}
}

// Before firmware has run, ROM lies in front of the RAM below 1 MiB; the RAM
// above is found all the same.
func TestAttachBeforeFirmwareRuns(t *testing.T) {
	for name, args := range map[string][]string{
		"anonymous": {"-m", "64"},
		"q35":       {"-M", "q35", "-m", "64"},
		"memfd":     {"-m", "64", "-object", "memory-backend-memfd,id=m0,size=64M,share=on", "-machine", "memory-backend=m0"},
	} {
		t.Run(name, func(t *testing.T) {
			m := startQEMU(t, append(args, "-S")...).backend(t, nil)
			for _, a := range []uint64{0x1000, 0x100000, 0x200000, 64<<20 - 16} {
				want, got := fmt.Appendf(nil, "mark at %8x", a), make([]byte, 16)
				if err := m.mem.write(want, a); err != nil {
					t.Fatal(err)
				}
				if _, err := m.readByMonitor(got, a); err != nil || string(got) != string(want) {
					t.Errorf("at %#x we wrote %q, QEMU says %q, %v", a, want, got, err)
				}
			}
		})
	}
}

func TestReadingDoesNotStopTheGuest(t *testing.T) {
	e := startQEMU(t, "-m", "64", "-smp", "2")
	g := e.attach(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	events := g.WatchLife(ctx)
	var buf [4096]byte
	for range 200 {
		if _, err := g.ReadPhysical(buf[:], 0x100000); err != nil {
			t.Fatal(err)
		}
		for cpu := range g.CPUs() {
			r, err := g.Registers(ctx, cpu)
			if err != nil {
				t.Fatal(err)
			}
			if r.CR0 == 0 {
				t.Fatalf("registers of %d: CR0 is zero: %+v", cpu, r)
			}
		}
	}
	if s, err := g.Status(ctx); err != nil || s != vitrine.StatusRunning {
		t.Fatalf("status = %v, %v", s, err)
	}
	cancel()
	for ev := range events {
		t.Errorf("event %s", ev)
	}
}
