package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// vmlinuxEnv names the guest kernel's vmlinux with debug symbols (of Debian's
// package linux-image-...-dbg, 590 MB), without which crash and drgn can do
// nothing. It is not fetched: the package has 280 MB.
const vmlinuxEnv = "VITRINE_BENCH_VMLINUX"

// measureImages lists the processes of an image of the guest, whole programs
// side by side: vitrine, crash, drgn, on QEMU's plain core and on vitrine's own.
func measureImages(ctx context.Context, e *env, t *table) error {
	dir, err := os.MkdirTemp("", "vitrine-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "vitrine")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/vitrine")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build vitrine: %w\n%s", err, out)
	}
	plain, own := filepath.Join(dir, "plain"), filepath.Join(dir, "own")
	if err := e.writeImages(ctx, program, plain, own, t); err != nil {
		return err
	}
	m := &lister{ctx: ctx, e: e, t: t, dir: dir}
	for _, image := range []string{plain, own} {
		kind := map[string]string{plain: "QEMU's core", own: "vitrine's core"}[image]
		m.measure("vitrine ps, cold, "+kind, "< 50ms, < 100 MB", "", program, "ps", "--no-cache", image)
		m.measure("vitrine ps, warm, "+kind, "", "", program, "ps", image)
		m.others(kind, image)
	}
	return nil
}

// writeImages has the guest dumped by QEMU, and its core made into one of ours,
// with the notes and mappings that drgn wants.
func (e *env) writeImages(ctx context.Context, program, plain, own string, t *table) error {
	args := map[string]any{"paging": false, "protocol": "file:" + plain}
	if _, err := e.vm.Execute(ctx, "dump-guest-memory", args); err != nil {
		return fmt.Errorf("dump by QEMU: %w", err)
	}
	began := time.Now()
	out, err := exec.CommandContext(ctx, program, "dump", plain, "-o", own).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make a core: %w\n%s", err, out)
	}
	t.add("make a core of a core", short(time.Since(began)).String(), "", fmt.Sprintf("%d MiB of memory", e.g.MemoryBytes()>>20))
	return nil
}

// lister measures programs that list processes.
type lister struct {
	ctx context.Context
	e   *env
	t   *table
	dir string
}

// measure runs a program some times and adds a row: how long it took, how much
// memory, how many lines it printed.
func (m *lister) measure(what, goal, stdin string, argv ...string) {
	var took times
	lines, rss := 0, int64(0)
	for range m.e.o.repeat() {
		ctx, cancel := context.WithTimeout(m.ctx, 2*time.Minute)
		c := exec.CommandContext(ctx, argv[0], argv[1:]...)
		c.Env = append(os.Environ(), "VITRINE_CACHE="+filepath.Join(m.dir, "cache"))
		c.Stdin = strings.NewReader(stdin)
		var out, errs bytes.Buffer
		c.Stdout, c.Stderr = &out, &errs
		u, err := measured(c)
		took = append(took, u.Took)
		cancel()
		if err != nil {
			m.t.add(what, "failed", goal, fmt.Sprintf("%v: %.120s", err, strings.TrimSpace(errs.String()+out.String())))
			return
		}
		lines = bytes.Count(out.Bytes(), []byte("\n"))
		rss = u.RSS >> 20
	}
	m.t.add(what, short(took.median()).String(), goal, fmt.Sprintf("%d lines, %d MB; %v", lines, rss, took))
}

// drgnScript is for Debian's own Python, which its drgn belongs to. It lists processes as drgn's own examples do.
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

// others measures crash and drgn, as far as they are there.
func (m *lister) others(kind, image string) {
	vmlinux := os.Getenv(vmlinuxEnv)
	for _, tool := range []struct{ name, program, pkg string }{{"crash", "crash", "crash"}, {"drgn", "/usr/bin/python3", "python3-drgn"}} {
		what := tool.name + ", " + kind
		_, err := exec.LookPath(tool.program)
		if err == nil && tool.name == "drgn" {
			err = exec.CommandContext(m.ctx, "/usr/bin/python3", "-c", "import drgn").Run()
		}
		switch {
		case err != nil:
			m.t.add(what, "not measured", "", "not installed: apt-get install "+tool.pkg)
		case vmlinux == "":
			m.t.add(what, "not measured", "", vmlinuxEnv+" names no vmlinux with debug symbols of "+m.e.k.Release())
		case tool.name == "crash":
			m.measure(what, "", "ps\nquit\n", "crash", "--no_scroll", "-s", vmlinux, image)
		default:
			m.measure(what, "", "", "/usr/bin/python3", "-c", drgnScript, image, vmlinux)
		}
	}
}
