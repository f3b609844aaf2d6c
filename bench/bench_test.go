package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// shared is the guest of all benchmarks.
var shared struct {
	sync.Once
	e   *env
	err error
}

func TestMain(m *testing.M) {
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

// TestRun makes the whole table, with the shortest measurements.
func TestRun(t *testing.T) {
	if testing.Short() {
		vmtest.Skip(t, "it boots a guest", "without -short")
	}
	var out bytes.Buffer
	if err := run(t.Context(), &out, t.Output(), &options{smoke: true, kernel: "6.1-cloud", cpu: "max"}); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	for _, what := range []string{"identify, cold", "identify, warm", "in kernel text", "in all RAM", "sequential", "ps of", "getppid", "open+close"} {
		if !strings.Contains(out.String(), what) {
			t.Errorf("the table lacks %q", what)
		}
	}
}

func TestTable(t *testing.T) {
	var tab table
	tab.add("a", "1 ms", "< 2 ms", "note")
	tab.add("longer", "22 ms", "", "")
	var b bytes.Buffer
	if err := tab.print(&b); err != nil {
		t.Fatal(err)
	}
	const want = "WHAT    MEASURED  GOAL    NOTE\na       1 ms      < 2 ms  note\nlonger  22 ms     -       \n"
	if b.String() != want {
		t.Errorf("got\n%q, want\n%q", b.String(), want)
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
