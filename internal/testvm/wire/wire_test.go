package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// rw reads from one buffer and writes to another.
type rw struct {
	bytes.Buffer
	out bytes.Buffer
}

func (p *rw) Write(b []byte) (int, error) { return p.out.Write(b) }

// line returns the bytes of the frames of these values.
func line(t *testing.T, values ...any) []byte {
	t.Helper()
	var p rw
	c := NewConn(&p)
	for _, v := range values {
		if err := c.Send(v); err != nil {
			t.Fatal(err)
		}
	}
	return p.out.Bytes()
}

func receiver(b []byte) *Conn {
	var p rw
	p.Buffer.Write(b)
	return NewConn(&p)
}

func TestFramesArrive(t *testing.T) {
	want := []Request{{ID: 1, Op: OpPing}, {ID: 2, Op: OpRead, Body: json.RawMessage(`{"path":"/x"}`)}}
	c := receiver(append([]byte("noise VTG VTVTG"), line(t, want[0], want[1])...))
	for _, w := range want {
		var got Request
		if err := c.Receive(&got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, got); diff != "" {
			t.Error(diff)
		}
	}
}

// Whatever byte is hit, the frame is reported as damaged or lost, never delivered wrong, and the next one arrives.
func TestDamagedFrameIsNotDelivered(t *testing.T) {
	first, second := Request{ID: 1, Op: OpPing}, Request{ID: 2, Op: OpQuiet}
	whole := line(t, first)
	for i := range whole {
		if i >= 4 && i < 8 {
			continue // a wrong length swallows what follows; the checksum says so at the end of it
		}
		b := append(bytes.Clone(whole), line(t, second, second, second)...)
		b[i] ^= 0x55
		c := receiver(b)
		var got Request
		err := c.Receive(&got)
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if errors.Is(err, ErrDamaged) {
			if err := c.Receive(&got); err != nil {
				t.Fatalf("byte %d: next frame: %v", i, err)
			}
		}
		if got.ID != 2 {
			t.Errorf("byte %d: got %+v", i, got)
		}
	}
}

func TestHugeLengthIsRefused(t *testing.T) {
	b := line(t, Request{})
	b[7] = 0xff
	if err := receiver(b).Receive(&Request{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func TestTextKeepsEveryByte(t *testing.T) {
	all := make(Text, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, want := range []Text{all, {}, nil, Text("a\"b\\c\n")} {
		j, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Text
		if err := json.Unmarshal(j, &got); err != nil {
			t.Fatalf("%s: %v", j, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", j, diff)
		}
	}
	var got Text
	if err := json.Unmarshal([]byte(`"€"`), &got); err == nil {
		t.Errorf("a character that is no byte was taken: %q", got)
	}
}

func TestProcParses(t *testing.T) {
	p := Proc{
		PID:     7,
		Stat:    Text("7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 2 0 12345 100 200 18446744073709551615 4096 8192 140000 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 9000 9100 9200 1 2 3 4 0\n"),
		Status:  Text("Name:\ta) b (c\nState:\tS (sleeping)\nPPid:\t3\nUid:\t5\t6\t7\t8\nGid:\t9\t9\t9\t9\nThreads:\t2\n"),
		Cmdline: Text("a\x00\x00b c\x00"),
		Maps:    Text("1000-2000 r-xp 00003000 08:01 42                 /lib/x y (deleted)\n7f0000-7f1000 rw-p 00000000 00:00 0 \n"),
	}
	type facts struct {
		Comm, State                   string
		PPID, UID, EUID, GID, Threads int
		KThread                       bool
		Start, StartStack, StartBrk   uint64
		Args                          []string
	}
	got := facts{p.Comm(), p.State(), p.PPID(), p.UID(), p.EUID(), p.GID(), p.Threads(), p.KThread(), p.StartTicks(), p.StartStack(), p.StartBrk(), p.Args()}
	want := facts{"a) b (c", "S", 3, 5, 6, 9, 2, false, 12345, 140000, 9200, []string{"a", "", "b c"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	maps, err := p.Mappings()
	if err != nil {
		t.Fatal(err)
	}
	wantMaps := []Mapping{
		{Start: 0x1000, End: 0x2000, Offset: 0x3000, Perms: "r-xp", Inode: 42, Name: "/lib/x y (deleted)"},
		{Start: 0x7f0000, End: 0x7f1000, Perms: "rw-p"},
	}
	if diff := cmp.Diff(wantMaps, maps); diff != "" {
		t.Error(diff)
	}
	empty := Proc{}
	if empty.Comm() != "" || empty.PPID() != -1 || empty.KThread() || empty.Args() != nil || empty.State() != "" {
		t.Error("an empty record has values")
	}
	if _, err := (&Proc{Maps: Text("nonsense\n")}).Mappings(); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("nonsense parses: %v", err)
	}
}
