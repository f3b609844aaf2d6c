package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// The boot sector that the control tests run. It starts the other processors
// (INIT and SIPI, through a flat FS for the APIC's registers), and then every
// processor counts for ever, the first at 0x7e00, all others at 0x7e04.
// Assembled by GNU as from:
//
//	  cli; xor %ax,%ax; mov %ax,%ds; mov $0x7e00,%si
//	  lgdtl gdtptr; mov %cr0,%eax; or $1,%al; mov %eax,%cr0
//	  mov $8,%bx; mov %bx,%fs; and $0xfe,%al; mov %eax,%cr0
//	  movb $0xea,0x8000; movw $ap,0x8001; movw $0,0x8003	# jmp 0:ap
//	  mov $0xfee00300,%edi; movl $0x000c4500,%fs:(%edi)		# INIT
//	  mov $0x100000,%ecx; 1: dec %ecx; jnz 1b
//	  movl $0x000c4608,%fs:(%edi)							# SIPI
//	  mov $0x100000,%ecx; 2: dec %ecx; jnz 2b
//	  movl $0x000c4608,%fs:(%edi); jmp loop
//	ap:
//	  cli; xor %ax,%ax; mov %ax,%ds; mov $0x7e04,%si
//	loop:
//	  nop; incl (%si); jmp loop
const (
	bootNop     = 0x7c70 // executed once a round
	bootAfter   = 0x7c71 // the incl that follows the nop
	bootJump    = 0x7c74
	bootCounter = 0x7e00 // 32 bits, of the first processor; the others' is the next
)

var bootCode = []byte{
	0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x00, 0x7e, 0x66, 0x0f, 0x01, 0x16,
	0x88, 0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xbb, 0x08,
	0x00, 0x8e, 0xe3, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0xc6, 0x06, 0x00, 0x80,
	0xea, 0xc7, 0x06, 0x01, 0x80, 0x68, 0x7c, 0xc7, 0x06, 0x03, 0x80, 0x00,
	0x00, 0x66, 0xbf, 0x00, 0x03, 0xe0, 0xfe, 0x64, 0x67, 0x66, 0xc7, 0x07,
	0x00, 0x45, 0x0c, 0x00, 0x66, 0xb9, 0x00, 0x00, 0x10, 0x00, 0x66, 0x49,
	0x75, 0xfc, 0x64, 0x67, 0x66, 0xc7, 0x07, 0x08, 0x46, 0x0c, 0x00, 0x66,
	0xb9, 0x00, 0x00, 0x10, 0x00, 0x66, 0x49, 0x75, 0xfc, 0x64, 0x67, 0x66,
	0xc7, 0x07, 0x08, 0x46, 0x0c, 0x00, 0xeb, 0x08, 0xfa, 0x31, 0xc0, 0x8e,
	0xd8, 0xbe, 0x04, 0x7e, 0x90, 0x66, 0xff, 0x04, 0xeb, 0xfa, 0x66, 0x90,
	0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00,
	0x00, 0x93, 0xcf, 0x00, 0x0f, 0x00, 0x78, 0x7c, 0x00, 0x00,
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

// counter returns the count of the first processor.
func counter(t testing.TB, g *vitrine.Guest) uint32 { return counterOf(t, g, 0) }

func counterOf(t testing.TB, g *vitrine.Guest, cpu int) uint32 {
	t.Helper()
	var b [4]byte
	if _, err := g.ReadPhysical(b[:], bootCounter+4*arch.GPA(cpu)); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b[:])
}

// still waits until the boot sector makes no progress any more: a busy host may
// let its processor come to the changed code late.
func still(t testing.TB, g *vitrine.Guest) bool {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		at := counter(t, g)
		time.Sleep(100 * time.Millisecond)
		if counter(t, g) == at {
			return true
		}
	}
	return false
}

// waitCounting waits until the boot sector makes progress.
func waitCounting(t testing.TB, g *vitrine.Guest) {
	t.Helper()
	code := make([]byte, len(bootCode))
	var last uint32
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
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

// TestTwoProcessorsMissNoHit holds what the gdbstub is believed to do: a stop
// names one processor, and another one that hit at the same time has not run
// the instruction, so that it hits again when resumed.
func TestTwoProcessorsMissNoHit(t *testing.T) {
	e, g := startCounter(t, "-smp", "2")
	c := openControl(t, g)
	do(t, c.Insert(arch.BreakSoftware, bootNop), c.Resume())
	s := wait(t, c)
	var hits, base [2]uint32
	base[0], base[1] = counterOf(t, g, 0), counterOf(t, g, 1)
	for range 600 {
		r, err := c.Registers(s.CPU)
		do(t, err)
		if r.RIP != bootNop || s.Reason != vitrine.StopBreakpoint {
			t.Fatalf("stop %+v at %#x", s, r.RIP)
		}
		// What counts is who is at the breakpoint, told by the register that
		// holds its counter's address.
		who := int(r.RSI-bootCounter) / 4
		if who != s.CPU {
			t.Fatalf("processor %d stopped, counter %d", s.CPU, who)
		}
		if n := counterOf(t, g, who) - base[who]; n != hits[who] {
			t.Fatalf("processor %d has counted %d times, and hit %d times", who, n, hits[who])
		}
		hits[who]++
		do(t, c.SetPC(s.CPU, bootAfter), c.Resume())
		s = wait(t, c)
	}
	if hits[0] < 50 || hits[1] < 50 {
		t.Errorf("hits = %v: one processor hardly ever stops", hits)
	}
	// A step moves the one processor and leaves the other alone.
	other := 1 - s.CPU
	before, err := c.Registers(other)
	do(t, err, c.Remove(arch.BreakSoftware, bootNop))
	for range 30 {
		do(t, c.Step(t.Context(), s.CPU))
	}
	after, err := c.Registers(other)
	do(t, err)
	if *before != *after {
		t.Errorf("stepping %d moved %d from %#x to %#x", s.CPU, other, before.RIP, after.RIP)
	}
	mustClose(t, c)
	assertClean(t, e, g)
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-*", stubPrefix, os.Getpid())))
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
	for i, want := range []uint64{bootAfter, bootJump, bootNop} {
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
	do(t, c.WriteCode(0, vitrine.Code{Addr: bootNop, Bytes: []byte{0xeb, 0xfe}}), c.Resume())
	if _, err := c.Wait(timeout(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait: %v", err)
	}
	if !still(t, g) {
		t.Error("still counting")
	}
	do(t, c.Interrupt())
	if s := wait(t, c); s.Reason != vitrine.StopInterrupt {
		t.Errorf("stop = %+v", s)
	}
	do(t, c.WriteCode(0, vitrine.Code{Addr: bootNop, Bytes: bootCode[bootNop-0x7c00:][:2]}))
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
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("closing took %v", d)
			}
			assertClean(t, e, g)
			if err := c.Close(); err != nil {
				t.Errorf("second close: %v", err)
			}
		})
	}
}
