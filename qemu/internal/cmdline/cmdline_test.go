package cmdline

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name string
		args string
		want Guest
	}{
		{"nothing", "qemu-system-x86_64", Guest{Accel: "tcg", MemoryBytes: 128 << 20, CPUs: 1}},
		{"plain", "qemu-system-x86_64 -name web -m 512 -smp 4 -enable-kvm -qmp unix:/run/web.qmp,server=on,wait=off",
			Guest{Name: "web", Accel: "kvm", MemoryBytes: 512 << 20, CPUs: 4, QMP: []string{"/run/web.qmp"}}},
		{"long forms", "qemu-system-x86_64 --name guest=db,debug-threads=on -m size=1.5G,slots=2,maxmem=8G -smp sockets=2,cores=2,threads=2 -machine q35,accel=kvm:tcg",
			Guest{Name: "db", Accel: "kvm", MemoryBytes: 3 << 29, CPUs: 8}},
		{"old socket flags", "qemu-system-x86_64 -name x,process=y -qmp unix:rel.qmp,server,nowait -qmp tcp::4444,server -qmp-pretty tcp:[::]:4445,server=on",
			Guest{Name: "x", Accel: "tcg", MemoryBytes: 128 << 20, CPUs: 1, QMP: []string{"rel.qmp", "tcp:127.0.0.1:4444", "tcp:[::1]:4445"}}},
		{"chardev behind its monitor", "qemu-system-x86_64 -mon chardev=m,mode=control,pretty=on -chardev socket,id=m,path=/run/a,,b,server=on,wait=off -mon chardev=h,mode=readline -chardev socket,id=h,path=/run/h,server=on",
			Guest{Accel: "tcg", MemoryBytes: 128 << 20, CPUs: 1, QMP: []string{"/run/a,b"}}},
		{"libvirt", "/usr/bin/qemu-system-x86_64 -name guest=deb12,debug-threads=on -accel kvm -m size=2097152k -uuid 1-2 -chardev socket,id=charmonitor,fd=33,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control",
			Guest{Name: "deb12", Accel: "kvm", MemoryBytes: 2 << 30, CPUs: 1, Libvirt: true, ID: "1-2"}},
		{"a client, a terminal, an abstract name", "kvm -qmp unix:/x -qmp stdio -qmp unix:/y,server=off -qmp unix:z,server=on,abstract=on",
			Guest{Accel: "kvm", MemoryBytes: 128 << 20, CPUs: 1}},
		{"a path with a sign", "qemu-system-x86_64 -qmp unix:/run/a=b,server=on", Guest{Accel: "tcg", MemoryBytes: 128 << 20, CPUs: 1, QMP: []string{"/run/a=b"}}},
		{"a value is missing", "qemu-system-x86_64 -name", Guest{Accel: "tcg", MemoryBytes: 128 << 20, CPUs: 1}},
	} {
		if d := cmp.Diff(tt.want, Parse(strings.Fields(tt.args))); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}

func TestIsQEMU(t *testing.T) {
	for path, want := range map[string]bool{
		"/usr/bin/qemu-system-x86_64": true, "qemu-system-x86": true, "/usr/libexec/qemu-kvm": true, "/usr/bin/kvm": true,
		"/usr/bin/qemu-img": false, "qemu-storage-da": false, "": false, "/bin/bash": false,
	} {
		if got := IsQEMU(path); got != want {
			t.Errorf("IsQEMU(%q) = %v", path, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("q\x00-name\x00guest=a,,b\x00-m\x008G\x00-smp\x00cpus=2\x00-qmp\x00unix:x,server")
	f.Add("q\x00-chardev\x00socket,id=m,host=,port=1,server=on\x00-mon\x00m,mode=control")
	f.Fuzz(func(t *testing.T, s string) {
		g := Parse(strings.Split(s, "\x00"))
		if g.CPUs < 1 || g.Accel == "" && !strings.Contains(s, "accel") {
			t.Errorf("got %+v", g)
		}
		for _, q := range g.QMP {
			if q == "" {
				t.Error("an empty socket")
			}
		}
	})
}
