package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/osi"
)

// item is an entry of a list under test.
type item struct {
	p   event.Process
	err error
}

func list(items ...item) iter.Seq2[event.Process, error] {
	return func(yield func(event.Process, error) bool) {
		for _, it := range items {
			if !yield(it.p, it.err) {
				return
			}
		}
	}
}

// testEnv returns an env whose streams are buffers.
func testEnv() (e *env, stdout, stderr *bytes.Buffer) {
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return newEnv(strings.NewReader(""), stdout, stderr), stdout, stderr
}

func proc(pid, ppid int, name string) event.Process {
	return event.Process{PID: pid, PPID: ppid, TGID: pid, Name: name, State: "S", Threads: 1}
}

func TestPsTable(t *testing.T) {
	e, out, _ := testEnv()
	evil := proc(1234, 1, "x")
	evil.Args, evil.UID, evil.StartTime = []string{"cat", "a b", "\x1b[2J"}, 1000, time.Date(2001, 2, 3, 4, 5, 6, 0, time.Local)
	kernel := proc(2, 0, "kworker/0:1")
	kernel.KThread = true
	err := e.ps(list(item{p: proc(1, 0, "init")}, item{p: kernel}, item{p: evil}), psFlags{})
	if err := errors.Join(err, e.out.flush()); err != nil {
		t.Fatal(err)
	}
	want := ` PID  PPID   UID  S  THR  START       COMMAND
   1     0     0  S    1  -           init
   2     0     0  S    1  -           [kworker/0:1]
1234     1  1000  S    1  2001-02-03  cat "a b" "\x1b[2J"
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPsTree(t *testing.T) {
	e, out, _ := testEnv()
	thread := proc(31, 1, "worker")
	thread.TGID = 30
	seq := list(
		item{p: proc(1, 0, "init")}, item{p: proc(2, 0, "kthreadd")}, item{p: proc(30, 10, "d")}, item{p: thread},
		item{p: proc(10, 1, "c")}, item{p: proc(20, 1, "b")}, item{p: proc(40, 999, "orphan")},
		item{p: proc(50, 51, "loop1")}, item{p: proc(51, 50, "loop2")}, item{p: proc(60, 60, "self")},
	)
	if err := errors.Join(e.ps(seq, psFlags{tree: true}), e.out.flush()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.TrimSpace(line[strings.Index(line, "-  ")+1:]))
	}
	want := []string{
		"init", `\_ c`, `\_ d`, `\_ worker`, `\_ b`, "kthreadd", "orphan", "self", "loop1", `\_ loop2`,
	}
	if diff := cmp.Diff(want, got[1:]); diff != "" {
		t.Errorf("(-want +got):\n%s\n%s", diff, out)
	}
	if !strings.Contains(out.String(), `      \_ worker`) {
		t.Errorf("the thread is not indented below its process:\n%s", out)
	}
}

func TestListsGoOnBehindTornEntries(t *testing.T) {
	torn := fmt.Errorf("read task 0xff11: %w", osi.ErrTorn)
	partial := &osi.PartialError{PID: 2, Part: "args", Err: osi.ErrTorn}
	for _, c := range []struct {
		name    string
		items   []item
		want    string // pids printed
		wantErr error
		notes   int
	}{
		{"whole", []item{{p: proc(1, 0, "a")}}, "1 ", nil, 0},
		{"empty", nil, "", nil, 0},
		{"torn entry", []item{{p: proc(1, 0, "a")}, {err: torn}, {p: proc(3, 0, "c")}}, "1 3 ", nil, 1},
		{"partial record", []item{{p: proc(2, 0, "b"), err: partial}}, "2 ", nil, 1},
		{"nothing but torn", []item{{err: torn}, {err: torn}}, "", osi.ErrTorn, 2},
		{"guest lost", []item{{p: proc(1, 0, "a")}, {err: vitrine.ErrGone}}, "1 ", vitrine.ErrGone, 0},
		{"interrupted", []item{{p: proc(1, 0, "a")}, {err: context.Canceled}}, "1 ", context.Canceled, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, _, stderr := testEnv()
			var got strings.Builder
			err := show(e, list(c.items...), newTable("PID"), func(p event.Process) { fmt.Fprint(&got, p.PID, " ") })
			if !errors.Is(err, c.wantErr) {
				t.Errorf("error %v, want %v", err, c.wantErr)
			}
			if got.String() != c.want {
				t.Errorf("printed %q, want %q", got.String(), c.want)
			}
			if n := strings.Count(stderr.String(), "vitrine: note:"); n != c.notes {
				t.Errorf("%d notes, want %d:\n%s", n, c.notes, stderr)
			}
		})
	}
}

func TestListAsJSON(t *testing.T) {
	e, out, _ := testEnv()
	e.json = true
	p := event.Process{PID: 7, Name: "a\x1b", Task: 0xffff888000000000}
	if err := errors.Join(e.ps(list(item{p: p}), psFlags{}), e.out.flush()); err != nil {
		t.Fatal(err)
	}
	want := `{"pid":7,"ppid":0,"tgid":0,"name":"a\u001b","exe":"","args":[],"uid":0,"gid":0,"state":"","kthread":false,` +
		`"threads":0,"start_time":"0001-01-01T00:00:00Z","asid":"0x0","task":"0xffff888000000000",` +
		`"command_line":"","user":"","session":0,"wow64":false,"handles":0,"compat":false}` + "\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClosedOutputEndsAList(t *testing.T) {
	e := newEnv(strings.NewReader(""), failingWriter{}, io.Discard)
	e.json = true
	n := 0
	endless := func(yield func(event.Process, error) bool) {
		for yield(proc(1, 0, strings.Repeat("x", 1000)), nil) {
			n++
		}
	}
	if err := e.ps(endless, psFlags{}); !errors.Is(err, errWrite) {
		t.Errorf("error %v, want %v", err, errWrite)
	}
	if n > 1000 {
		t.Errorf("went on for %d entries", n)
	}
}

var errWrite = errors.New("no space")

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errWrite }
