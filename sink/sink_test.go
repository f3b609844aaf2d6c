package sink

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine/event"
)

var when = time.Date(2026, 11, 22, 7, 5, 1, 123456000, time.UTC)

func openat() *event.Call {
	return &event.Call{
		Time: when, TID: 412, PID: 412, Comm: "cat", Event: event.Joined, Func: "__x64_sys_openat", Name: "openat",
		Args: []event.Arg{{Name: "dfd", Text: "AT_FDCWD"}, {Name: "filename", Text: `"/etc/passwd"`}, {Name: "flags", Text: "O_RDONLY|O_CLOEXEC"}},
		Ret:  3, RetText: "3", Duration: 123 * time.Microsecond,
	}
}

func TestText(t *testing.T) {
	call := func(change func(*event.Call)) event.Record {
		c := openat()
		change(c)
		return c
	}
	for _, tc := range []struct {
		name string
		r    event.Record
		opts *TextOptions
		want string
	}{
		{"call", openat(), nil, `    412 cat             openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3 <0.000123>`},
		{"value", *openat(), nil, `    412 cat             openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3 <0.000123>`},
		{"time", openat(), &TextOptions{Time: true, Zone: time.FixedZone("", 3600)}, `08:05:01.123456     412 cat             openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3 <0.000123>`},
		{"error", call(func(c *event.Call) {
			c.Ret, c.Errno, c.RetText, c.Duration = -2, "ENOENT", "-1 ENOENT (No such file or directory)", 0
		}), nil,
			`    412 cat             openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or directory)`},
		{"exit", call(func(c *event.Call) {
			c.Event, c.Name, c.Args = event.Enter, "exit_group", []event.Arg{{Name: "error_code", Text: "0"}}
		}), nil, `    412 cat             exit_group(0) = ?`},
		{"enter", call(func(c *event.Call) { c.Event = event.Enter }), nil, `    412 cat             openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC <unfinished ...>`},
		{"return", call(func(c *event.Call) { c.Event = event.Return }), nil, `    412 cat             <... openat resumed>) = 3 <0.000123>`},
		{"no text", call(func(c *event.Call) { c.RetText, c.Args = "", nil }), nil, `    412 cat             openat() = 3 <0.000123>`},
		{"function", call(func(c *event.Call) { c.Name, c.Func, c.Args = "", "do_exit", nil }), nil, `    412 cat             do_exit() = 3 <0.000123>`},
		{"long", call(func(c *event.Call) { c.TID, c.Comm, c.Args = 4194304, "sixteen-or-more!", nil }), nil, `4194304 sixteen-or-more! openat() = 3 <0.000123>`},
		{"hostile comm", call(func(c *event.Call) { c.Comm, c.Args = "\x1b[2J x\"", nil }), nil, `    412 "\x1b[2J x\""   openat() = 3 <0.000123>`},
		{"empty comm", call(func(c *event.Call) { c.Comm, c.Args = "", nil }), nil, `    412 ""              openat() = 3 <0.000123>`},
		{"hostile text", call(func(c *event.Call) {
			c.Args, c.RetText, c.Name = []event.Arg{{Text: "\"\x1b]0;x\a\xff\u202e\""}}, "3<\r>", "a\nb"
		}), nil,
			`    412 cat             a\nb("\x1b]0;x\a\xff\u202e") = 3<\r> <0.000123>`},
		{"color", call(func(c *event.Call) { c.Errno, c.RetText, c.Args, c.Duration = "EIO", "-1 EIO (I/O error)", nil, 0 }), &TextOptions{Color: true},
			"\x1b[2m    412 \x1b[0mcat             \x1b[1mopenat\x1b[0m() = \x1b[31m-1 EIO (I/O error)\x1b[0m"},
		{"start", event.Life{Event: event.Start, PID: 7, TID: 7, PPID: 1, Name: "sh"}, nil, `      7 sh              start    by 1`},
		{"thread", &event.Life{Event: event.Start, PID: 7, TID: 8, PPID: 1, Name: "sh"}, nil, `      8 sh              start    by 1, thread of 7`},
		{"exec", event.Life{Event: event.Exec, PID: 7, TID: 7, Name: "ls", Exe: "/bin/a b", Args: []string{"ls", "-l\n"}}, nil, `      7 ls              exec     "/bin/a b" ["ls", "-l\n"]`},
		{"existing", event.Life{Event: event.Existing, PID: 1, TID: 1, Name: "init", Exe: "/init", Args: []string{"/init"}}, nil, `      1 init            existing /init ["/init"]`},
		{"exit", event.Life{Event: event.Exit, PID: 7, TID: 7, Name: "ls", ExitCode: 2}, nil, `      7 ls              exit     with 2`},
		{"killed", event.Life{Event: event.Exit, PID: 7, TID: 7, Name: "ls", ExitCode: -9}, nil, `      7 ls              exit     by signal 9`},
		{"lost", event.Lost{Count: 12}, nil, `... 12 records lost: the output was too slow ...`},
		{"stats", event.Stats{Events: 1500, Lost: 2, GuestStopped: 1234567 * time.Nanosecond, Engine: "trap", Delivery: "sync", Duration: 3 * time.Second,
			PerFunc: map[string]uint64{"openat": 500, "close": 500, "read": 1000}}, nil,
			"1500 events in 3s (500/s), 2 lost, guest stopped for 1.235ms, engine trap, delivery sync\n      1000  read\n       500  close\n       500  openat"},
		{"stats of an implant", event.Stats{Events: 1, GuestStopped: 30 * time.Millisecond, Planting: 20 * time.Millisecond, Removing: 10 * time.Millisecond,
			Stalls: 2, Notes: []string{"a\nb"}, Engine: "implant", Delivery: "stream", Duration: time.Second}, nil,
			"1 events in 1s (1/s), 0 lost, guest stopped for 30ms (20ms to plant, 10ms to take out), 2 stalls, engine implant, delivery stream\nnote: a\\nb"},
		{"other", event.Module{Name: "ext4", Base: 1}, nil, `{"name":"ext4","base":"0x1","size":0,"file":""}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b bytes.Buffer
			s := NewText(&b, tc.opts)
			if err := errors.Join(s.Write(tc.r), s.Close()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want+"\n", b.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestJSONLines(t *testing.T) {
	var b bytes.Buffer
	s := NewJSON(&b)
	for _, r := range []event.Record{event.Module{Name: "a\nb"}, event.Lost{Time: when, Count: 1}} {
		if err := s.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if b.Len() != 0 {
		t.Errorf("%q was written before Flush", b.String())
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"a\nb","base":"0x0","size":0,"file":""}` + "\n" + `{"event":"lost","time":"2026-11-22T07:05:01.123456Z","count":1}` + "\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

// pieces notes the size of each write.
type pieces struct {
	sizes []int
	err   error
}

func (p *pieces) Write(b []byte) (int, error) {
	p.sizes = append(p.sizes, len(b))
	return len(b), p.err
}

func TestWritesInLargePieces(t *testing.T) {
	p := &pieces{}
	s := NewJSON(p)
	r := event.Module{Name: strings.Repeat("x", 1000)}
	for range 100 {
		if err := s.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if len(p.sizes) != 2 || p.sizes[0] < bufferSize {
		t.Errorf("pieces of %v bytes, want two, the first over %d", p.sizes, bufferSize)
	}
}

func TestErrorsStay(t *testing.T) {
	boom := errors.New("boom")
	p := &pieces{err: boom}
	for _, s := range []Sink{NewJSON(p), NewText(p, nil)} {
		p.sizes = nil
		if err := s.Write(event.Module{}); err != nil {
			t.Errorf("%T: Write before anything was written: %v", s, err)
		}
		for range 2 {
			if err := s.Flush(); !errors.Is(err, boom) {
				t.Errorf("%T: Flush = %v, want %v", s, err, boom)
			}
		}
		if err := s.Write(event.Module{}); !errors.Is(err, boom) {
			t.Errorf("%T: Write = %v, want %v", s, err, boom)
		}
		if len(p.sizes) != 1 {
			t.Errorf("%T: %d writes after an error", s, len(p.sizes)-1)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("cat", `"/etc/passwd"`, "3")
	f.Add("\x1b[2J", "\xff\u202e\u009b", "\r\n")
	f.Fuzz(func(t *testing.T, comm, arg, ret string) {
		var b bytes.Buffer
		s := NewText(&b, nil)
		for _, r := range []event.Record{
			&event.Call{Comm: comm, Name: arg, Args: []event.Arg{{Text: arg}}, RetText: ret},
			&event.Life{Event: event.Exec, Name: comm, Exe: arg, Args: []string{ret}},
			&event.Stats{Engine: comm, Delivery: ret, PerFunc: map[string]uint64{arg: 1}},
			&event.Process{Name: comm, Exe: arg, Args: []string{ret}},
		} {
			if err := s.Write(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		out := b.String()
		if n := strings.Count(out, "\n"); n != 5 { // the statistics have two lines
			t.Errorf("%d lines: %q", n, out)
		}
		for _, r := range out {
			if r != '\n' && (r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x202e) {
				t.Errorf("%U in %q", r, out)
			}
		}
	})
}

func BenchmarkTextCall(b *testing.B) {
	s, c := NewText(&pieces{}, nil), openat()
	b.ReportAllocs()
	for b.Loop() {
		s.b = s.b[:0]
		if err := s.Write(c); err != nil {
			b.Fatal(err)
		}
	}
}
