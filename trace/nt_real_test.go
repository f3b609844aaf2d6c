package trace_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/windows"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/qemu"
	"github.com/vitrine-vmi/vitrine/tests/ntguest"
	"github.com/vitrine-vmi/vitrine/trace"
)

// ntLayouts are booted by default: one of each width. VITRINE_TEST_NT_LAYOUTS=all
// boots all that ntguest lists, or it names some.
func ntLayouts() []string {
	switch v := os.Getenv("VITRINE_TEST_NT_LAYOUTS"); v {
	case "":
		return []string{ntguest.Win7x86, ntguest.Win10}
	case "all":
		return ntguest.Layouts()
	default:
		return strings.Split(v, ",")
	}
}

// ntTarget is a guest laid out as NT is, understood.
type ntTarget struct {
	vm    *ntguest.Guest
	g     *vitrine.Guest
	k     *kernel.Kernel
	sys   osi.System
	truth *ntguest.Truth
}

func attachNT(t *testing.T, layout string, o *ntguest.Options) *ntTarget {
	t.Helper()
	x := &ntTarget{vm: ntguest.Boot(t, layout, o)}
	var err error
	if x.truth, err = x.vm.Truth(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x.g, err = qemu.Attach(t.Context(), x.vm.QMP, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.g.Close() })
	if x.k, err = kernel.Describe(t.Context(), x.g, nil); err != nil {
		t.Fatal(err)
	}
	if x.sys, err = osi.Open(t.Context(), x.g, x.k, nil); err != nil {
		t.Fatal(err)
	}
	return x
}

// text returns the kernel's text as it is in memory, by a hash of the guest's own.
func (x *ntTarget) text(t *testing.T) string {
	t.Helper()
	lines, err := x.vm.Do(t.Context(), "hash")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Hash string `json:"text_hash"`
	}
	if err := lines[len(lines)-1].Decode(&v); err != nil || v.Hash == "" {
		t.Fatalf("hash: %v", err)
	}
	return v.Hash
}

// bytes returns the kernel's text as it is seen from outside.
func (x *ntTarget) bytes(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, int(x.truth.Kernel.TextEnd-x.truth.Kernel.Base))
	n, _ := x.k.AddressSpace().Read(b, arch.GVA(x.truth.Kernel.Base))
	if n < len(b)/2 {
		t.Fatalf("kernel text: %d bytes of %d", n, len(b))
	}
	return b[:n]
}

// collector keeps the records of a trace.
type collector struct {
	mu   sync.Mutex
	recs []event.Call
}

func (c *collector) emit(r *event.Call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recs = append(c.recs, *r)
	return nil
}

func (c *collector) all() []event.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.recs)
}

func (c *collector) len() int { return len(c.all()) }

// traceNT traces while work runs, from the first breakpoint being in.
func (x *ntTarget) traceNT(t *testing.T, o *trace.CallsOptions, work func()) ([]event.Call, *event.Stats) {
	t.Helper()
	var c collector
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type ended struct {
		stats *event.Stats
		err   error
	}
	done := make(chan ended, 1)
	go func() {
		stats, err := trace.Calls(ctx, x.g, x.k, x.sys, o, c.emit)
		done <- ended{stats, err}
	}()
	// The guest's programs sleep all the time: a call of it shows that all is planted.
	deadline := time.Now().Add(2 * time.Minute)
	for !slices.ContainsFunc(c.all(), func(r event.Call) bool { return r.Name == "NtDelayExecution" }) {
		select {
		case e := <-done:
			t.Fatalf("trace ended: %v", e.err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("no call is seen")
		}
	}
	work()
	for n := -1; n != c.len(); time.Sleep(300 * time.Millisecond) { // what was called has been seen: it is delivered in step
		if n = c.len(); time.Now().After(deadline) {
			break
		}
		break
	}
	cancel()
	e := <-done
	if e.err != nil && !errors.Is(e.err, context.Canceled) {
		t.Fatal(e.err)
	}
	return c.all(), e.stats
}

var _ = json.Marshal
var _ = maps.Keys[map[int]int]
var _ = strconv.Itoa
var _ = fmt.Sprint
var _ = cmp.Diff
var _ probe.Engine
