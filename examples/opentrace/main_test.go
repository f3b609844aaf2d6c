package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

func TestPrintsWhatARunningGuestOpens(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{Kernel: "6.1-cloud"})
	text := vmtest.SnapshotText(t, vm)
	if _, err := vm.Spawn(t.Context(), "open", "opener"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	out := awaited{line: regexp.MustCompile(`(?m)^\d+ "[^"]+" \S*open\S*\("[^"]+"\) = \d+$`), seen: cancel}
	if err := run(ctx, &out, vm.QMP); err != nil {
		t.Fatal(err)
	}
	if !out.line.Match(out.Bytes()) {
		t.Errorf("no opened file in the output:\n%s", out.Bytes())
	}
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

// awaited is output that tells when a line is there.
type awaited struct {
	bytes.Buffer
	line *regexp.Regexp
	seen func()
}

func (a *awaited) Write(p []byte) (int, error) {
	n, err := a.Buffer.Write(p)
	if a.line.Match(a.Bytes()) {
		a.seen()
	}
	return n, err
}

// WriteString is what io.WriteString calls.
func (a *awaited) WriteString(s string) (int, error) { return a.Write([]byte(s)) }

func TestNoGuest(t *testing.T) {
	err := run(t.Context(), &bytes.Buffer{}, filepath.Join(t.TempDir(), "none.qmp"))
	if !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("run: %v, want ErrNotFound", err)
	}
}
