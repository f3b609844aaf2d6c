package ntguest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
)

//go:embed src
var sources embed.FS

// kernelSources are what the kernel is made of, besides services.S and one of the entries.
var kernelSources = []string{
	"lib.c", "serial.c", "mem.c", "cpu.c", "sched.c", "pe.c", "image.c", "objects.c", "vad.c", "process.c", "user.c",
	"exports.c", "syscall.c", "svctable.c", "truth.c", "main.c", "accessors.S", "services.S", "prog.S",
}

var commonFlags = []string{
	"-std=gnu2x", "-O2", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
	"-fno-strict-aliasing", "-fno-tree-loop-distribute-patterns", "-fcf-protection=none", "-mno-red-zone", "-mgeneral-regs-only", "-Wall", "-Wextra", "-Werror",
	"-Wno-unused-parameter", "-Wno-array-bounds",
}

// Build returns the path of the guest's kernel for a layout of data/nt-layouts, such as "10.0.19045.2965-x64", which
// QEMU boots by -kernel. It is built with gcc and binutils if it is not in the cache. Processes may build at once.
func Build(ctx context.Context, name string) (string, error) {
	data, err := DataDir()
	if err != nil {
		return "", fmt.Errorf("build NT test guest: %w", err)
	}
	l, err := readLayout(data, name)
	if err != nil {
		return "", fmt.Errorf("build NT test guest: %w", err)
	}
	files, err := l.files()
	if err != nil {
		return "", fmt.Errorf("build NT test guest: %w", err)
	}
	cache, err := testvm.CacheDir()
	if err != nil {
		return "", err
	}
	kernel := filepath.Join(cache, "ntguest-"+name+"-"+hash(files))
	if _, err := os.Stat(kernel); err == nil {
		return kernel, nil
	}
	dir, err := os.MkdirTemp(cache, "ntguest-build-")
	if err != nil {
		return "", fmt.Errorf("build NT test guest: %w", err)
	}
	defer os.RemoveAll(dir)
	for f, text := range files {
		if err := os.WriteFile(filepath.Join(dir, f), text, 0o600); err != nil {
			return "", fmt.Errorf("build NT test guest: %w", err)
		}
	}
	if err := l.compile(ctx, dir); err != nil {
		return "", fmt.Errorf("build NT test guest for %s: %w", name, err)
	}
	// Renaming makes the file appear whole, whoever else builds the same.
	if err := os.Rename(filepath.Join(dir, "guest.bin"), kernel); err != nil {
		return "", fmt.Errorf("build NT test guest: %w", err)
	}
	return kernel, nil
}

// files returns the sources by name, those made for the layout too.
func (l *layout) files() (map[string][]byte, error) {
	files := map[string][]byte{
		"layout.h": l.header(), "exports.inc": l.exports(), "services.inc": l.serviceList(), "services.S": l.serviceCode(),
		"flags": []byte(strings.Join(append(l.flags(), commonFlags...), " ")),
	}
	entries, err := sources.ReadDir("src")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if files[e.Name()], err = sources.ReadFile("src/" + e.Name()); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func hash(files map[string][]byte) string {
	h := sha256.New()
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(h, "%s %d\n", n, len(files[n]))
		h.Write(files[n])
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func (l *layout) flags() []string {
	switch {
	case l.Arch == "x64":
		return []string{"-m64", "-fPIE", "-DMODE_X64"}
	case l.pae():
		return []string{"-m32", "-march=i686", "-fno-pic", "-DMODE_PAE"}
	}
	return []string{"-m32", "-march=i686", "-fno-pic", "-DMODE_X86"}
}

// compile makes guest.bin in dir: the program in the kernel, the kernel in the loader.
func (l *layout) compile(ctx context.Context, dir string) error {
	flags := append(slices.Clone(commonFlags), l.flags()...)
	emulation, entry := "elf_x86_64", "entry64.S"
	if l.Arch == "x86" {
		emulation, entry = "elf_i386", "entry32.S"
	}
	parts := append(slices.Clone(kernelSources), entry)
	var objects []string
	for _, s := range parts {
		objects = append(objects, strings.TrimSuffix(s, filepath.Ext(s))+".o")
	}
	steps := [][]string{
		append([]string{"gcc", "-c", "-fPIE", "-o", "program.o", "program.c"}, flags...),
		{"ld", "-m", emulation, "-T", "program.ld", "-o", "program.elf", "program.o"},
		{"objcopy", "-O", "binary", "program.elf", "program.bin"},
		slices.Concat([]string{"gcc", "-c"}, flags, parts),
	}
	loader := append([]string{"-m32", "-march=i686", "-fno-pic", l.flags()[len(l.flags())-1]}, commonFlags...)
	loaded := "alloc,load,contents"
	steps = append(steps,
		append([]string{"ld", "-m", emulation, "-pie", "--no-dynamic-linker", "-z", "norelro", "-z", "notext", "-z", "noexecstack", "-T", "kernel.ld", "-o", "kernel.elf"}, objects...),
		[]string{"objcopy", "-O", "binary", "--set-section-flags", ".bss=" + loaded, "--set-section-flags", ".paged=" + loaded, "kernel.elf", "kernel.bin"},
		append([]string{"gcc", "-c", "-o", "loader.c.o", "loader.c"}, loader...),
		append([]string{"gcc", "-c", "-o", "loader.S.o", "loader.S"}, loader...),
		[]string{"ld", "-m", "elf_i386", "-T", "loader.ld", "-o", "guest.elf", "loader.S.o", "loader.c.o"},
		[]string{"objcopy", "-O", "binary", "guest.elf", "guest.bin"},
	)
	for _, s := range steps {
		cmd := exec.CommandContext(ctx, s[0], s[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(s, " "), err, bytes.TrimSpace(out))
		}
	}
	return nil
}
