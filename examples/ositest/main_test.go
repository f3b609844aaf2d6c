package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
)

func TestShowsARunningGuest(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{Kernel: "6.1-cloud", CPUs: 2})
	vmtest.Spawn(t, vm, "fork", "busy")
	unmoved := vmtest.NoStops(t, vm)
	var out bytes.Buffer
	if err := run(t.Context(), &out, vm.QMP, 4, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	unmoved()
	for _, want := range []string{"vcpu 0: pid ", "vcpu 1: pid ", "\"kthreadd\"", "\"w-fork\"", "\nModules:\n", "\"nls_ascii\""} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if got := strings.Count(out.String(), "\nProcesses:\n"); got != 4 {
		t.Errorf("%d lists of processes, want 4", got)
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

func TestNoGuest(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := run(ctx, &bytes.Buffer{}, filepath.Join(t.TempDir(), "none.qmp"), 1, time.Millisecond)
	if !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("run: %v, want ErrNotFound", err)
	}
}
