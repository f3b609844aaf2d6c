package windows

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/qemu"
	"github.com/vitrine-vmi/vitrine/tests/ntguest"
)

// fewLayouts are two by default: one of each width.
func fewLayouts() []string {
	if os.Getenv("VITRINE_TEST_NT_LAYOUTS") == "" {
		return []string{guestLayouts[0], guestLayouts[3]}
	}
	return layoutsToBoot()
}

// essential is what is known of a process by the members that inference finds.
type essential struct {
	PID, PPID int
	Name      string
	EPROCESS  arch.GVA
	Table     arch.GPA
	PEB       arch.GVA
}

// checkEssentials compares the processes by what the kernel itself has told of
// their members. The members are not to be known by a layout.
func checkEssentials(t *testing.T, k *kernel.Kernel, sys osi.System, truth *ntguest.Truth) {
	t.Helper()
	peb, err := k.Types().Field("_EPROCESS", "Peb")
	if err != nil {
		t.Fatal(err)
	}
	table, err := k.Types().Field("_KPROCESS", "DirectoryTableBase")
	if err != nil {
		t.Fatal(err)
	}
	word := func(at arch.GVA) uint64 {
		v, err := k.NT().Word(k.AddressSpace(), at)
		if err != nil {
			t.Error(err)
		}
		return uint64(v)
	}
	var got, want []essential
	for p, err := range sys.Processes(t.Context()) {
		if err != nil {
			t.Errorf("%+v: %v", p, err)
		}
		got = append(got, essential{p.PID, p.PPID, p.Name, p.Task, arch.GPA(word(p.Task + arch.GVA(table.Offset))), arch.GVA(word(p.Task + arch.GVA(peb.Offset)))})
	}
	for _, p := range truth.Processes {
		if p.PID != 0 {
			want = append(want, essential{p.PID, p.PPID, p.Image, arch.GVA(p.EPROCESS), arch.GPA(p.DTB), arch.GVA(p.PEB)})
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("processes (-guest +system):\n%s", diff)
	}
}

// With layouts withheld, what the kernel tells of itself is enough for the list
// of processes.
func guestWithoutLayouts(t *testing.T, v *vitrine.Guest, truth *ntguest.Truth) {
	t.Helper()
	k, sys := understand(t, v, &kernel.Options{NoLayouts: true})
	checkEssentials(t, k, sys, truth)
	for _, m := range essentialMembers {
		if by := k.Facts()[m]; by == "" || strings.Contains(by, "layout") {
			t.Errorf("%s is known by %q", m, by)
		}
	}
}

// essentialMembers are what checkEssentials rests on.
var essentialMembers = []string{"_KPROCESS.DirectoryTableBase", "_EPROCESS.UniqueProcessId", "_EPROCESS.ActiveProcessLinks",
	"_EPROCESS.ImageFileName", "_EPROCESS.InheritedFromUniqueProcessId", "_EPROCESS.Peb"}

// wrongBuilds are builds that guests claim to be though they are laid out
// otherwise: such a layout is known and is offered, and one that is newer than
// all that are known.
var wrongBuilds = map[string][]int{
	"5.2.3790.3959-x86": {2600, 99999}, "6.1.7601.17514-x86": {9200, 99999}, "6.1.7601.17514-x64": {9600, 99999},
	"10.0.19045.2965-x64": {7601, 99999}, "10.0.22631.2428-x64": {10240, 99999},
}

// The layout of another build than the kernel's is refused where it is wrong,
// and the members are found where they are.
func TestGuestOfWrongBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: it boots guests; it runs without -short")
	}
	for _, layout := range fewLayouts() {
		for _, build := range wrongBuilds[layout] {
			t.Run(fmt.Sprintf("%s as %d", layout, build), func(t *testing.T) {
				g := ntguest.Boot(t, layout, &ntguest.Options{Build: build})
				v, err := qemu.Attach(t.Context(), g.QMP, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				k, sys := understand(t, v, nil)
				if k.NT().Build != build {
					t.Errorf("build %d, the guest claims %d", k.NT().Build, build)
				}
				truth := truthAtBoot(t, g)
				checkEssentials(t, k, sys, truth)
				checkRefused(t, k, layout, build)
				guestLists(t, sys, truth)
			})
		}
	}
}

// checkRefused looks for what was believed of a layout that is not the kernel's.
func checkRefused(t *testing.T, k *kernel.Kernel, layout string, build int) {
	t.Helper()
	var real int
	if _, err := fmt.Sscanf(layout[strings.Index(layout, ".")+3:], "%d", &real); err != nil {
		t.Fatal(err)
	}
	right, _, _ := kernel.NTLayout(real, k.NT().X64)
	wrong, name, exact := kernel.NTLayout(build, k.NT().X64)
	differ := 0
	for _, m := range append([]string{"_EPROCESS.Token", "_EPROCESS.ObjectTable", "_EPROCESS.ThreadListHead", "_EPROCESS.CreateTime"}, essentialMembers...) {
		structName, path, _ := strings.Cut(m, ".")
		want, err := right.Field(structName, path)
		offered, err2 := wrong.Field(structName, path)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		by := k.Types().Source(structName, path)
		if got, err := k.Types().Field(structName, path); err != nil || got.Offset != want.Offset {
			t.Errorf("%s at %#x, %v, it is at %#x (%s)", m, got.Offset, err, want.Offset, by)
		}
		if offered.Offset != want.Offset {
			differ++
			if strings.HasPrefix(by, "layout of build "+name) {
				t.Errorf("%s is at %#x by the layout of %s, which says %#x, and known by %q", m, want.Offset, name, offered.Offset, by)
			}
		}
	}
	missing := strings.Join(k.Missing(), "; ")
	if exact && (differ == 0 || !strings.Contains(missing, "accessors disagree")) {
		t.Errorf("the layout of %s differs from that of %s in %d members; missing: %s", name, layout, differ, missing)
	}
	if said := strings.Contains(missing, fmt.Sprintf("layout of build %d: none is known", build)); said == exact {
		t.Errorf("layout known: %v; said to be missing: %v", exact, said)
	}
}

// begin lets a guest run that was started with -S.
func begin(t *testing.T, g *ntguest.Guest) {
	t.Helper()
	conn, err := net.Dial("unix", g.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(`{"execute":"qmp_capabilities"}{"execute":"cont"}`)); err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(conn); ; {
		var m struct{ Event string }
		if err := d.Decode(&m); err != nil {
			t.Fatal(err)
		}
		if m.Event == "RESUME" {
			return
		}
	}
}

// A guest that is in its firmware or its boot loader is no guest yet: it is
// waited for.
func TestGuestWhileItBoots(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: it boots a guest; it runs without -short")
	}
	g := ntguest.Boot(t, guestLayouts[0], &ntguest.Options{Paused: true})
	begin(t, g)
	v, err := qemu.Attach(t.Context(), g.QMP, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	k, err := kernel.Describe(t.Context(), v, &kernel.Options{Wait: -1})
	t.Logf("while it boots: %v", err)
	if (k == nil) != (err != nil) {
		t.Errorf("while it boots: %v, %v", k, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if k, err = kernel.Describe(ctx, v, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Await(ctx, 0, "end"); err != nil {
		t.Fatal(err)
	}
	truth := truthAtBoot(t, g)
	checkKernel(t, k, &truth.Kernel)
}
