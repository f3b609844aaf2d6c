package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// tasksImaged is how many processes the guest of the images has, kernel threads
// included.
const tasksImaged = 550

// image is a memory image of the guest.
type image struct{ kind, path string }

// measureImages lists the processes of images of the guest, whole programs side
// by side: vitrine, crash and drgn, on QEMU's plain core, on QEMU's core with
// all that drgn wants of one, and on vitrine's own.
func measureImages(ctx context.Context, e *env, t *table) error {
	dir, remove, err := e.o.imageDir()
	if err != nil {
		return err
	}
	defer remove()
	program := filepath.Join(dir, "vitrine")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/vitrine")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build vitrine: %w\n%s", err, out)
	}
	if err := e.crowd(ctx, tasksImaged); err != nil {
		return err
	}
	before, err := e.vm.BriefTruth(ctx)
	if err != nil {
		return fmt.Errorf("ask the guest: %w", err)
	}
	images, err := e.writeImages(ctx, program, dir, t)
	if err != nil {
		return err
	}
	after, err := e.vm.BriefTruth(ctx)
	if err != nil {
		return fmt.Errorf("ask the guest: %w", err)
	}
	// The guest has no business of ours beside what is measured.
	if err := e.vm.Quiet(ctx); err != nil {
		return fmt.Errorf("end the processes: %w", err)
	}
	if err := e.vm.Stop(ctx); err != nil {
		return fmt.Errorf("pause the guest: %w", err)
	}
	l := &lister{ctx: ctx, e: e, t: t, dir: dir, program: program, truths: []*wire.Truth{before, after}}
	for _, im := range images {
		l.compare(im)
	}
	if err := e.vm.Cont(ctx); err != nil {
		return fmt.Errorf("let the guest run on: %w", err)
	}
	return nil
}

// imageDir returns the folder for images, and what removes it where it is a
// temporary one.
func (o *options) imageDir() (dir string, remove func(), err error) {
	if o.images != "" {
		return o.images, func() {}, os.MkdirAll(o.images, 0o700)
	}
	dir, err = os.MkdirTemp("", "vitrine-bench-")
	return dir, func() { os.RemoveAll(dir) }, err
}

// crowd makes processes until the guest has n.
func (e *env) crowd(ctx context.Context, n int) error {
	for round := range 8 { // kernel threads come and go
		have, err := listAll(ctx, e.sys)
		if err != nil {
			return err
		}
		if have >= n {
			return nil
		}
		// A workload has a process of its own beside those that it is asked for.
		more := max(min(portion, n-have)-1, 1)
		if _, err := e.vm.Spawn(ctx, "procs", fmt.Sprint("imaged", round), strconv.Itoa(more)); err != nil {
			return fmt.Errorf("make %d processes: %w", n, err)
		}
	}
	return fmt.Errorf("make %d processes: they end again", n)
}

// writeImages has the guest dumped by QEMU as most users do it, that made into
// one of ours, and then by QEMU as drgn wants it.
func (e *env) writeImages(ctx context.Context, program, dir string, t *table) ([]image, error) {
	plain := image{"QEMU's core", filepath.Join(dir, "plain")}
	own := image{"vitrine's core", filepath.Join(dir, "own")}
	noted := image{"QEMU's core with paging and VMCOREINFO", filepath.Join(dir, "noted")}
	if err := e.dumpByQEMU(ctx, plain.path, false); err != nil {
		return nil, err
	}
	began := time.Now()
	out, err := exec.CommandContext(ctx, program, "dump", plain.path, "-o", own.path).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("make a core: %w\n%s", err, out)
	}
	t.add("make a core of a core", short(time.Since(began)).String(), "", fmt.Sprintf("%d MiB of memory", e.g.MemoryBytes()>>20))
	images := []image{plain, own}
	if err := e.vm.Insmod(ctx, "qemu_fw_cfg", ""); err != nil {
		t.add(noted.kind, "not measured", "", fmt.Sprintf("load qemu_fw_cfg: %v", err))
		return images, nil
	}
	if err := e.dumpByQEMU(ctx, noted.path, true); err != nil {
		return nil, err
	}
	return append(images, noted), nil
}

func (e *env) dumpByQEMU(ctx context.Context, path string, paging bool) error {
	args := map[string]any{"paging": paging, "protocol": "file:" + path}
	if _, err := e.vm.Execute(ctx, "dump-guest-memory", args); err != nil {
		return fmt.Errorf("dump by QEMU: %w", err)
	}
	// What is dropped from the page cache has to be on the disk.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// agrees compares a list of vitrine's, as JSON, with what the guest said of
// itself before and after: who was there both times must be listed with parent
// and name, and nobody else may be who was there neither time.
func agrees(listed []byte, truths []*wire.Truth) string {
	got, err := parseList(listed)
	if err != nil {
		return err.Error()
	}
	stayed, wrong := 0, 0
	for i := range truths[0].Procs {
		want := &truths[0].Procs[i]
		again := truths[1].Find(want.PID)
		if again == nil || lasting(again.Comm()) != lasting(want.Comm()) || want.PID == truths[0].Reporter {
			continue
		}
		stayed++
		if p, ok := got[want.PID]; !ok || p.PPID != want.PPID() || lasting(p.Name) != lasting(want.Comm()) {
			wrong++
		}
	}
	strange := 0
	for pid := range got {
		if truths[0].Find(pid) == nil && truths[1].Find(pid) == nil {
			strange++
		}
	}
	if wrong+strange > 0 {
		return fmt.Sprintf("WRONG: %d of %d that the guest tells of, and %d that it does not", wrong, stayed, strange)
	}
	return fmt.Sprintf("%d listed; all %d that the guest told of before and after are as it says", len(got), stayed)
}

// lasting returns the part of a name that lasts: kernel workers are called after
// what they do, or did last, behind a + or -.
func lasting(name string) string {
	if !strings.HasPrefix(name, "kworker/") {
		return name
	}
	if i := strings.IndexAny(name, "+-"); i > 0 {
		name = name[:i]
	}
	return name
}

// lines counts the lines of a text.
func lines(p []byte) string { return fmt.Sprintf("%d lines", bytes.Count(p, []byte("\n"))) }
