package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu/internal/qmp"
	"github.com/vitrine-vmi/vitrine/qemu/internal/rsp"
)

// fakeStub is a gdbstub that answers by table, for what the real one of this
// host does not do. A request that the table lacks is answered as by a stub
// that does not know it.
type fakeStub struct {
	answers map[string]string
	greet   string // sent on connecting

	mu  sync.Mutex
	log []string // the requests
}

const fakeTarget = `l<target><reg name="rax" bitsize="64"/><reg name="rip" bitsize="64"/><reg name="eflags" bitsize="32"/></target>`

// fakeRegs is the answer of g: rax 1, rip 2, eflags 3.
const fakeRegs = "0100000000000000" + "0200000000000000" + "03000000"

func newFakeStub(more map[string]string) *fakeStub {
	s := &fakeStub{answers: map[string]string{
		"qSupported:multiprocess+;swbreak+;hwbreak+": "PacketSize=1000;qXfer:features:read+",
		"qXfer:features:read:target.xml:0,7ff":       fakeTarget,
		"?":                                          "T05thread:01;", "g": fakeRegs, "D": "OK", "Hg1": "OK", "Hg2": "OK",
	}}
	for k, v := range more {
		s.answers[k] = v
	}
	return s
}

// serve answers one client. An answer "none" is none.
func (s *fakeStub) serve(conn net.Conn) {
	conn.Write([]byte(s.greet))
	var in []byte
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		for in = append(in, buf[:n]...); ; {
			if len(in) > 0 && in[0] != '$' {
				s.note(fmt.Sprintf("%#x", in[0]))
				in = in[1:]
				continue
			}
			payload, rest, ok := strings.Cut(string(in), "#")
			if !ok || len(rest) < 2 {
				break
			}
			in = in[len(payload)+3:]
			s.note(payload[1:])
			s.mu.Lock()
			answer := s.answers[payload[1:]]
			s.mu.Unlock()
			for a := range strings.SplitSeq(answer, "|") { // the packets of one answer
				if a != "none" {
					conn.Write(append([]byte("+"), rsp.AppendPacket(nil, a)...))
				}
			}
		}
	}
}

func (s *fakeStub) note(request string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, request)
}

func (s *fakeStub) requests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, " ")
}

// fakeMonitor is a monitor of a QEMU whose guest runs.
type fakeMonitor struct {
	ended    chan struct{}
	mu       sync.Mutex
	commands []string
}

func (f *fakeMonitor) execute(_ context.Context, command string, _, reply any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commands = append(f.commands, command)
	select {
	case <-f.ended:
		return qmp.ErrClosed
	default:
	}
	return qmp.DecodeReply(command, []byte(`{"return": {"status": "running"}}`), reply)
}

func (f *fakeMonitor) done() <-chan struct{} { return f.ended }
func (f *fakeMonitor) close() error          { return nil }

// connectFake returns control over a guest of two processors behind the stub,
// which is a user's: it is not opened or closed by us.
func connectFake(t *testing.T, s *fakeStub) (*control, *fakeMonitor, error) {
	t.Helper()
	mon := &fakeMonitor{ended: make(chan struct{})}
	m := &machine{mon: mon, timeout: 20 * time.Second, cpus: []int{0, 1}, accel: "tcg"}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	do(t, err)
	ours, err := net.Dial("unix", l.Addr().String())
	do(t, err)
	theirs, err := l.Accept()
	do(t, err, l.Close())
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	go s.serve(theirs)
	c := &control{m: m, stub: &stub{}, selected: -1, regs: make([]*snapshot, 2), conn: rsp.NewConn(ours)}
	return c, mon, c.handshake()
}

func TestHandshakeWithOtherStubs(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers map[string]string
		greet   string
		detach  string
		noAck   bool
	}{
		{name: "single process", detach: "D"},
		{name: "an unsolicited stop first", greet: "$T02thread:01;#04", detach: "D"},
		{name: "no acknowledgements", answers: map[string]string{"QStartNoAckMode": "OK"}, detach: "D", noAck: true},
		{name: "numbered processes", answers: map[string]string{
			"qSupported:multiprocess+;swbreak+;hwbreak+": "PacketSize=1000;multiprocess+", "?": "T05thread:p02.01;",
		}, detach: "D;2"},
		{name: "step flags", answers: map[string]string{"qqemu.sstepbits": "ENABLE=1,NOIRQ=2,NOTIMER=4", "Qqemu.sstep=7": "OK"}, detach: "D"},
		{name: "a target description in pages", answers: map[string]string{
			"qXfer:features:read:target.xml:0,7ff":  "m" + fakeTarget[1:40],
			"qXfer:features:read:target.xml:27,7ff": "l" + fakeTarget[40:],
		}, detach: "D"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeStub(tt.answers)
			s.greet = tt.greet
			c, _, err := connectFake(t, s)
			do(t, err)
			if c.detach != tt.detach || c.conn.NoAck != tt.noAck {
				t.Errorf("detach = %s, no acknowledgements = %v", c.detach, c.conn.NoAck)
			}
			if strings.Contains(s.requests(), "0x2b") {
				t.Errorf("an acknowledgement was sent: %s", s.requests())
			}
			if _, ok := tt.answers["Qqemu.sstep=7"]; ok != strings.Contains(s.requests(), "Qqemu.sstep=7") {
				t.Errorf("step flags: %s", s.requests())
			}
		})
	}
}

func TestHandshakeRefuses(t *testing.T) {
	for name, answers := range map[string]map[string]string{
		"an arm64 guest":         {"qXfer:features:read:target.xml:0,7ff": `l<target><reg name="x0" bitsize="64"/></target>`},
		"no description":         {"qXfer:features:read:target.xml:0,7ff": "E00"},
		"a page without content": {"qXfer:features:read:target.xml:0,7ff": "m"},
		"no reason of the stop":  {"?": "OK"},
	} {
		if _, _, err := connectFake(t, newFakeStub(answers)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestRequestsGoOutTogether(t *testing.T) {
	s := newFakeStub(map[string]string{"P1=0900000000000000": "OK", "P0=0700000000000000": "OK", "vCont;c": "T05thread:02;"})
	c, _, err := connectFake(t, s)
	do(t, err)
	s.mu.Lock()
	s.log = nil
	s.mu.Unlock()
	// A register is never stored before the stub was asked for them all.
	do(t, c.SetPC(1, 9), c.Resume())
	stop, err := c.Wait(timeout(t, time.Minute))
	do(t, err)
	if stop.CPU != 1 {
		t.Errorf("stop = %+v", stop)
	}
	r, err := c.Registers(1) // selected by the stop
	do(t, err)
	r.RAX = 7
	do(t, c.SetRegisters(1, r), c.SetRegisters(1, r), c.sync())
	if got, want := s.requests(), "Hg2 g P1=0900000000000000 vCont;c g P0=0700000000000000"; got != want {
		t.Errorf("requests: %s, want %s", got, want)
	}
	if r, err := c.Registers(1); err != nil || r.RAX != 7 || r.RIP != 2 {
		t.Errorf("registers = %+v, %v", r, err)
	}
}

func TestRefusalsKeepTheConnectionInOrder(t *testing.T) {
	c, _, err := connectFake(t, newFakeStub(map[string]string{"Z1,1000,1": "E22", "Z0,2000,1": "OK"}))
	do(t, err)
	var refused *rsp.StubError
	if err := c.Insert(arch.BreakHardware, 0x1000); !errors.As(err, &refused) || refused.Reply != "E22" || !strings.Contains(err.Error(), "insert breakpoint at 0x1000") {
		t.Errorf("a fifth hardware breakpoint: %v", err)
	}
	if err := c.WriteCode(0, vitrine.Code{Addr: 0x3000, Bytes: []byte{1}}); !errors.As(err, &refused) || refused.Reply != "" {
		t.Errorf("an unknown request: %v", err)
	}
	do(t, c.Insert(arch.BreakSoftware, 0x2000))
	for _, cpu := range []int{-1, 2} {
		if _, err := c.Registers(cpu); err == nil {
			t.Errorf("registers of processor %d", cpu)
		}
		if err := c.Step(t.Context(), cpu); err == nil {
			t.Errorf("step of processor %d", cpu)
		}
	}
	if _, err := c.Wait(t.Context()); err == nil {
		t.Error("waited for a guest that is stopped")
	}
}

func TestStopsThatAreNoHit(t *testing.T) {
	for reply, want := range map[string]error{
		"W00":           vitrine.ErrGone,
		"T03thread:01;": vitrine.ErrGone,
		"T02thread:01;": vitrine.ErrPaused,
		"T17thread:01;": vitrine.ErrPaused, // an error of a disk
	} {
		c, _, err := connectFake(t, newFakeStub(map[string]string{"vCont;c": reply}))
		do(t, err, c.Resume())
		if _, err := c.Wait(timeout(t, time.Minute)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", reply, err, want)
		}
		if err := c.Insert(arch.BreakSoftware, 1); !errors.Is(err, want) {
			t.Errorf("%s: afterwards %v, want %v", reply, err, want)
		}
	}
}

// TestInterruptThatAStopHasEaten: a stop on its way swallows the request to
// stop, so that it is delivered without one.
func TestInterruptThatAStopHasEaten(t *testing.T) {
	s := newFakeStub(map[string]string{"vCont;c": "T05thread:01;"})
	c, _, err := connectFake(t, s)
	do(t, err, c.Resume(), c.Interrupt())
	for _, want := range []vitrine.StopReason{vitrine.StopBreakpoint, vitrine.StopInterrupt} {
		stop, err := c.Wait(timeout(t, time.Minute))
		if err != nil || stop.Reason != want {
			t.Fatalf("stop = %+v, %v, want %v", stop, err, want)
		}
		if want == vitrine.StopBreakpoint {
			do(t, c.Resume())
		}
	}
	if n := strings.Count(s.requests(), "vCont;c"); n != 1 {
		t.Errorf("resumed %d times", n)
	}
	do(t, c.Resume())
	if n := strings.Count(s.requests(), "vCont;c"); n > 2 {
		t.Errorf("resumed %d times", n)
	}
}

func TestGuestThatEndsWhileItIsControlled(t *testing.T) {
	c, mon, err := connectFake(t, newFakeStub(map[string]string{"vCont;c": "none"}))
	do(t, err)
	c.reached = true
	do(t, c.Resume())
	time.AfterFunc(10*time.Millisecond, func() { close(mon.ended); c.event(vitrine.LifeGone) })
	if _, err := c.Wait(timeout(t, time.Minute)); !errors.Is(err, vitrine.ErrGone) {
		t.Errorf("wait: %v", err)
	}
	c.conn.Close()
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := c.Resume(); !errors.Is(err, vitrine.ErrClosed) {
		t.Errorf("resume: %v", err)
	}
}
