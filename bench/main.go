// Command bench boots a guest, measures what Vitrine does with it, and prints
// two tables: what each thing takes, and how much slower loops and jobs in the
// guest go when all system calls are traced, by Vitrine and by tracers inside
// the guest. Ratios are against the same guest untraced right before and after,
// so they hold on a loaded machine too; absolute numbers are this machine's.
//
//	go run ./bench                      some minutes
//	go run ./bench -smoke               about a minute, to see that everything works
//	go run ./bench -only getppid,tar    these loops alone
//	go run ./bench -only attach,memory  these parts alone; there are processes and tracers, too
//	go run ./bench -only nt             lists of guests laid out as NT is, which need the data of tests/ntguest
//	go run ./bench -json                one JSON object a line instead of the tables
//
// The parts are also Go benchmarks: go test -bench . ./bench
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == runMeasured {
		os.Exit(childMeasured(os.Args[2:]))
	}
	var o options
	flag.BoolVar(&o.smoke, "smoke", false, "take short measurements: numbers are rough")
	flag.BoolVar(&o.json, "json", false, "print one JSON object a line")
	flag.StringVar(&o.only, "only", "", "measure these parts and loops alone (names, separated by commas)")
	flag.StringVar(&o.kernel, "kernel", "6.1-cloud", "kernel of the guest")
	flag.StringVar(&o.cpu, "cpu", "max", "QEMU's -cpu for the guest")
	flag.StringVar(&o.images, "images", "", "put the guest's memory images into this folder and leave them there")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr, &o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

// options say what is measured, and on what.
type options struct {
	smoke  bool
	json   bool
	only   string // names of parts and loops; empty: everything
	kernel string // as testvm names it
	cpu    string
	images string // folder for memory images; empty: a temporary one
}

// wants says whether a part, or a loop, is to be measured.
func (o *options) wants(name string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), name)
}

// wantsLoop says it of a loop: all of them if their part is wanted by name.
func (o *options) wantsLoop(l loop) bool { return o.wants(l.name) || o.wants(tracersPart) }

// tracersPart is the name of the part that has the loops.
const tracersPart = "tracers"

// span is how long a measurement of a rate takes.
func (o *options) span() time.Duration {
	if o.smoke {
		return 300 * time.Millisecond
	}
	return time.Second
}

// spanOf is the span for a loop: of a job there have to be several rounds.
func (o *options) spanOf(l *loop) time.Duration {
	if l.job {
		return 2 * o.span()
	}
	return o.span()
}

// leavesOut says whether there is no time for a tracer of a loop: a short run
// tries each tracer on the simple loops, and each loop under two tracers.
func (o *options) leavesOut(tr *tracer, l *loop) bool {
	return o.smoke && l.works && !tr.brief
}

// settle is how long a loop runs before it is measured.
func (o *options) settle() time.Duration {
	if o.smoke {
		return 100 * time.Millisecond
	}
	return 400 * time.Millisecond
}

// patience is how long a loop may take for one round.
func (o *options) patience() time.Duration {
	if o.smoke {
		return 5 * time.Second
	}
	return 12 * time.Second
}

// rounds is how often a loop is measured under each tracer; the median counts.
func (o *options) rounds() int {
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
	if o.only == ntPart {
		t := table{setting: fmt.Sprintf("guests: tests/ntguest, 2 vCPUs, TCG; host: %s, %d CPUs, load %s", cpuModel(), runtime.NumCPU(), loadAverage())}
		return errors.Join(measureNT(ctx, o, &t), t.write(out, o))
	}
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
		{"attach", measureAttach},
		{"memory", measureMemory},
		{"processes", measureProcesses},
		{"images", measureImages},
		{tracersPart, measureTracers},
	} {
		if !o.wants(part.name) && (part.name != tracersPart || !slices.ContainsFunc(loops, o.wantsLoop)) {
			continue
		}
		fmt.Fprintf(progress, "%s measuring %s\n", time.Now().UTC().Format(time.TimeOnly), part.name)
		if err = part.measure(ctx, e, &t); err != nil {
			err = fmt.Errorf("measure %s: %w", part.name, err)
			break
		}
	}
	if err == nil && o.only != "" && o.wants(ntPart) {
		err = measureNT(ctx, o, &t)
	}
	t.setting = fmt.Sprintf("guest: %s, -cpu %s, %d vCPUs, %d MiB, TCG; host: %s, %d CPUs, load %s",
		e.k.Release(), o.cpu, e.g.CPUs(), e.g.MemoryBytes()>>20, cpuModel(), runtime.NumCPU(), loadAverage())
	// What was measured before a failure, or an interrupt, has taken minutes.
	return errors.Join(err, t.write(out, o))
}

// write writes the tables as the options say.
func (t *table) write(out io.Writer, o *options) error {
	if o.json {
		return t.writeJSON(out)
	}
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
