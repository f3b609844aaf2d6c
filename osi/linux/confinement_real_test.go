package linux_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"github.com/vitrine-vmi/vitrine/osi"
)

// shell is a workload of a shell's.
func shell(name, script string) wire.SpawnArgs {
	return wire.SpawnArgs{Kind: "program", Name: name, Path: "/bin/sh", Argv: []wire.Text{[]byte("sh"), []byte("-c"), []byte(script)}}
}

// run runs a script in the guest.
func run(t testing.TB, vm *testvm.VM, script string) string {
	t.Helper()
	out, err := vm.Run(t.Context(), "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// testConfinement compares with what /proc in the guest says: of init, and of a
// process in namespaces, a root directory and a control group of its own.
func testConfinement(t *testing.T, vm *testvm.VM, sys osi.System) {
	id := strings.Repeat("0123456789abcdef", 4)
	run(t, vm, `mkdir -p /tmp/jail /tmp/cg && cp /bin/busybox /tmp/jail/ && { mountpoint -q /tmp/cg || mount -t cgroup2 none /tmp/cg; } && mkdir -p /tmp/cg/docker/`+id)
	jail := vmtest.SpawnWith(t, vm, wire.SpawnArgs{
		Kind: "program", Name: "jail", Path: "/bin/busybox", Env: []string{"COLOR=green", "EMPTY=", "TWO=a b"},
		Argv: []wire.Text{[]byte("busybox"), []byte("unshare"), []byte("-n"), []byte("-u"), []byte("-i"), []byte("-m"), []byte("chroot"), []byte("/tmp/jail"), []byte("/busybox"), []byte("sleep"), []byte("100000")},
	})
	run(t, vm, fmt.Sprintf(`until tr '\0' ' ' < /proc/%d/cmdline | grep -q '^/busybox sleep'; do usleep 20000; done`, jail.PID)) // it is where it will stay
	run(t, vm, fmt.Sprintf("echo %d > /tmp/cg/docker/%s/cgroup.procs", jail.PID, id))
	for _, pid := range []int{1, 2, jail.PID} {
		p, err := sys.ProcessByPID(t.Context(), pid)
		if err != nil {
			t.Fatal(err)
		}
		got, err := osi.ConfinementOf(t.Context(), sys, p.Handle)
		if err != nil {
			t.Errorf("ConfinementOf(%d): %v", pid, err)
		}
		var text []string
		for _, n := range got.Namespaces {
			text = append(text, fmt.Sprintf("%s:[%d]", n.Kind, n.Inode))
			if n.Initial != (pid != jail.PID || !slices.Contains([]string{"net", "uts", "ipc", "mnt"}, n.Kind)) {
				t.Errorf("pid %d: namespace %+v", pid, n)
			}
		}
		text = append(text, got.Root)
		for _, c := range got.Cgroups {
			text = append(text, fmt.Sprintf("%d:%s:%s", c.Hierarchy, strings.Join(c.Controllers, ","), c.Path))
		}
		want := run(t, vm, fmt.Sprintf("cd /proc/%d; for n in cgroup ipc mnt net pid time user uts; do readlink ns/$n; done; readlink root; sort -n cgroup", pid))
		if diff := cmp.Diff(strings.Split(want, "\n"), text); diff != "" {
			t.Errorf("confinement of pid %d (-guest +system):\n%s", pid, diff)
		}
		if pid == jail.PID && (got.Container == nil || *got.Container != osi.Container{Runtime: "docker", ID: id}) || pid != jail.PID && got.Container != nil {
			t.Errorf("container of pid %d: %+v", pid, got.Container)
		}
		env, err := osi.Environ(t.Context(), sys, p.Handle)
		if pid == 2 { // a kernel thread
			if err == nil {
				t.Errorf("environment of pid 2: %q", env)
			}
			continue
		}
		if want := run(t, vm, fmt.Sprintf("tr '\\0' '\\n' < /proc/%d/environ", pid)); err != nil || strings.Join(env, "\n") != want {
			t.Errorf("environment of pid %d: %q, %v, want %q", pid, env, err, want)
		}
	}
}
