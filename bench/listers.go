package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// vmlinuxEnv names the guest kernel's vmlinux with debug symbols (of Debian's
// package linux-image-...-dbg, 590 MB), without which crash and drgn can do
// nothing. It is not fetched: the package has 280 MB.
const vmlinuxEnv = "VITRINE_BENCH_VMLINUX"

// lister measures programs that list the processes of an image.
type lister struct {
	ctx     context.Context
	e       *env
	t       *table
	dir     string
	program string        // vitrine
	truths  []*wire.Truth // what the guest said before and after it was dumped
}

// listing is a program that lists processes, whole.
type listing struct {
	what  string
	goal  string
	stdin string
	argv  []string
	// drop are files that are dropped from the page cache before.
	drop []string
	// note says what is told of its output.
	note func(stdout []byte) string
}

// enough is how long one program is measured: those that take seconds are not
// repeated as often.
const enough = 8 * time.Second

// measure runs a program some times and adds a row: how long it took, how much
// memory, what it printed. It returns the median, 0 when the program failed.
func (m *lister) measure(l listing) time.Duration {
	var took times
	var note string
	rss := int64(0)
	for began := time.Now(); len(took) < m.e.o.repeat() && (len(took) == 0 || time.Since(began) < enough); {
		for _, path := range l.drop {
			if err := dropCached(m.ctx, path); err != nil {
				m.t.add(l.what, "not measured", l.goal, err.Error())
				return 0
			}
		}
		out, u, err := m.run(l)
		if err != nil {
			m.t.add(l.what, "failed", l.goal, fmt.Sprintf("after %v: %.160q", short(u.Took), err))
			return 0
		}
		took = append(took, u.Took)
		rss = max(rss, u.RSS>>20)
		note = l.note(out)
	}
	m.t.add(l.what, short(took.median()).String(), l.goal, fmt.Sprintf("%s; %d MB; %v", note, rss, took))
	return took.median()
}

func (m *lister) run(l listing) ([]byte, usage, error) {
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, l.argv[0], l.argv[1:]...)
	c.Env = append(os.Environ(), "VITRINE_CACHE="+filepath.Join(m.dir, "cache"))
	c.Stdin = strings.NewReader(l.stdin)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	u, err := measured(c)
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()+out.String()))
	}
	return out.Bytes(), u, err
}

// compare measures all programs on an image.
func (m *lister) compare(im image) {
	ps := func(what, goal string, note func([]byte) string, drop []string, args ...string) time.Duration {
		return m.measure(listing{what: "vitrine ps" + what + ", " + im.kind, goal: goal,
			argv: append([]string{m.program, "ps"}, append(args, im.path)...), drop: drop, note: note})
	}
	cold := ps(", cold", "<= 50ms, <= 100 MB", lines, nil, "--no-cache")
	ps(", cold, not in the page cache", "", lines, []string{im.path}, "--no-cache")
	ps(", warm", "", lines, nil)
	ps(" --json, cold", "", func(p []byte) string { return agrees(p, m.truths) }, nil, "--no-cache", "--json")
	drgn := m.others(im)
	if cold > 0 && drgn > 0 {
		m.t.add("drgn / vitrine, cold, "+im.kind, fmt.Sprintf("%.1f times", float64(drgn)/float64(cold)), ">= 8 times", "")
	}
}

// drgnScript is for Debian's own Python, which its drgn belongs to. It lists
// processes as drgn's own examples do.
const drgnScript = `
import sys
from drgn import Program
from drgn.helpers.linux.pid import for_each_task
p = Program()
p.set_core_dump(sys.argv[1])
p.load_debug_info([sys.argv[2]])
for t in for_each_task(p):
    print(t.pid.value_(), t.comm.string_().decode())
`

// others measures crash and drgn, as far as they are there, and returns drgn's
// time.
func (m *lister) others(im image) time.Duration {
	vmlinux := os.Getenv(vmlinuxEnv)
	tools := []struct {
		pkg string
		l   listing
	}{
		{"crash", listing{what: "crash", stdin: "ps\nquit\n", argv: []string{"crash", "--no_scroll", "-s", vmlinux, im.path}}},
		{"python3-drgn", listing{what: "drgn", argv: []string{"/usr/bin/python3", "-c", drgnScript, im.path, vmlinux}}},
	}
	var took time.Duration
	for _, tool := range tools {
		tool.l.what += ", " + im.kind
		tool.l.note = lines
		if why := m.lacks(tool.pkg, tool.l.argv[0], vmlinux); why != "" {
			m.t.add(tool.l.what, "not measured", "", why)
			took = 0
			continue
		}
		took = m.measure(tool.l)
	}
	return took
}

// lacks says what it takes to run a tool, "" when it is all there.
func (m *lister) lacks(pkg, program, vmlinux string) string {
	_, err := exec.LookPath(program)
	if err == nil && pkg == "python3-drgn" {
		err = exec.CommandContext(m.ctx, program, "-c", "import drgn").Run()
	}
	switch {
	case err != nil:
		return "not installed: apt-get install " + pkg
	case vmlinux == "":
		return fmt.Sprintf("%s names no vmlinux with debug symbols of %s (Debian: package linux-image-%[2]s-dbg)", vmlinuxEnv, m.e.k.Release())
	}
	return ""
}

// dropCached has the host forget what it has of a file in its page cache, as
// GNU dd does it.
func dropCached(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "dd", "if="+path, "iflag=nocache", "count=0", "status=none").CombinedOutput()
	if err != nil {
		return fmt.Errorf("drop %s from the page cache: %w: %s", path, err, out)
	}
	return nil
}

// parseList reads the list of vitrine ps --json.
func parseList(p []byte) (map[int]event.Process, error) {
	got := map[int]event.Process{}
	for line := range bytes.Lines(p) {
		var one event.Process
		if err := json.Unmarshal(line, &one); err != nil {
			return nil, fmt.Errorf("read the list: %w", err)
		}
		got[one.PID] = one
	}
	return got, nil
}
