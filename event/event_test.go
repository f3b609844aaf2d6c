package event

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var when = time.Date(2026, 11, 22, 7, 5, 1, 123456700, time.UTC)

// one full record of each kind, and an empty one: the JSON of both has to hold
// the same keys.
var records = []struct {
	full, empty Record
	keys        []string
}{
	{
		Guest{Name: "vm1", PID: 12, Accel: "tcg", MemoryBytes: 1 << 40, VCPUs: 2, QMP: "/run/a \"b\".qmp"},
		Guest{},
		[]string{"name", "pid", "accel", "memory_bytes", "vcpus", "qmp"},
	},
	{
		Info{
			OS: "linux", Release: "6.1", Banner: "Linux version 6.1\n", Arch: "amd64", Paging: "4-level", Slide: 0x1e000000,
			VCPUs: 2, Facts: map[string]string{"slide": "vmcoreinfo", "btf\x01": "memory"}, Missing: []string{"a", "b"},
		},
		Info{},
		[]string{"os", "release", "banner", "arch", "paging", "slide", "vcpus", "facts", "missing"},
	},
	{
		Process{
			PID: 2, PPID: 1, TGID: 2, Name: "sh", Exe: "/bin/sh", Args: []string{"sh", "-c", "a <b>"}, UID: 4294967295,
			GID: 4, State: "S", KThread: true, Threads: 3, StartTime: when, ASID: 0x1000, Task: 0xffff888000000000,
			CommandLine: `a "b"`, User: "S-1-5-18", Session: 1, WOW64: true, Handles: 9, Compat: true,
		},
		Process{},
		[]string{"pid", "ppid", "tgid", "name", "exe", "args", "uid", "gid", "state", "kthread", "threads", "start_time", "asid", "task", "command_line", "user", "session", "wow64", "handles", "compat"},
	},
	{Current{1, 2, 3, "x", 0xffffffffffffffff}, Current{}, []string{"vcpu", "pid", "tid", "name", "task"}},
	{Module{"ext4", 0xffffffffc0000000, 4096, ""}, Module{}, []string{"name", "base", "size", "file"}},
	{Library{"libc.so.6", "/lib/libc.so.6", 0x7f00, 9}, Library{}, []string{"name", "path", "base", "size"}},
	{Mapping{0x1000, 0x2000, "r-xp", 7, "[heap]"}, Mapping{}, []string{"start", "end", "perms", "offset", "name"}},
	{File{3, "/etc/passwd", -1, "O_RDONLY", "File"}, File{}, []string{"fd", "path", "pos", "flags", "type"}},
	{
		Life{when, Exit, 1, 2, 3, "n", "/e", []string{"a"}, 4, -9, "5", "6", 7},
		Life{},
		[]string{"time", "event", "pid", "ppid", "tid", "name", "exe", "args", "uid", "exit_code", "id", "parent_id", "vcpu"},
	},
	{
		Call{
			Time: when, Seq: 1<<64 - 1, VCPU: 1, PID: 2, TID: 3, PPID: 4, Comm: "cat", UID: 5, Event: Joined,
			Func: "__x64_sys_openat", Name: "openat", Args: []Arg{{"dfd", 0xffffff9c, "AT_FDCWD"}, {"filename", 0x7ffd, `"/etc/<x>"`}},
			Ret: -2, RetText: "-1 ENOENT (No such file or directory)", Errno: "ENOENT", Duration: 12345,
		},
		Call{Errno: "X"},
		[]string{"time", "seq", "vcpu", "pid", "tid", "ppid", "comm", "uid", "event", "func", "name", "args", "ret", "ret_text", "errno", "duration_ns"},
	},
	{
		Stats{Events: 5, Lost: 1, GuestStopped: 7, Planting: 3, Removing: 4, Stalls: 2, Notes: []string{"n"}, Engine: "trap", Delivery: "sync", Duration: 8, PerFunc: map[string]uint64{"b": 2, "a": 3}},
		Stats{},
		[]string{"event", "events", "lost", "guest_stopped_ns", "planting_ns", "removing_ns", "stalls", "output_wait_ns", "notes", "engine", "delivery", "duration_ns", "per_func"},
	},
	{Lost{when, 7}, Lost{}, []string{"event", "time", "count"}},
}

func TestKeysAreTheDocumentedOnesInOrder(t *testing.T) {
	for _, r := range records {
		for _, rec := range []Record{r.full, r.empty} {
			if diff := cmp.Diff(r.keys, topKeys(t, rec.AppendJSON(nil))); diff != "" {
				t.Errorf("%T keys (-want +got):\n%s", rec, diff)
			}
		}
	}
}

func topKeys(t *testing.T, b []byte) (keys []string) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	depth := 0
	for {
		tok, err := d.Token()
		if err != nil {
			t.Fatalf("bad JSON %s: %v", b, err)
		}
		switch tok := tok.(type) {
		case json.Delim:
			if tok == '{' || tok == '[' {
				depth++
			} else if depth--; depth == 0 {
				return keys
			}
			continue
		case string:
			if depth == 1 {
				keys = append(keys, tok)
				var skip json.RawMessage
				if err := d.Decode(&skip); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestEqualToEncodingJSON compares with reflection over the same tags. Stats
// and Lost are left out: their first key is not a field.
func TestEqualToEncodingJSON(t *testing.T) {
	for _, r := range records {
		switch r.full.(type) {
		case Stats, Lost:
			continue
		}
		got := string(r.full.AppendJSON([]byte("before ")))
		if want := "before " + reflected(t, r.full); got != want {
			t.Errorf("%T\n got %s\nwant %s", r.full, got, want)
		}
	}
}

// reflected encodes v by encoding/json, as if it had no methods.
func reflected(t *testing.T, v Record) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(methodless(reflect.ValueOf(v)).Interface()); err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// methodless copies a struct into one of the same fields and tags, but of an
// unnamed type; slices of structs likewise.
func methodless(v reflect.Value) reflect.Value {
	if v.Type() == reflect.TypeFor[time.Time]() {
		return v
	}
	switch {
	case v.Kind() == reflect.Struct:
		var fields []reflect.StructField
		var values []reflect.Value
		for i := range v.NumField() {
			f, x := v.Type().Field(i), methodless(v.Field(i))
			f.Type = x.Type()
			fields, values = append(fields, f), append(values, x)
		}
		out := reflect.New(reflect.StructOf(fields)).Elem()
		for i, x := range values {
			out.Field(i).Set(x)
		}
		return out
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct && v.Len() > 0:
		out := reflect.MakeSlice(reflect.SliceOf(methodless(v.Index(0)).Type()), 0, v.Len())
		for i := range v.Len() {
			out = reflect.Append(out, methodless(v.Index(i)))
		}
		return out
	}
	return v
}

func TestRoundTrip(t *testing.T) {
	for _, r := range records {
		got := reflect.New(reflect.TypeOf(r.full))
		if err := json.Unmarshal(r.full.AppendJSON(nil), got.Interface()); err != nil {
			t.Fatalf("%T: %v", r.full, err)
		}
		if diff := cmp.Diff(r.full, got.Elem().Interface()); diff != "" {
			t.Errorf("%T (-want +got):\n%s", r.full, diff)
		}
	}
}

func TestMarshalGoesThroughAppend(t *testing.T) {
	type list struct{ Calls []Call }
	got, err := json.Marshal(list{[]Call{{Comm: "a<\xff"}}})
	if err != nil {
		t.Fatal(err)
	}
	if want := `"comm":"a\u003c\\xff"`; !bytes.Contains(got, []byte(want)) || !bytes.Contains(got, []byte(`"args":[]`)) {
		t.Errorf("json.Marshal = %s, want %s and an empty args list in it", got, want)
	}
	for _, r := range records {
		got, err := json.Marshal(r.full)
		if err != nil {
			t.Fatalf("%T: %v", r.full, err)
		}
		var want bytes.Buffer
		json.HTMLEscape(&want, r.full.AppendJSON(nil))
		if string(got) != want.String() {
			t.Errorf("%T: json.Marshal = %s, want %s", r.full, got, want.Bytes())
		}
	}
	if got, _ := json.Marshal(Arg{"fd", 3, "3"}); string(got) != `{"name":"fd","value":"3","text":"3"}` {
		t.Errorf("Arg = %s", got)
	}
}

func TestTimesAreUTC(t *testing.T) {
	east := when.In(time.FixedZone("east", 3600))
	if a, b := (Life{Time: east}).AppendJSON(nil), (Life{Time: when}).AppendJSON(nil); !bytes.Equal(a, b) {
		t.Errorf("got %s, want %s", a, b)
	}
}

func TestAddr(t *testing.T) {
	for s, want := range map[string]Addr{
		"0x0": 0, "0xffffffff81000000": 0xffffffff81000000, "0xFF": 255, "0xffffffffffffffff": 1<<64 - 1,
	} {
		var got Addr
		if err := got.UnmarshalText([]byte(s)); err != nil || got != want {
			t.Errorf("parse %q = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0x", "12", "x12", "0x1ffffffffffffffff", "0x1_0", "-0x1", "0x-1"} {
		got := Addr(7)
		if err := got.UnmarshalText([]byte(s)); err == nil || got != 7 {
			t.Errorf("parse %q = %v, %v, want an error and 7 left as it was", s, got, err)
		}
	}
	if got := Addr(0xABC).String(); got != "0xabc" {
		t.Errorf("String = %q", got)
	}
}

func TestCallDoesNotAllocate(t *testing.T) {
	c := records[9].full.(Call)
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf = c.AppendJSON(buf[:0]) }); n != 0 {
		t.Errorf("AppendJSON allocates %v times", n)
	}
}

func BenchmarkCallJSON(b *testing.B) {
	c := records[9].full.(Call)
	var buf []byte
	for b.Loop() {
		buf = c.AppendJSON(buf[:0])
	}
	b.SetBytes(int64(len(buf)))
}

func TestTimesAreThoseOfRFC3339(t *testing.T) {
	zone := time.FixedZone("", 3600)
	for _, at := range []time.Time{
		{}, time.Unix(0, 0), time.Unix(1, 100), time.Unix(1795348800, 999_999_999), time.Unix(1795348800, 120_000_000).In(zone),
		time.Date(999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1000, 12, 31, 23, 59, 59, 1, time.UTC), time.Date(9999, 12, 31, 23, 30, 0, 0, time.UTC),
		time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(-1<<40, 5),
	} {
		if got, want := string(appendTime(nil, at)), at.UTC().Format(time.RFC3339Nano); got != want {
			t.Errorf("%v is written %s; want %s", at, got, want)
		}
	}
}
