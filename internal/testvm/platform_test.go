package testvm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A kernel's name decides about the machine, where the options do not.
func TestPlatforms(t *testing.T) {
	for _, c := range []struct {
		kernel, program string
		words           []string
	}{
		{"6.1-cloud", "qemu-system-x86_64", []string{"pc,accel=tcg", "max", "isa-serial,chardev=console", "isa-serial,chardev=link"}},
		{"6.12-cloud", "qemu-system-x86_64", []string{"pc,accel=tcg", "max,-cx16"}},
		{"6.1-cloud-arm64", "qemu-system-aarch64", []string{"virt,accel=tcg", "cortex-a72", "chardev:console", "pci-serial,chardev=link"}},
		{"6.12-arm64", "qemu-system-aarch64", []string{"virt,accel=tcg", "cortex-a72"}},
	} {
		p := platformOf(c.kernel)
		if p.qemu != c.program {
			t.Errorf("%s runs in %s, want %s", c.kernel, p.qemu, c.program)
		}
		o := (&Options{Kernel: c.kernel}).withDefaults()
		args := o.arguments(&Kernel{Image: "/image"}, pathsIn("/dir"))
		for _, w := range c.words {
			if !slices.Contains(args, w) {
				t.Errorf("%s: no %s in %q", c.kernel, w, args)
			}
		}
		if line := args[slices.Index(args, "-append")+1]; !strings.HasPrefix(line, "console="+p.console+" ") {
			t.Errorf("%s: command line %q", c.kernel, line)
		}
	}
	if o := (&Options{Kernel: "6.12-arm64", CPU: "max", Machine: "virt,gic-version=3"}).withDefaults(); o.CPU != "max" || o.Machine != "virt,gic-version=3" {
		t.Errorf("what was asked for became %s and %s", o.CPU, o.Machine)
	}
	for _, s := range sources {
		if platforms[s.arch] == nil || strings.HasSuffix(s.name, arm64) != (s.arch == arm64) {
			t.Errorf("kernel %s is for %q", s.name, s.arch)
		}
	}
}

// A guest of another kind than the host gets no library of the host's.
func TestLibrariesOfAnotherProcessor(t *testing.T) {
	root := t.TempDir()
	other := platforms[arm64]
	if !other.foreign() {
		other = platforms[amd64]
	}
	for _, dir := range []string{other.libraries[0], other.libraries[len(other.libraries)-1]} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "libc.so.6"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := other.findLibrary("libc.so.6", root); err != nil || p.root != root || p.file != other.libraries[0]+"/libc.so.6" {
		t.Errorf("libc is %+v, %v", p, err)
	}
	if p, err := other.findLibrary("/bin/sh", root); err == nil {
		t.Errorf("the host's shell was taken: %+v", p)
	}
}
