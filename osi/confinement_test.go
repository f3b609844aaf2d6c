package osi

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestContainerOf(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	uid := "11111111-2222-3333-4444-555555555555"
	under := strings.ReplaceAll(uid, "-", "_")
	for _, tt := range []struct {
		path string
		want Container
	}{
		{"/", Container{}},
		{"/system.slice/ssh.service", Container{}},
		{"/system.slice/docker.service", Container{}},
		{"/docker/" + id, Container{Runtime: "docker", ID: id}},
		{"/docker/" + id + "/init.scope", Container{Runtime: "docker", ID: id}},
		{"/system.slice/docker-" + id + ".scope", Container{Runtime: "docker", ID: id}},
		{"/docker/" + id[:63], Container{}},
		{"/machine.slice/libpod-" + id + ".scope/container", Container{Runtime: "podman", ID: id}},
		{"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope", Container{Runtime: "podman", ID: id}},
		{"/libpod_parent/libpod-" + id, Container{Runtime: "podman", ID: id}},
		{"/machine.slice/libpod-conmon-" + id + ".scope", Container{}},
		{"/kubepods/burstable/pod" + uid + "/" + id, Container{Runtime: "kubernetes", ID: id, Pod: uid}},
		{"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/cri-containerd-" + id + ".scope", Container{Runtime: "kubernetes", ID: id, Pod: under}},
		{"/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id + ".scope", Container{Runtime: "kubernetes", ID: id, Pod: under}},
		{"/kubepods.slice/kubepods-pod" + under + ".slice", Container{Runtime: "kubernetes", Pod: under}},
		{"/kubepods/besteffort/pod" + strings.Repeat("ab", 16) + "/" + id, Container{Runtime: "kubernetes", ID: id, Pod: strings.Repeat("ab", 16)}},
		{"/lxc/web1", Container{Runtime: "lxc", ID: "web1"}},
		{"/lxc.payload.web1/system.slice/cron.service", Container{Runtime: "lxc", ID: "web1"}},
		{"/lxc.payload/web1", Container{Runtime: "lxc", ID: "web1"}},
		{"/lxc.monitor.web1", Container{}},
	} {
		got, ok := ContainerOf(tt.path)
		if diff := cmp.Diff(tt.want, got); diff != "" || ok != (tt.want != Container{}) {
			t.Errorf("ContainerOf(%q), %v (-want +got):\n%s", tt.path, ok, diff)
		}
	}
}

// plain is a system without extras.
type plain struct{ System }

func (plain) OS() string { return "plain" }

func TestSystemsWithoutExtras(t *testing.T) {
	if _, err := Environ(t.Context(), plain{}, Handle{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Environ: %v", err)
	}
	if _, err := ConfinementOf(t.Context(), plain{}, Handle{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("ConfinementOf: %v", err)
	}
	if err := Events(t.Context(), plain{}, nil, nil, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Events: %v", err)
	}
}
