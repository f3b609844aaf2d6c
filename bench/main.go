// Command bench boots a guest, measures what Vitrine does with it, and prints
// one table. Ratios are against the same guest untraced in the same run, so
// they hold on a loaded machine too; absolute numbers are this machine's.
//
//	go run ./bench            some minutes
//	go run ./bench -smoke     under a minute, to see that everything works
//
// The parts are also Go benchmarks: go test -bench . ./bench
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	smoke := flag.Bool("smoke", false, "take short measurements: numbers are rough")
	guest := flag.String("kernel", "6.1-cloud", "kernel of the guest")
	cpu := flag.String("cpu", "max", "QEMU's -cpu for the guest")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr, &options{smoke: *smoke, kernel: *guest, cpu: *cpu}); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

// options say what is measured, and on what.
type options struct {
	smoke  bool
	kernel string // as testvm names it
	cpu    string
}

// span is how long a measurement of a rate takes.
func (o *options) span() time.Duration {
	if o.smoke {
		return 500 * time.Millisecond
	}
	return 2 * time.Second
}

// tries is how often a rate is measured; the highest counts.
func (o *options) tries() int {
	if o.smoke {
		return 1
	}
	return 3
}

// repeat is how often a measurement of one time is taken.
func (o *options) repeat() int {
	if o.smoke {
		return 2
	}
	return 7
}

// crowds are how many processes "ps" is measured with.
func (o *options) crowds() []int {
	if o.smoke {
		return []int{100} // it takes a guest 20 s to make 500
	}
	return []int{500, 2000}
}

// run measures everything and prints the table to out; what it is doing goes to
// progress.
func run(ctx context.Context, out, progress io.Writer, o *options) error {
	e, err := boot(ctx, o, progress)
	if err != nil {
		return err
	}
	defer e.close()
	var t table
	for _, part := range []struct {
		name    string
		measure func(context.Context, *env, *table) error
	}{
		{"attach and identify", measureAttach},
		{"memory", measureMemory},
		{"processes", measureProcesses},
		{"probes", measureProbes},
	} {
		fmt.Fprintf(progress, "%s measuring %s\n", time.Now().UTC().Format(time.TimeOnly), part.name)
		if err := part.measure(ctx, e, &t); err != nil {
			return fmt.Errorf("measure %s: %w", part.name, err)
		}
	}
	fmt.Fprintf(out, "guest: %s, -cpu %s, %d vCPUs, %d MiB, TCG; host: %s, %d CPUs, load %s\n\n",
		e.k.Release(), o.cpu, e.g.CPUs(), e.g.MemoryBytes()>>20, cpuModel(), runtime.NumCPU(), loadAverage())
	return t.print(out)
}

// cpuModel returns what the host's processor calls itself.
func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(b)) {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

// loadAverage returns the host's load over the last minute: above the number
// of CPUs, absolute numbers are too small.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
