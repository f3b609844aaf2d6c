// Package ostruth turns what a test guest says of itself into the form that the conformance suite of osi providers
// compares with. It is for tests.
package ostruth

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest/providertest"
)

// looks bounds how often a guest is asked until nothing changes any more: what has just been started settles.
const looks = 8

// Of asks the guest until it says the same twice, and keeps the processes that were the same both times. Those of the
// ground-truth program itself, which works while it reports, and workers of the kernel's workqueues, which come and go,
// are left out.
func Of(t testing.TB, vm *testvm.VM) *providertest.Truth {
	t.Helper()
	first, second := vmtest.Truth(t, vm), vmtest.Truth(t, vm)
	for n := 2; n < looks && !slices.EqualFunc(stays(first), stays(second), same); n++ {
		first, second = second, vmtest.Truth(t, vm)
	}
	return Between(t, first, second)
}

// Between returns what two reports of a guest agree on.
func Between(t testing.TB, first, second *wire.Truth) *providertest.Truth {
	t.Helper()
	truth := &providertest.Truth{StartTolerance: 11 * time.Millisecond, Modules: []osi.Module{}}
	for _, m := range second.Modules {
		truth.Modules = append(truth.Modules, osi.Module{Name: m.Name, Base: arch.GVA(m.Base), Size: m.Size})
	}
	for i := range second.Procs {
		p := &second.Procs[i]
		q := first.Find(p.PID)
		if q == nil || !same(p, q) || comesAndGoes(second, p) {
			continue
		}
		truth.Processes = append(truth.Processes, processOf(t, second, p, q.State()))
	}
	if len(truth.Processes) < 20 {
		t.Fatalf("the guest tells of %d stable processes of %d, want at least 20", len(truth.Processes), len(second.Procs))
	}
	return truth
}

// stays returns the processes that are to be compared.
func stays(t *wire.Truth) (out []*wire.Proc) {
	for i := range t.Procs {
		if p := &t.Procs[i]; !comesAndGoes(t, p) {
			out = append(out, p)
		}
	}
	return out
}

func comesAndGoes(t *wire.Truth, p *wire.Proc) bool {
	return p.PID == t.Reporter || strings.HasPrefix(p.Comm(), "kworker/")
}

// same compares what Process has but for the state.
func same(p, q *wire.Proc) bool {
	return p.Stable && q.Stable && p.PID == q.PID && p.StartTicks() == q.StartTicks() && p.Comm() == q.Comm() && p.PPID() == q.PPID() &&
		bytes.Equal(p.Maps, q.Maps) && bytes.Equal(p.Cmdline, q.Cmdline) && bytes.Equal(p.Exe, q.Exe) && bytes.Equal(p.Cwd, q.Cwd) &&
		slices.EqualFunc(p.FDs, q.FDs, func(a, b wire.FD) bool { return a.FD == b.FD && bytes.Equal(a.Link, b.Link) && a.Pos == b.Pos }) &&
		slices.EqualFunc(p.Tasks, q.Tasks, func(a, b wire.Task) bool { return a.TID == b.TID })
}

func processOf(t testing.TB, truth *wire.Truth, p *wire.Proc, otherState string) providertest.Process {
	t.Helper()
	tick := time.Second / time.Duration(truth.ClockHz)
	out := providertest.Process{
		PID: p.PID, PPID: p.PPID(), Name: p.Comm(), Exe: string(p.Exe), Args: p.Args(),
		UID: uint32(p.UID()), GID: uint32(p.GID()), States: p.State() + otherState, //nolint:gosec // ids are not negative
		KThread: p.KThread(), Threads: p.Threads(), Cwd: string(p.Cwd),
		Start:    time.Unix(0, truth.BootNS).Add(time.Duration(p.StartTicks()) * tick), //nolint:gosec // ticks since boot
		StartBrk: arch.GVA(p.StartBrk()), Stack: arch.GVA(p.StartStack()),
		Mappings: mappingsOf(t, p), Files: []osi.File{}, Compat: string(p.Exe) == wire.Init32,
	}
	if p.KThread() {
		out.States += "RSDI" // it may have work, wait for a lock, or be done, at the moment when it is looked at
	}
	for _, task := range p.Tasks {
		out.TIDs = append(out.TIDs, task.TID)
	}
	slices.Sort(out.TIDs)
	for _, f := range p.FDs {
		out.Files = append(out.Files, osi.File{FD: f.FD, Path: string(f.Link), Pos: f.Pos, Flags: uint32(f.Flags)}) //nolint:gosec // 32 bits in the kernel
	}
	return out
}

func mappingsOf(t testing.TB, p *wire.Proc) []osi.Mapping {
	t.Helper()
	ms, err := p.Mappings()
	if err != nil {
		t.Fatal(err)
	}
	out := []osi.Mapping{}
	for _, m := range ms {
		if m.Name == "[vsyscall]" {
			continue // emulated: no memory of the process
		}
		out = append(out, osi.Mapping{
			Range: osi.Range{Start: arch.GVA(m.Start), End: arch.GVA(m.End)}, Perms: m.Perms, Offset: m.Offset,
			Name: strings.ReplaceAll(m.Name, `\012`, "\n"), Inode: m.Inode,
		})
	}
	return out
}
