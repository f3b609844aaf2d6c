package app

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTarget(t *testing.T) {
	dir := t.TempDir()
	image, sock := filepath.Join(dir, "mem"), filepath.Join(dir, "s")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for in, want := range map[string]Target{
		"vm1":            {Kind: TargetName},
		"a vm: odd name": {Kind: TargetName},
		"qmp:/run/x":     {Kind: TargetQMP, Path: "/run/x"},
		"qmp:rel":        {Kind: TargetQMP, Path: "rel"},
		"pid:12":         {Kind: TargetPID, PID: 12},
		"/no/such/image": {Kind: TargetImage, Path: "/no/such/image"},
		image:            {Kind: TargetImage, Path: image},
		sock:             {Kind: TargetQMP, Path: sock},
		dir:              {Kind: TargetImage, Path: dir},
	} {
		want.Text = in
		if want.Kind == TargetImage {
			want.Path = in
		}
		got, err := ParseTarget(in)
		if err != nil {
			t.Errorf("ParseTarget(%q): %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ParseTarget(%q) (-want +got):\n%s", in, diff)
		}
	}
	for _, in := range []string{"", "qmp:", "pid:", "pid:x", "pid:0", "pid:-3", "pid:99999999999999999999"} {
		if got, err := ParseTarget(in); !errors.Is(err, ErrTarget) {
			t.Errorf("ParseTarget(%q) = %+v, %v; want ErrTarget", in, got, err)
		}
	}
}
