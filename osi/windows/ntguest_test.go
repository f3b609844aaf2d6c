package windows

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/qemu"
	"github.com/vitrine-vmi/vitrine/tests/ntguest"
)

// volume is the device that the guest's drive C: is.
const volume = `\Device\HarddiskVolume2`

// guestLayouts are booted, or those that VITRINE_TEST_NT_LAYOUTS lists.
var guestLayouts = []string{"5.2.3790.3959-x86", "6.1.7601.17514-x86", "6.1.7601.17514-x64", "10.0.19045.2965-x64", "10.0.22631.2428-x64"}

func layoutsToBoot() []string {
	switch v := os.Getenv("VITRINE_TEST_NT_LAYOUTS"); v {
	case "", "all":
		return guestLayouts
	default:
		return strings.Split(v, ",")
	}
}

// The guest that is laid out as NT is, live: what it says of itself is what is
// found.
func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: it boots a guest; it runs without -short")
	}
	for _, layout := range layoutsToBoot() {
		t.Run(layout, func(t *testing.T) {
			g := ntguest.Boot(t, layout, nil)
			v, err := qemu.Attach(t.Context(), g.QMP, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			truth := truthAtBoot(t, g)
			k, sys := understand(t, v, nil)
			checkKernel(t, k, &truth.Kernel)
			for _, m := range k.Missing() {
				t.Logf("missing: %s", m)
			}
			guestLists(t, sys, truth)
			guestCurrent(t, sys, v, truth)
			currentAgrees(t, g, sys, v)
			guestEvents(t, g, v, k, sys, truth)
			guestWithoutLayouts(t, v, truth)
		})
	}
}

// guestLists compares all that is listed.
func guestLists(t *testing.T, sys osi.System, truth *ntguest.Truth) {
	t.Helper()
	guestProcesses(t, sys, truth)
	guestModules(t, sys, truth)
	for i := range truth.Processes {
		if p := &truth.Processes[i]; p.PID != 0 {
			guestThreads(t, sys, p)
			guestLibraries(t, sys, p)
			guestMappings(t, sys, p)
			guestHandles(t, sys, p)
		}
	}
}

// truthAtBoot is what the guest has told of itself when it had booted.
func truthAtBoot(t *testing.T, g *ntguest.Guest) *ntguest.Truth {
	t.Helper()
	truth := &ntguest.Truth{}
	for _, l := range g.Lines(0) {
		var v struct {
			Drivers []ntguest.Module
			Process *ntguest.Process
		}
		var err error
		if l.Type == "kernel" {
			err = l.Decode(&truth.Kernel)
		} else {
			err = l.Decode(&v)
		}
		if err != nil && (l.Type == "kernel" || l.Type == "drivers" || l.Type == "process") {
			t.Fatal(err)
		}
		if v.Drivers != nil {
			truth.Drivers = v.Drivers
		}
		if v.Process != nil {
			truth.Processes = append(truth.Processes, *v.Process)
		}
	}
	return truth
}

func understand(t *testing.T, v *vitrine.Guest, opts *kernel.Options) (*kernel.Kernel, osi.System) {
	t.Helper()
	k, err := kernel.Describe(t.Context(), v, opts)
	if err != nil {
		t.Fatal(err)
	}
	sys, err := osi.Open(t.Context(), v, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k, sys
}

func checkKernel(t *testing.T, k *kernel.Kernel, want *ntguest.Kernel) {
	t.Helper()
	nt := k.NT()
	if nt == nil || k.Base() != arch.GVA(want.Base) || nt.ProcessHead != arch.GVA(want.PsActiveProcessHead) || nt.ModuleList != arch.GVA(want.PsLoadedModuleList) ||
		nt.System != arch.GVA(want.PsInitialSystemProcess) || nt.Build != want.Build || !strings.EqualFold(nt.GUID, want.GUID) || nt.PDB != want.PDB {
		t.Errorf("kernel at %v: %+v, want %+v", k.Base(), nt, want)
	}
	if k.AddressSpace().Root() != arch.GPA(want.DTB) {
		t.Errorf("page table at %v, want %v", k.AddressSpace().Root(), want.DTB)
	}
	for cpu, c := range want.CPUs {
		if at, err := nt.PCR(t.Context(), cpu); err != nil || at != arch.GVA(c.KPCR) {
			t.Errorf("KPCR of processor %d at %v, %v, want %v", cpu, at, err, c.KPCR)
		}
	}
}

// seenProcess is what the guest tells of a process and osi too.
type seenProcess struct {
	PID, PPID, Session, Handles, Threads int
	Name, Path, CommandLine, User        string
	WOW64                                bool
	Created                              time.Time
}

func guestProcesses(t *testing.T, sys osi.System, truth *ntguest.Truth) {
	t.Helper()
	var got, want []seenProcess
	for p, err := range sys.Processes(t.Context()) {
		if err != nil {
			t.Errorf("%+v: %v", p, err)
		}
		exe := strings.Replace(p.Exe, volume, "C:", 1) // the kernel knows no drive letters
		if p.PID == 4 {
			exe = "System"
		}
		got = append(got, seenProcess{p.PID, p.PPID, p.Session, p.Handles, p.Threads, p.Name, exe, p.CommandLine, p.User, p.WOW64, p.StartTime})
	}
	for _, p := range truth.Processes {
		if p.PID != 0 {
			want = append(want, seenProcess{p.PID, p.PPID, p.Session, len(p.Handles), len(p.Threads), p.Image, p.Path, p.CommandLine, p.SID, p.WOW64, kernel.Filetime(uint64(p.Created))})
		}
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("processes (-guest +system):\n%s", diff)
	}
}

type seenImage struct {
	Base       arch.GVA
	Size       uint64
	Name, Path string
}

func byBase(a, b seenImage) int { return cmp.Compare(a.Base, b.Base) }

func guestModules(t *testing.T, sys osi.System, truth *ntguest.Truth) {
	t.Helper()
	var got, want []seenImage
	for m, err := range sys.Modules(t.Context()) {
		if err != nil {
			t.Errorf("%+v: %v", m, err)
		}
		got = append(got, seenImage{m.Base, m.Size, m.Name, m.File})
	}
	for _, m := range truth.Drivers {
		want = append(want, imageOf(m))
	}
	slices.SortFunc(got, byBase)
	slices.SortFunc(want, byBase)
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("drivers (-guest +system):\n%s", diff)
	}
}

// imageOf is how an image is to be shown, with what is paged out of its names.
func imageOf(m ntguest.Module) seenImage {
	im := seenImage{arch.GVA(m.Base), uint64(m.Size), m.Name, m.Path}
	if m.Held == "paged out" {
		im.Name, im.Path = osi.PagedOut, osi.PagedOut
	}
	return im
}

func guestThreads(t *testing.T, sys osi.System, p *ntguest.Process) {
	t.Helper()
	var got, want []ntguest.Thread
	for th, err := range sys.Threads(t.Context(), osi.Handle{Task: arch.GVA(p.EPROCESS)}) {
		if err != nil || th.PID != p.PID {
			t.Errorf("thread of %s: %+v, %v", p.Image, th, err)
		}
		got = append(got, ntguest.Thread{TID: th.TID, ETHREAD: ntguest.Addr(th.Task)})
	}
	for _, th := range p.Threads {
		want = append(want, ntguest.Thread{TID: th.TID, ETHREAD: th.ETHREAD})
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("threads of %s (-guest +system):\n%s", p.Image, diff)
	}
}

func guestLibraries(t *testing.T, sys osi.System, p *ntguest.Process) {
	t.Helper()
	var got, want []seenImage
	for l, err := range sys.Libraries(t.Context(), osi.Handle{Task: arch.GVA(p.EPROCESS)}) {
		if err != nil {
			t.Errorf("library of %s: %+v, %v", p.Image, l, err)
		}
		got = append(got, seenImage{l.Base, l.Size, l.Name, l.Path})
	}
	seen := map[arch.GVA]bool{arch.GVA(p.Base): true}
	for _, m := range p.Modules {
		im := imageOf(m)
		if seen[im.Base] {
			continue
		}
		seen[im.Base] = true
		want = append(want, im)
	}
	slices.SortFunc(want, byBase)
	// A name that is paged out is made up for by the mapping's.
	mended := gocmp.FilterPath(func(path gocmp.Path) bool { return path.Last().String() == ".Name" || path.Last().String() == ".Path" },
		gocmp.Comparer(func(a, b string) bool { return a == b || a == osi.PagedOut || b == osi.PagedOut }))
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(), mended); diff != "" {
		t.Errorf("libraries of %s (-guest +system):\n%s", p.Image, diff)
	}
}

func guestMappings(t *testing.T, sys osi.System, p *ntguest.Process) {
	t.Helper()
	type seen struct {
		Start, End arch.GVA
		Perms      string
		File       string
	}
	var got, want []seen
	for m, err := range sys.Mappings(t.Context(), osi.Handle{Task: arch.GVA(p.EPROCESS)}) {
		if err != nil {
			t.Errorf("mapping of %s: %+v, %v", p.Image, m, err)
		}
		file := m.Name
		if m.Kind != osi.MappingFile {
			file = ""
		}
		got = append(got, seen{m.Start, m.End, m.Perms, strings.TrimPrefix(file, volume)})
	}
	for _, v := range p.VADs {
		perms := permissions[v.Protection&7] + "p"
		if !v.Private && !v.Image && v.Protection&7 != 5 && v.Protection&7 != 7 {
			perms = permissions[v.Protection&7] + "s"
		}
		want = append(want, seen{arch.GVA(v.Start), arch.GVA(v.End), perms, v.File})
	}
	slices.SortFunc(want, func(a, b seen) int { return cmp.Compare(a.Start, b.Start) })
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("mappings of %s (-guest +system):\n%s", p.Image, diff)
	}
}

func guestHandles(t *testing.T, sys osi.System, p *ntguest.Process) {
	t.Helper()
	type seen struct {
		Handle     int
		Object     arch.GVA
		Access     uint32
		Type, Name string
	}
	var got, want []seen
	for f, err := range sys.Files(t.Context(), osi.Handle{Task: arch.GVA(p.EPROCESS)}) {
		if err != nil {
			t.Errorf("handle of %s: %+v, %v", p.Image, f, err)
		}
		name := f.Path
		if f.Type == "Process" || f.Type == "Thread" {
			name = "" // shown by what it is; the guest tells no name
		}
		got = append(got, seen{f.FD, f.Object, f.Flags, f.Type, name})
	}
	for _, h := range p.Handles {
		want = append(want, seen{int(h.Handle), arch.GVA(h.Object), uint32(h.Access), h.Type, h.Name})
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("handles of %s (-guest +system):\n%s", p.Image, diff)
	}
}

// guestCurrent waits until both processors were seen running programs, and
// compares each thread that was seen with what the guest has.
func guestCurrent(t *testing.T, sys osi.System, v *vitrine.Guest, truth *ntguest.Truth) {
	t.Helper()
	threads := map[arch.GVA]int{}
	for _, p := range truth.Processes {
		for _, th := range p.Threads {
			threads[arch.GVA(th.ETHREAD)] = p.PID
		}
	}
	for cpu := range v.CPUs() {
		for range 50 {
			th, err := sys.Current(t.Context(), cpu)
			if err != nil && !errors.Is(err, osi.ErrNoProcess) {
				t.Errorf("Current(%d): %v", cpu, err)
				break
			}
			if pid, known := threads[th.Task]; err == nil && known && (th.PID != pid || th.Name == "") {
				t.Errorf("Current(%d) = %+v, the guest says it is of process %d", cpu, th, pid)
			}
		}
	}
}

// currentAgrees asks the guest who runs until, for each processor, that is who
// was found to run right before and after.
func currentAgrees(t *testing.T, g *ntguest.Guest, sys osi.System, v *vitrine.Guest) {
	t.Helper()
	all := func() (out []osi.Thread) {
		for cpu := range v.CPUs() {
			th, err := sys.Current(t.Context(), cpu)
			if err != nil && !errors.Is(err, osi.ErrNoProcess) {
				t.Errorf("Current(%d): %v", cpu, err)
			}
			out = append(out, th)
		}
		return out
	}
	agreed := map[int]bool{}
	for range 300 {
		before := all()
		told, err := g.Current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		after := all()
		for cpu, c := range told {
			if before[cpu].Task != after[cpu].Task || before[cpu].Task != arch.GVA(c.ETHREAD) {
				continue // it has changed meanwhile
			}
			if th := after[cpu]; th.PID != c.PID || th.TID != c.TID {
				t.Errorf("processor %d runs %+v, the guest says %+v", cpu, th, c)
			}
			agreed[cpu] = true
		}
		if len(agreed) == v.CPUs() {
			return
		}
	}
	t.Errorf("who runs was never what the guest said, but on %v", agreed)
}
