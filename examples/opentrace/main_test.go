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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, &out, vm.QMP); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^\d+ "[^"]+" \S*open\S*\("[^"]+"\) = \d+$`).Match(out.Bytes()) {
		t.Errorf("no opened file in the output:\n%s", &out)
	}
	if err := vm.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	text.Unchanged(t)
	vmtest.Healthy(t, vm)
}

func TestNoGuest(t *testing.T) {
	err := run(t.Context(), &bytes.Buffer{}, filepath.Join(t.TempDir(), "none.qmp"))
	if !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("run: %v, want ErrNotFound", err)
	}
}
