package rsp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pair returns a Conn and the stub's side of it.
func pair(t *testing.T) (*Conn, net.Conn) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return NewConn(a), b
}

// serve answers each thing that is received with the next of the script.
func serve(t *testing.T, conn net.Conn, script ...[2]string) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			buf := make([]byte, 4096)
			for _, s := range script {
				if s[0] != "" {
					n, err := conn.Read(buf)
					if err != nil || string(buf[:n]) != s[0] {
						conn.Close()
						return fmt.Errorf("received %q, %v, want %q", buf[:n], err, s[0])
					}
				}
				if _, err := conn.Write([]byte(s[1])); s[1] != "" && err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return done
}

func frame(payload string) string { return string(AppendPacket(nil, payload)) }

func TestPipelinedRequestsGetTheirRepliesInOrder(t *testing.T) {
	c, stub := pair(t)
	done := serve(t, stub, [2]string{frame("g") + frame("P10=01"), "+" + frame("0102") + "+" + frame("OK")[:3]}, [2]string{"", frame("OK")[3:]})
	c.Queue("g")
	c.Queue("P10=01")
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0102", "OK"} {
		if got, err := c.Read(); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNothingIsLostAtADeadline(t *testing.T) {
	c, stub := pair(t)
	first := make(chan struct{})
	go func() {
		stub.Write([]byte("+$T05thr"))
		<-first
		stub.Write([]byte("ead:p01.02;#07"))
	}()
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(); !IsTimeout(err) {
		t.Fatalf("got %v", err)
	}
	close(first)
	c.SetReadDeadline(time.Time{})
	p, err := c.Read()
	if err != nil || string(p) != "T05thread:p01.02;" {
		t.Fatalf("got %q, %v", p, err)
	}
}

func TestWake(t *testing.T) {
	c, _ := pair(t)
	time.AfterFunc(10*time.Millisecond, c.Wake)
	if _, err := c.Read(); !IsTimeout(err) {
		t.Errorf("got %v", err)
	}
}

func TestDamagedPackets(t *testing.T) {
	request := frame("g")
	for _, tt := range []struct {
		name   string
		script [][2]string
		want   string // "" for ErrChecksum
	}{
		{"asked for again", [][2]string{{request, "+$0102#00"}, {"-", frame("0102")}}, "0102"},
		{"a checksum that is no number", [][2]string{{request, "$0102#zz"}, {"-", frame("0102")}}, "0102"},
		{"damaged thrice", [][2]string{{request, "$a#00"}, {"-", "$b#00"}, {"-", "$c#00"}, {"-", frame("d")}}, "d"},
		{"damaged for ever", [][2]string{{request, "$a#00"}, {"-", "$b#00"}, {"-", "$c#00"}, {"-", "$d#00"}}, ""},
		{"request repeated", [][2]string{{request, "-"}, {request, "+" + frame("d")}}, "d"},
		{"request refused for ever", [][2]string{{request, "-"}, {request, "-"}, {request, "-"}, {request, "-"}}, ""},
		{"garbage between", [][2]string{{request, "xyz" + frame("d")}}, "d"},
		{"a notification", [][2]string{{request, "%Stop:x#" + frame("Stop:x")[8:] + frame("d")}}, "d"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, stub := pair(t)
			done := serve(t, stub, tt.script...)
			c.Queue("g")
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(time.Minute))
			got, err := c.Read()
			if tt.want == "" && !errors.Is(err, ErrChecksum) || tt.want != "" && (err != nil || string(got) != tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSeveralRequestsAreNotRepeated(t *testing.T) {
	c, stub := pair(t)
	serve(t, stub, [2]string{frame("g") + frame("?"), "$a#00"})
	c.Queue("g")
	c.Queue("?")
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(); !errors.Is(err, ErrChecksum) {
		t.Errorf("got %v", err)
	}
}

func TestPacketWithoutEnd(t *testing.T) {
	c, stub := pair(t)
	go func() {
		stub.Write([]byte("$"))
		for {
			if _, err := stub.Write(bytes.Repeat([]byte("0"), 4096)); err != nil {
				return
			}
		}
	}()
	if _, err := c.Read(); !errors.Is(err, ErrTooLong) {
		t.Errorf("got %v", err)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{"abc": "abc", "a}\x03b": "a#b", "0* ": "0000", "x}]": "x}"} {
		got, err := unescape([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("unescape(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"a}", "*a", "a*", "a*\x01"} {
		if got, err := unescape([]byte(in)); err == nil {
			t.Errorf("unescape(%q) = %q", in, got)
		}
	}
}

func TestParseStop(t *testing.T) {
	for in, want := range map[string]Stop{
		"T05thread:p01.02;":            {Signal: 5, Thread: Thread{1, 2}},
		"T02thread:01;":                {Signal: 2, Thread: Thread{0, 1}},
		"T05swbreak:;thread:p1.a;":     {Signal: 5, Thread: Thread{1, 10}},
		"S05":                          {Signal: 5},
		"W00":                          {Exited: true},
		"T05watch:1000;thread:p01.01;": {Signal: 5, Thread: Thread{1, 1}},
	} {
		if got, err := ParseStop([]byte(in)); err != nil || got != want {
			t.Errorf("ParseStop(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "OK", "E22", "T", "Tzz", "T05thread:x;", "T05thread:p.1;", "T05thread:-1;"} {
		if got, err := ParseStop([]byte(in)); err == nil {
			t.Errorf("ParseStop(%q) = %+v", in, got)
		}
	}
	for want, th := range map[string]Thread{"1f": {ID: 31}, "p2.a": {2, 10}} {
		if got := th.String(); got != want {
			t.Errorf("%+v = %s, want %s", th, got, want)
		}
		if back, err := ParseThread(want); err != nil || back != th {
			t.Errorf("ParseThread(%s) = %+v, %v", want, back, err)
		}
	}
}

func files(m map[string]string) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		s, ok := m[name]
		if !ok {
			return nil, &StubError{Request: "qXfer", Reply: "E00"}
		}
		return []byte(s), nil
	}
}

func TestParseTarget(t *testing.T) {
	got, err := ParseTarget(files(map[string]string{
		"target.xml": `<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><architecture>i386:x86-64</architecture><xi:include href="a.xml"/><xi:include href="b.xml"/></target>`,
		"a.xml":      `<feature name="f"><flags id="x"><field name="" start="22" end="31"/></flags><reg name="rax" bitsize="64" type="int64" regnum="0"/><reg name="rbx" bitsize="64"/><reg name="eflags" bitsize="32"/></feature>`,
		"b.xml":      `<feature name="g"><reg name="late" bitsize="32" regnum="9"/><reg name="later" bitsize="128"/><reg name="early" bitsize="16" regnum="5"/></feature>`,
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := []Register{{"rax", 0, 8, 0}, {"rbx", 1, 8, 8}, {"eflags", 2, 4, 16}, {"early", 5, 2, 20}, {"late", 9, 4, 22}, {"later", 10, 16, 26}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestParseTargetRefuses(t *testing.T) {
	for name, m := range map[string]map[string]string{
		"nothing":      {},
		"no registers": {"target.xml": "<target/>"},
		"not XML":      {"target.xml": "<target><reg"},
		"a circle":     {"target.xml": `<t><include href="target.xml"/></t>`},
		"no such file": {"target.xml": `<t><include href="x"/></t>`},
		"bits":         {"target.xml": `<t><reg name="a" bitsize="7"/></t>`},
		"huge":         {"target.xml": `<t><reg name="a" bitsize="99999999"/></t>`},
		"negative":     {"target.xml": `<t><reg name="a" bitsize="64" regnum="-1"/></t>`},
		"twice":        {"target.xml": `<t><reg name="a" bitsize="64" regnum="1"/><reg name="b" bitsize="64" regnum="1"/></t>`},
		"too large":    {"target.xml": "<t>" + strings.Repeat(" ", maxDescription) + "</t>"},
	} {
		if regs, err := ParseTarget(files(m)); err == nil {
			t.Errorf("%s: got %v", name, regs)
		}
	}
}

func FuzzCut(f *testing.F) {
	f.Add([]byte("+$T05thread:p01.01;#06"))
	f.Add([]byte("-$a}\x03*!#00"))
	f.Add([]byte("%x#78$0* #7a"))
	f.Fuzz(func(t *testing.T, in []byte) {
		for steps := 0; ; steps++ {
			tok, payload, n, err := cut(in)
			if err != nil || tok == tokenNone {
				if n != 0 || payload != nil {
					t.Fatalf("took %d bytes and %v", n, err)
				}
				return
			}
			if n < 1 || n > len(in) || steps > 1<<20 {
				t.Fatalf("took %d of %d bytes", n, len(in))
			}
			if out, err := unescape(bytes.Clone(payload)); err != nil && out != nil {
				t.Fatalf("unescape: %v and %v", out, err)
			}
			in = in[n:]
		}
	})
}

func FuzzParseStop(f *testing.F) {
	f.Add([]byte("T05thread:p01.01;"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if s, err := ParseStop(in); err != nil && s != (Stop{}) {
			t.Errorf("%+v and %v", s, err)
		}
	})
}

func FuzzParseTarget(f *testing.F) {
	f.Add(`<t><include href="a"/><reg name="a" bitsize="64"/></t>`, `<f><reg name="b" bitsize="32" regnum="7"/></f>`)
	f.Fuzz(func(t *testing.T, target, a string) {
		regs, err := ParseTarget(files(map[string]string{"target.xml": target, "a": a}))
		if (err == nil) == (regs == nil) {
			t.Errorf("%v and %v", regs, err)
		}
	})
}
