package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// shared is the guest of all benchmarks.
var shared struct {
	sync.Once
	e   *env
	err error
}

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == runMeasured {
		os.Exit(childMeasured(os.Args[2:]))
	}
	defer func() {
		if shared.e != nil {
			if err := shared.e.close(); err != nil {
				fmt.Println("end guest:", err)
			}
		}
	}()
	m.Run()
}

func guest(b *testing.B) *env {
	b.Helper()
	if testing.Short() {
		vmtest.Skip(b, "it boots a guest", "without -short")
	}
	shared.Do(func() {
		shared.e, shared.err = boot(context.Background(), &options{smoke: true, kernel: "6.1-cloud", cpu: "max"}, b.Output())
	})
	if shared.err != nil {
		b.Fatal(shared.err)
	}
	return shared.e
}

func BenchmarkIdentifyCold(b *testing.B) { benchmarkDescribe(b, nil) }

func BenchmarkIdentifyWarm(b *testing.B) {
	opts := &kernel.Options{CacheDir: b.TempDir()}
	if _, err := kernel.Describe(b.Context(), guest(b).g, opts); err != nil {
		b.Fatal(err)
	}
	benchmarkDescribe(b, opts)
}

func benchmarkDescribe(b *testing.B, opts *kernel.Options) {
	e := guest(b)
	for b.Loop() {
		if _, err := kernel.Describe(b.Context(), e.g, opts); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRandomReads(b *testing.B) {
	e := guest(b)
	as := e.k.AddressSpace()
	image, err := e.image()
	if err != nil {
		b.Fatal(err)
	}
	direct, err := e.directMap()
	if err != nil {
		b.Fatal(err)
	}
	for name, w := range map[string]window{"text": image, "ram": direct} {
		b.Run(name, func(b *testing.B) {
			at, err := w.addresses(as, 1<<16)
			if err != nil {
				b.Fatal(err)
			}
			var p [8]byte
			for i := 0; b.Loop(); i++ {
				if _, err := as.Read(p[:], at[i%len(at)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSequentialReads(b *testing.B) {
	e := guest(b)
	w, err := e.directMap()
	if err != nil {
		b.Fatal(err)
	}
	as := e.k.AddressSpace()
	at := w.pieces(as)
	buf := make([]byte, piece)
	b.SetBytes(piece)
	for i := 0; b.Loop(); i++ {
		if _, err := as.Read(buf, at[i%len(at)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProcesses(b *testing.B) {
	e := guest(b)
	err := e.workload(b.Context(), "procs", []string{"100"}, func() error {
		n := 0
		for b.Loop() {
			var err error
			if n, err = listAll(b.Context(), e.sys); err != nil {
				return err
			}
		}
		b.ReportMetric(float64(n), "processes")
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// TestRun measures the cheapest loop under every tracer.
func TestRun(t *testing.T) {
	if testing.Short() {
		vmtest.Skip(t, "it boots a guest", "without -short")
	}
	var out bytes.Buffer
	if err := run(t.Context(), &out, t.Output(), &options{smoke: true, json: true, only: "getppid", kernel: "6.1-cloud", cpu: "max"}); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	got := map[string]comparison{}
	for line := range bytes.Lines(out.Bytes()) {
		var c comparison
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		got[c.Tracer] = c
	}
	for _, tr := range append([]tracer{{name: "untraced"}}, tracers...) {
		c, ok := got[tr.name]
		if !ok || c.Loop != "getppid" || c.Rate <= 0 || c.Slower <= 0 || c.Note != "" && tr.records != "calls" {
			t.Errorf("%s: %+v", tr.name, c)
		}
		if wanted := tr.records != "" && tr.only == ""; wanted != (c.Records > 0) {
			t.Errorf("%s: %v records/s", tr.name, c.Records)
		}
	}
	if strace, implant := got["strace in the guest"], got["implant, stream"]; strace.Slower < implant.Slower {
		t.Errorf("strace slows the guest down %v times, an implant %v times", strace.Slower, implant.Slower)
	}
}

// What a command took is its own: not the memory of who has it measured.
func TestMeasured(t *testing.T) {
	ours := make([]byte, 256<<20)
	for i := 0; i < len(ours); i += 4096 {
		ours[i] = 1
	}
	c := exec.Command("/bin/sh", "-c", "cat; sleep 0.05")
	c.Stdin = strings.NewReader("in and out")
	var out strings.Builder
	c.Stdout = &out
	u, err := measured(c)
	runtime.KeepAlive(ours)
	if err != nil || out.String() != "in and out" {
		t.Fatalf("printed %q, %v", out.String(), err)
	}
	if u.Took < 50*time.Millisecond || u.RSS < 64<<10 || u.RSS > 128<<20 {
		t.Errorf("a shell took %v and %d KiB", u.Took, u.RSS>>10)
	}
	var exit *exec.ExitError
	if _, err := measured(exec.Command("/bin/sh", "-c", "exit 7")); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit 7 is told as %v", err)
	}
}

func TestMeter(t *testing.T) {
	begin := time.Now()
	every := func(d time.Duration) *meter {
		return &meter{func() (uint64, error) { return uint64(time.Since(begin) / d), nil }, func() time.Duration { return time.Since(begin) / 2 }}
	}
	if r, err := every(10*time.Millisecond).rate(t.Context(), 100*time.Millisecond, time.Minute); err != nil || r.below || r.perSecond < 20 || r.perSecond > 110 || r.cpu < time.Millisecond || r.cpu > 50*time.Millisecond {
		t.Errorf("rate of 100/s = %+v, %v", r, err)
	}
	if d := processTime(os.Getpid()); d <= 0 || d > time.Hour {
		t.Errorf("this process has run for %v", d)
	}
	if r, err := every(time.Hour).rate(t.Context(), time.Millisecond, 50*time.Millisecond); err != nil || !r.below || r.perSecond < 1 || r.perSecond > 21 {
		t.Errorf("rate of what stands still = %+v, %v", r, err)
	}
	bad := errors.New("bad")
	if _, err := (&meter{read: func() (uint64, error) { return 0, bad }}).rate(t.Context(), time.Millisecond, time.Second); !errors.Is(err, bad) {
		t.Errorf("rate of what can't be read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := every(time.Hour).rate(ctx, time.Millisecond, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("rate without time: %v", err)
	}
}

func TestComparison(t *testing.T) {
	c := &comparison{Loop: "getppid", Tracer: "implant, stream", Thing: "calls", Counts: "entries and returns", records: []float64{5, 3000, 4}, cpus: []float64{50}}
	c.add(reading{perSecond: 100, cpu: 6}, mean(reading{perSecond: 300, cpu: 1}, reading{perSecond: 100, cpu: 3}))
	c.add(reading{}, reading{perSecond: 200}) // it could not be measured
	c.add(reading{perSecond: 10}, reading{perSecond: 200})
	c.add(reading{perSecond: 50, below: true}, reading{perSecond: 200})
	c.finish()
	if want := []string{"getppid", "implant, stream", "<50.0 calls/s", ">4.00x", "2.00x to 20x, 3 times", "<= 2.5x", "3.00x", "5.0 /s", "0", "50%", ""}; !slices.Equal(c.cells(), want) {
		t.Errorf("cells %q, want %q", c.cells(), want)
	}
	none := &comparison{Loop: "tar", Tracer: "trap", Note: "why"}
	none.finish()
	if want := []string{"tar", "trap", "-", "-", "-", "-", "-", "-", "-", "-", "why"}; !slices.Equal(none.cells(), want) {
		t.Errorf("cells %q, want %q", none.cells(), want)
	}
}

func TestGuestTexts(t *testing.T) {
	stats := "entries: 7\noverrun: 5\ncommit overrun: 1\nbytes: 300\noldest event ts:  2.0\nnow ts: 3.1\ndropped events: 2\nread events: 40\n"
	if got := parseBufferStats(stats); got != (tally{40, 8}) {
		t.Errorf("statistics %+v", got)
	}
	if got := field("Name:\tx\nTracerPid:\t12\n", "TracerPid"); got != "12" {
		t.Errorf("tracer %q", got)
	}
	if got := field("", "TracerPid"); got != "" {
		t.Errorf("tracer %q of nothing", got)
	}
}

func TestOnly(t *testing.T) {
	for only, want := range map[string][]bool{"": {true, true, true}, "getppid,memory": {true, true, false}, "tracers": {false, true, true}} {
		o := options{only: only}
		if got := []bool{o.wants("memory"), o.wantsLoop(loops[0]), o.wantsLoop(loops[1])}; !slices.Equal(got, want) {
			t.Errorf("-only %q: %v, want %v", only, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	tab := table{setting: "here"}
	tab.add("a", "1 ms", "< 2 ms", "note")
	tab.add("longer", "22 ms", "", "")
	tab.compared = []*comparison{{Loop: "tar", Tracer: "trap", Note: "why", Planted: []float64{3, 9}}}
	tab.addStops()
	var b bytes.Buffer
	if err := tab.print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"here\n\nWHAT ", "\na  ", "6 ms      <= 150 ms  3 to 9 ms, 2 times\n\nLOOP  TRACER", "\ntar   trap "} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("got\n%s, which lacks %q", b.String(), want)
		}
	}
	b.Reset()
	if err := tab.writeJSON(&b); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(b.String(), "\n"); got != 5 || !strings.Contains(b.String(), `{"what":"a","measured":"1 ms","goal":"< 2 ms","note":"note"}`) {
		t.Errorf("%d lines of JSON:\n%s", got, b.String())
	}
}

func TestNumbers(t *testing.T) {
	for in, want := range map[float64]string{0: "0.0 ", 9.94: "9.9 ", 512: "512 ", 9999: "9999 ", 12345: "12.3 k", 2.5e6: "2.50 M", 3e9: "3.00 G"} {
		if got := count(in); got != want {
			t.Errorf("count(%v) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[time.Duration]string{0: "0s", 999: "999ns", 1234: "1.23µs", 98765432: "98.8ms", 1500 * time.Millisecond: "1.5s"} {
		if got := short(in).String(); got != want {
			t.Errorf("short(%d) = %s, want %s", in, got, want)
		}
	}
	if got := (times{5, 1, 3}).median(); got != 3 {
		t.Errorf("median = %d, want 3", got)
	}
	if got := (times{5000, 1000}).String(); got != "1µs to 5µs, 2 times" {
		t.Errorf("times = %s", got)
	}
}

func TestAgrees(t *testing.T) {
	proc := func(pid, ppid int, name string) wire.Proc {
		return wire.Proc{PID: pid, Status: wire.Text(fmt.Sprintf("Name:\t%s\nPPid:\t%d\n", name, ppid)), Stat: wire.Text(fmt.Sprintf("%d (%s) S %d", pid, name, ppid))}
	}
	before := &wire.Truth{Reporter: 9, Procs: []wire.Proc{proc(1, 0, "init"), proc(2, 0, "kworker/a"), proc(3, 1, "gone"), proc(9, 1, "reporter")}}
	after := &wire.Truth{Reporter: 9, Procs: []wire.Proc{proc(1, 0, "init"), proc(2, 0, "kworker/b"), proc(4, 1, "new"), proc(9, 1, "reporter")}}
	truths := []*wire.Truth{before, after}
	const first, second = `{"pid":1,"ppid":0,"name":"init"}` + "\n", `{"pid":4,"ppid":1,"name":"new"}` + "\n"
	for list, want := range map[string]string{
		first + second:              "2 listed; all 1 ",
		second:                      "WRONG: 1 of 1 ",
		first + `{"pid":77}` + "\n": "WRONG: 0 of 1 that the guest tells of, and 1 ",
		`{"pid":1,"ppid":5,"name":"init"}` + "\n":  "WRONG: 1 of 1 ",
		`{"pid":1,"ppid":0,"name":"other"}` + "\n": "WRONG: 1 of 1 ",
		"nonsense": "read the list: ",
	} {
		if got := agrees([]byte(list), truths); !strings.HasPrefix(got, want) {
			t.Errorf("%q agrees: %q, want %q", list, got, want)
		}
	}
}

func TestLasting(t *testing.T) {
	for name, want := range map[string]string{"kworker/0:1H-kblockd": "kworker/0:1H", "kworker/u4:2+events_unbound": "kworker/u4:2", "kworker/1:0": "kworker/1:0", "a-b": "a-b"} {
		if got := lasting(name); got != want {
			t.Errorf("lasting(%q) = %q, want %q", name, got, want)
		}
	}
}
