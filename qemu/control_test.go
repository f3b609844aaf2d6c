package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// The boot sector that the control tests run: it counts at 0x7e00 for ever.
const (
	bootNop     = 0x7c05 // executed once a round
	bootAfter   = 0x7c06 // what follows the nop
	bootCounter = 0x7e00 // 32 bits
)

var bootCode = []byte{
	0xfa,       // 7c00 cli
	0x31, 0xc0, // 7c01 xor ax, ax
	0x8e, 0xd8, // 7c03 mov ds, ax
	0x90,                         // 7c05 nop
	0x66, 0xff, 0x06, 0x00, 0x7e, // 7c06 inc dword [0x7e00]
	0xeb, 0xf8, // 7c0b jmp 7c05
}

// startCounter starts a QEMU that runs bootCode, and waits until it counts.
func startCounter(t testing.TB, args ...string) (*emulator, *vitrine.Guest) {
	t.Helper()
	img := make([]byte, 1440<<10)
	copy(img, bootCode)
	img[510], img[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "boot.img")
	if err := os.WriteFile(path, img, 0o600); err != nil {
		t.Fatal(err)
	}
	e := startQEMU(t, append([]string{"-m", "32", "-drive", "file=" + path + ",format=raw,if=floppy", "-boot", "a"}, args...)...)
	g := e.attach(t, nil)
	waitCounting(t, g)
	return e, g
}

func counter(t testing.TB, g *vitrine.Guest) uint32 {
	t.Helper()
	var b [4]byte
	if _, err := g.ReadPhysical(b[:], bootCounter); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b[:])
}

// waitCounting waits until the boot sector makes progress.
func waitCounting(t testing.TB, g *vitrine.Guest) {
	t.Helper()
	code := make([]byte, len(bootCode))
	var last uint32
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		g.ReadPhysical(code, 0x7c00)
		if string(code) != string(bootCode) {
			continue
		}
		now := counter(t, g)
		if last != 0 && now != last {
			return
		}
		last = now
	}
	t.Fatal("the guest does not count")
}

func openControl(t testing.TB, g *vitrine.Guest) vitrine.Control {
	t.Helper()
	c, err := g.OpenControl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mustClose(t testing.TB, c vitrine.Control) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// do fails the test at the first error.
func do(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func wait(t testing.TB, c vitrine.Control) vitrine.Stop {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := c.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// assertClean checks that nothing of ours is left and the guest runs.
func assertClean(t testing.TB, e *emulator, g *vitrine.Guest) {
	t.Helper()
	if s, err := g.Status(t.Context()); err != nil || s != vitrine.StatusRunning {
		t.Errorf("status = %q, %v, want running", s, err)
	}
	waitCounting(t, g)
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), stubPrefix+"*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestControlCountsEveryHit(t *testing.T) {
	e, g := startCounter(t)
	c := openControl(t, g)
	do(t, c.Insert(arch.BreakSoftware, bootNop))
	do(t, c.Resume())
	wait(t, c)
	start := counter(t, g)
	for hit := range uint32(500) {
		r, err := c.Registers(0)
		if err != nil {
			t.Fatal(err)
		}
		if r.RIP != bootNop || counter(t, g) != start+hit {
			t.Fatalf("hit %d: rip %#x, counter %d, want %#x and %d", hit, r.RIP, counter(t, g), bootNop, start+hit)
		}
		do(t, c.SetPC(0, bootAfter), c.Resume())
		if s := wait(t, c); s != (vitrine.Stop{CPU: 0, Reason: vitrine.StopBreakpoint}) {
			t.Fatalf("stop = %+v", s)
		}
	}
	do(t, c.Remove(arch.BreakSoftware, bootNop))
	mustClose(t, c)
	assertClean(t, e, g)
}

func TestControlStepsAndSetsRegisters(t *testing.T) {
	e, g := startCounter(t)
	c := openControl(t, g)
	do(t, c.Insert(arch.BreakHardware, bootNop), c.Resume())
	wait(t, c)
	r, err := c.Registers(0)
	do(t, err)
	r.RBX, r.R12, r.RFLAGS = 0x1122334455667788, 7, r.RFLAGS|1
	do(t, c.SetRegisters(0, r))
	do(t, c.Remove(arch.BreakHardware, bootNop))
	for i, want := range []uint64{bootAfter, 0x7c0b, bootNop} {
		do(t, c.Step(t.Context(), 0))
		r, err := c.Registers(0)
		do(t, err)
		// 16-bit code shows 32 bits of the register, which keeps all.
		if r.RIP != want || uint32(r.RBX) != 0x55667788 {
			t.Errorf("step %d: rip %#x rbx %#x, want rip %#x", i, r.RIP, r.RBX, want)
		}
	}
	mustClose(t, c)
	assertClean(t, e, g)
}

func TestControlWritesCode(t *testing.T) {
	e, g := startCounter(t)
	c := openControl(t, g)
	// jmp to itself instead of the nop: the translated code must be dropped.
	do(t, c.WriteCode(0, []byte{0xeb, 0xfe}, bootNop), c.Resume())
	if _, err := c.Wait(timeout(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait: %v", err)
	}
	at := counter(t, g)
	if n := counter(t, g); n != at {
		t.Errorf("still counting: %d, then %d", at, n)
	}
	do(t, c.Interrupt())
	if s := wait(t, c); s.Reason != vitrine.StopInterrupt {
		t.Errorf("stop = %+v", s)
	}
	do(t, c.WriteCode(0, bootCode[5:7], bootNop))
	do(t, c.SetPC(0, bootNop))
	mustClose(t, c)
	assertClean(t, e, g)
}

func timeout(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestCloseLeavesTheGuestRunning(t *testing.T) {
	e, g := startCounter(t)
	for name, prepare := range map[string]func(t *testing.T, c vitrine.Control){
		"just opened":     func(*testing.T, vitrine.Control) {},
		"with breakpoint": func(t *testing.T, c vitrine.Control) { do(t, c.Insert(arch.BreakSoftware, bootNop)) },
		"running":         func(t *testing.T, c vitrine.Control) { do(t, c.Resume()) },
		"hit on its way": func(t *testing.T, c vitrine.Control) {
			do(t, c.Insert(arch.BreakSoftware, bootNop), c.Resume())
			time.Sleep(5 * time.Millisecond)
		},
		"stopped at it": func(t *testing.T, c vitrine.Control) {
			do(t, c.Insert(arch.BreakSoftware, bootNop), c.Resume())
			wait(t, c)
		},
		"requests queued": func(t *testing.T, c vitrine.Control) {
			do(t, c.Insert(arch.BreakSoftware, bootNop), c.Resume())
			wait(t, c)
			do(t, c.SetPC(0, bootAfter))
		},
		"interrupted": func(t *testing.T, c vitrine.Control) {
			do(t, c.Resume(), c.Interrupt())
		},
		"connection lost in mid-packet": func(t *testing.T, c vitrine.Control) {
			do(t, c.Insert(arch.BreakSoftware, bootNop), c.Resume())
			wait(t, c)
			control := c.(*control)
			control.conn.Raw().Write([]byte("$Z0,12"))
			control.conn.Close()
		},
		"waited with a context that ended": func(t *testing.T, c vitrine.Control) {
			do(t, c.Resume())
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := c.Wait(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("wait: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := openControl(t, g)
			prepare(t, c)
			start := time.Now()
			mustClose(t, c)
			if d := time.Since(start); d > 900*time.Millisecond {
				t.Errorf("closing took %v", d)
			}
			assertClean(t, e, g)
			if err := c.Close(); err != nil {
				t.Errorf("second close: %v", err)
			}
		})
	}
}
