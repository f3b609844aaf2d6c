package cli_test

import (
	stdcmp "cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

func TestList(t *testing.T) {
	vm := guest(t)
	guests := decode[event.Guest](t, mustRun(t, "list", "--json"))
	i := slices.IndexFunc(guests, func(g event.Guest) bool { return g.PID == vm.PID })
	if i < 0 {
		t.Fatalf("guest %s (process %d) is not listed: %+v", vm.Name, vm.PID, guests)
	}
	want := event.Guest{
		Name: vm.Name, PID: vm.PID, Accel: "tcg", MemoryBytes: uint64(vm.Options.Memory) << 20,
		VCPUs: vm.Options.CPUs, QMP: guests[i].QMP,
	}
	vmtest.Equal(t, "list", guests[i], want)
	if !strings.HasPrefix(guests[i].QMP, vm.Dir+"/") {
		t.Errorf("qmp is %q, want a socket in %s", guests[i].QMP, vm.Dir)
	}
}

// The same guest by each kind of target.
func TestTargets(t *testing.T) {
	vm := guest(t)
	var first string
	for _, target := range []string{target(vm), vm.QMP, vm.Name, fmt.Sprintf("pid:%d", vm.PID)} {
		out := mustRun(t, "info", "--json", target)
		info := decode[event.Info](t, out)[0]
		if info.Release != vm.Hello.Release || !strings.Contains(info.Banner, vm.Hello.Version) {
			t.Errorf("%s: release %q, banner %q; the guest says %q, %q", target, info.Release, info.Banner, vm.Hello.Release, vm.Hello.Version)
		}
		if first == "" {
			first = out
		} else if out != first {
			t.Errorf("%s: info differs:\n%s\n%s", target, out, first)
		}
	}
	r := run(t, "info", vm.Name+"x")
	if r.status != 3 || !strings.Contains(r.stderr, fmt.Sprintf("did you mean %q", vm.Name)) {
		t.Errorf("a misspelt name: status %d\n%s", r.status, r.stderr)
	}
}

func TestInfo(t *testing.T) {
	vm := guest(t)
	info := decode[event.Info](t, mustRun(t, "info", "--json", target(vm)))[0]
	if info.OS != "linux" || info.Arch != "x86_64" || info.VCPUs != 2 || info.Slide == 0 || len(info.Facts) == 0 {
		t.Errorf("info = %+v", info)
	}
	text := mustRun(t, "info", target(vm))
	for _, want := range []string{vm.Hello.Release, info.Slide.String(), info.Paging} {
		if !strings.Contains(text, want) {
			t.Errorf("text lacks %q:\n%s", want, text)
		}
	}
}

func TestPs(t *testing.T) {
	vm := guest(t)
	vmtest.SpawnWith(t, vm, wire.SpawnArgs{Kind: "threads", Name: "many", Args: []string{"3"}, UID: 1234, GID: 77})
	agreed := map[int]bool{} // each process has to do so once, not all of them at the same time
	agree(t, "ps", func() (got, want map[int]seen) {
		truth := vmtest.Truth(t, vm)
		procs := map[int]event.Process{}
		for _, p := range decode[event.Process](t, mustRun(t, "ps", "--json", target(vm))) {
			procs[p.PID] = p
		}
		got, want = map[int]seen{}, map[int]seen{}
		for i := range truth.Procs {
			p := &truth.Procs[i]
			if !p.Stable || p.PID == truth.Reporter || agreed[p.PID] {
				continue
			}
			mine, there := procs[p.PID]
			switch says := expected(p); {
			case !there:
				want[p.PID] = says
			case cmp.Equal(comparable(mine), says, cmpopts.EquateEmpty()):
				agreed[p.PID] = true
			default:
				got[p.PID], want[p.PID] = comparable(mine), says
			}
		}
		return got, want
	})
	if len(agreed) < 20 {
		t.Errorf("only %d processes were compared", len(agreed))
	}
}

// seen is what ps and the guest both know of a process.
type seen struct {
	PPID, TGID, UID, GID, Threads int
	Name, Exe                     string
	Args                          []string
	KThread                       bool
}

func comparable(p event.Process) seen {
	s := seen{p.PPID, p.TGID, int(p.UID), int(p.GID), p.Threads, p.Name, p.Exe, p.Args, p.KThread}
	return s
}

func expected(p *wire.Proc) seen {
	return seen{p.PPID(), p.PID, p.UID(), p.GID(), p.Threads(), p.Comm(), string(p.Exe), p.Args(), p.KThread()}
}

func TestPsThreads(t *testing.T) {
	vm := guest(t)
	s := vmtest.Spawn(t, vm, "threads", "many", "3")
	agree(t, "threads", func() (got, want []int) {
		for _, task := range vmtest.Truth(t, vm, s.PID).Find(s.PID).Tasks {
			want = append(want, task.TID)
		}
		for _, p := range decode[event.Process](t, mustRun(t, "ps", "--threads", "--json", target(vm))) {
			if p.TGID == s.PID {
				got = append(got, p.PID)
			}
		}
		if len(want) < 4 {
			t.Fatalf("the guest tells of the threads %v: too few to compare", want)
		}
		slices.Sort(want)
		slices.Sort(got)
		return got, want
	})
}

func TestPsTree(t *testing.T) {
	vm := guest(t)
	s := vmtest.Spawn(t, vm, "sleeper", "leaf")
	before := map[int]bool{}
	for _, p := range decode[event.Process](t, mustRun(t, "ps", "--tree", "--json", target(vm))) {
		if p.PPID != 0 && !before[p.PPID] {
			t.Errorf("process %d comes before its parent %d", p.PID, p.PPID)
		}
		before[p.PID] = true
	}
	if !before[s.PID] {
		t.Errorf("process %d is not listed", s.PID)
	}
	for _, p := range decode[event.Process](t, mustRun(t, "ps", "--no-kthreads", "--json", target(vm))) {
		if p.KThread {
			t.Errorf("process %d (%s) is a kernel thread", p.PID, p.Name)
		}
	}
	if text := mustRun(t, "ps", "--tree", target(vm)); !strings.Contains(text, `  \_ `) {
		t.Errorf("nothing is indented:\n%s", text)
	}
}

func TestCurrent(t *testing.T) {
	vm := guest(t)
	busy := vmtest.Spawn(t, vm, "getppid", "busy")
	seen := false
	for end := time.Now().Add(patience); !seen && time.Now().Before(end); {
		rows := decode[event.Current](t, mustRun(t, "current", "--json", target(vm)))
		if len(rows) != 2 || rows[0].VCPU != 0 || rows[1].VCPU != 1 {
			t.Fatalf("rows %+v, want one for each of 2 vCPUs", rows)
		}
		seen = slices.ContainsFunc(rows, func(c event.Current) bool { return c.PID == busy.PID })
	}
	if !seen {
		t.Errorf("the busy process %d was never running", busy.PID)
	}
}

func TestModules(t *testing.T) {
	vm := guest(t)
	type module struct {
		Name       string
		Base, Size uint64
	}
	var want, got []module
	for _, m := range vmtest.Truth(t, vm).Modules {
		want = append(want, module{m.Name, m.Base, m.Size})
	}
	for _, m := range decode[event.Module](t, mustRun(t, "modules", "--json", target(vm))) {
		got = append(got, module{m.Name, uint64(m.Base), m.Size})
	}
	if len(want) == 0 {
		t.Fatal("the guest has loaded no module: nothing to compare")
	}
	byBase := func(a, b module) int { return stdcmp.Compare(a.Base, b.Base) }
	slices.SortFunc(want, byBase)
	slices.SortFunc(got, byBase)
	vmtest.Equal(t, "modules", got, want)
}

func TestMaps(t *testing.T) {
	vm := guest(t)
	s := vmtest.Spawn(t, vm, "maps", "mapper")
	agree(t, "mappings", func() (got, want []string) {
		mappings, err := vmtest.Truth(t, vm, s.PID).Find(s.PID).Mappings()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mappings {
			want = append(want, fmt.Sprintf("%#x-%#x %s %d", m.Start, m.End, m.Perms, m.Offset))
		}
		for _, m := range decode[event.Mapping](t, mustRun(t, "maps", "--json", target(vm), fmt.Sprint(s.PID))) {
			if m.Name != "[vsyscall]" {
				got = append(got, fmt.Sprintf("%v-%v %s %d", m.Start, m.End, m.Perms, m.Offset))
			}
		}
		return got, slices.DeleteFunc(want, func(s string) bool { return strings.HasPrefix(s, "0xffffffffff6") })
	})
}

func TestLibs(t *testing.T) {
	vm := guest(t)
	s, err := vm.SpawnProgram(t.Context(), "dynamic", "/usr/bin/tail", "-f", "/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(t.Context(), "dynamic")
	want := map[string]uint64{} // lowest address by path
	mappings, err := vmtest.Truth(t, vm, s.PID).Find(s.PID).Mappings()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mappings {
		if _, there := want[m.Name]; !there && strings.Contains(m.Name, ".so") {
			want[m.Name] = m.Start
		}
	}
	got := map[string]uint64{}
	for _, l := range decode[event.Library](t, mustRun(t, "libs", "--json", target(vm), fmt.Sprint(s.PID))) {
		got[l.Path] = uint64(l.Base)
	}
	if len(want) < 2 {
		t.Fatalf("the guest's program has the libraries %v: nothing to compare", want)
	}
	vmtest.Equal(t, "libraries", got, want)
}

func TestFiles(t *testing.T) {
	vm := guest(t)
	s := vmtest.Spawn(t, vm, "files", "holder")
	agree(t, "files", func() (got, want map[int]string) {
		got, want = map[int]string{}, map[int]string{}
		for _, f := range vmtest.Truth(t, vm, s.PID).Find(s.PID).FDs {
			want[f.FD] = fmt.Sprintf("%s at %d", f.Link, f.Pos)
		}
		for _, f := range decode[event.File](t, mustRun(t, "files", "--json", target(vm), fmt.Sprint(s.PID))) {
			got[f.FD] = fmt.Sprintf("%s at %d", f.Path, f.Pos)
		}
		return got, want
	})
}

func TestNoSuchProcess(t *testing.T) {
	vm := guest(t)
	for _, c := range []string{"libs", "maps", "files"} {
		r := run(t, c, target(vm), "4194000")
		if r.status != 1 || !strings.Contains(r.stderr, "no such process") || r.stdout != "" {
			t.Errorf("%s: status %d\n%s%s", c, r.status, r.stdout, r.stderr)
		}
	}
}

func TestRead(t *testing.T) {
	vm := guest(t)
	banner := mustRun(t, "read", target(vm), "linux_banner", "14")
	if banner != "Linux version " {
		t.Errorf("linux_banner begins %q", banner)
	}
	if rest := mustRun(t, "read", target(vm), "linux_banner+6", "8"); rest != banner[6:] {
		t.Errorf("linux_banner+6 is %q", rest)
	}
	if got := mustRun(t, "read", "--json", target(vm), "linux_banner", "5"); !strings.Contains(got, `"hex":"4c696e7578"`) {
		t.Errorf("as JSON: %s", got)
	}
	s := vmtest.Spawn(t, vm, "sleeper", "s")
	mappings, err := vmtest.Truth(t, vm, s.PID).Find(s.PID).Mappings()
	if err != nil {
		t.Fatal(err)
	}
	elf := mustRun(t, "read", target(vm), fmt.Sprintf("%#x", mappings[0].Start), "4", "--pid", fmt.Sprint(s.PID))
	if elf != "\x7fELF" {
		t.Errorf("the executable begins %q", elf)
	}
	whole := mustRun(t, "read", "--physical", target(vm), "0x100000", "1M")
	if len(whole) != 1<<20 {
		t.Errorf("read %d bytes of physical memory, want 1 MiB", len(whole))
	}
}

// What can't be read ends the output behind what could.
func TestReadStopsAtAHole(t *testing.T) {
	vm := guest(t)
	end := uint64(vm.Options.Memory) << 20
	r := run(t, "read", "--physical", target(vm), fmt.Sprint(end-4096), "1M")
	if r.status != 1 || len(r.stdout) != 4096 || !strings.Contains(r.stderr, "read 4096 of 1048576 bytes") {
		t.Errorf("status %d, %d bytes\n%s", r.status, len(r.stdout), r.stderr)
	}
	r = run(t, "read", target(vm), "linux_bannre", "1")
	if r.status != 1 || !strings.Contains(r.stderr, "linux_banner") {
		t.Errorf("a misspelt symbol: status %d\n%s", r.status, r.stderr)
	}
}

// No command that only reads stops the guest, not for a moment.
func TestReadersDoNotStopTheGuest(t *testing.T) {
	vm := guest(t)
	check := vmtest.NoStops(t, vm)
	for _, args := range [][]string{
		{"list"}, {"info", target(vm)}, {"ps", target(vm), "--threads"}, {"current", target(vm)}, {"modules", target(vm)},
		{"libs", target(vm), "1"}, {"maps", target(vm), "1"}, {"files", target(vm), "1"},
		{"read", target(vm), "linux_banner", "64"}, {"doctor", target(vm)},
	} {
		mustRun(t, args...)
	}
	check()
	vmtest.Healthy(t, vm)
}

func TestDoctor(t *testing.T) {
	vm := guest(t)
	text := mustRun(t, "doctor", target(vm))
	for _, want := range []string{"guest  reached: x86_64", "guest  memory: readable", "guest  operating system: linux " + vm.Hello.Release, "guest  engine trap"} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

// A guest that never boots is not understood, and its memory can be read.
func TestFirmware(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{Firmware: true})
	r := run(t, "info", "--wait", "1s", target(vm))
	if r.status != 4 || r.stdout != "" {
		t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	if got := mustRun(t, "read", "--physical", target(vm), "0xf0000", "64K"); len(got) != 64<<10 || strings.Trim(got, "\x00") == "" {
		t.Errorf("read %d bytes of firmware, all zero or short", len(got))
	}
}
