package testvm

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// applets are the busybox commands that guests have in /bin.
var applets = strings.Fields("sh ash cat chmod chown cp cut date dd df dmesg echo env false find free grep head hostname id insmod kill ln ls lsmod md5sum mkdir mkfifo mknod mount mv nice nproc od pidof printf ps pwd readlink rm rmdir rmmod sed seq sha256sum sleep sort stat stty sync tail tee test top touch tr true umount uname uniq usleep wc xargs yes poweroff reboot")

// dynamic lists programs of the host that guests have too, with the libraries they are linked to. They are in every
// Debian system.
var dynamic = []string{"/usr/bin/tail", "/bin/bash", "/bin/sed"}

// archive collects the files of an initramfs by their path in the guest, without the leading slash.
type archive struct {
	records map[string]cpio.Record
}

func newArchive() *archive {
	a := &archive{records: map[string]cpio.Record{}}
	for _, d := range []string{"bin", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/lib", "var"} {
		a.dir(d)
	}
	// The kernel opens /dev/console for the first process before anything could mount a devtmpfs.
	a.records["dev/console"] = cpio.CharDev("dev/console", 0o600, 5, 1)
	a.records["dev/null"] = cpio.CharDev("dev/null", 0o666, 1, 3)
	a.file("etc/hostname", []byte("vitrine-guest\n"), 0o644)
	a.file("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n"), 0o644)
	a.file("etc/group", []byte("root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n"), 0o644)
	return a
}

// dir adds a directory and those above it.
func (a *archive) dir(name string) {
	if name = cpio.Normalize(name); name == "." || name == "" {
		return
	}
	if _, there := a.records[name]; !there {
		a.dir(path.Dir(name))
		a.records[name] = cpio.Directory(name, 0o755)
	}
}

func (a *archive) file(name string, content []byte, perm uint64) {
	name = cpio.Normalize(name)
	a.dir(path.Dir(name))
	a.records[name] = cpio.StaticFile(name, string(content), perm)
}

func (a *archive) symlink(name, target string) {
	name = cpio.Normalize(name)
	a.dir(path.Dir(name))
	a.records[name] = cpio.Symlink(name, target)
}

// copyFile adds a file of the host.
func (a *archive) copyFile(name, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.file(name, b, 0o755)
	return nil
}

// write writes the archive, compressed, parents before children.
func (a *archive) write(w io.Writer) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	cw := cpio.Newc.Writer(z)
	for _, name := range slices.Sorted(maps.Keys(a.records)) {
		if err := cw.WriteRecord(cpio.MakeReproducible(a.records[name])); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return errors.Join(cpio.WriteTrailer(cw), z.Close())
}

// addBusybox adds busybox and its commands; root is the folder below which it lies.
func (a *archive) addBusybox(root string) error {
	for _, file := range []string{"bin/busybox", "usr/bin/busybox"} {
		from := filepath.Join("/", root, file)
		if !isStatic(from) {
			continue
		}
		if err := a.copyFile("bin/busybox", from); err != nil {
			return err
		}
		for _, name := range applets {
			a.symlink("bin/"+name, "busybox")
		}
		return nil
	}
	return errors.New("no static busybox: apt-get install busybox-static")
}

func isStatic(file string) bool {
	f, err := elf.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// addProgram adds a dynamically linked program, its interpreter and its libraries, at the same paths. Libraries that are
// not below the program's root are the host's.
func (a *archive) addProgram(on *platform, p program) error {
	if _, there := a.records[cpio.Normalize(p.file)]; there {
		return nil
	}
	from := filepath.Join("/", p.root, p.file)
	if err := a.copyFile(p.file, from); err != nil {
		return err
	}
	interp, needed, err := linkedTo(from)
	if err != nil {
		return err
	}
	if interp != "" {
		needed = append(needed, interp)
	}
	for _, lib := range needed {
		at, err := on.findLibrary(lib, p.root)
		if err != nil {
			return fmt.Errorf("add %s: %w", p.file, err)
		}
		if err := a.addProgram(on, at); err != nil {
			return err
		}
	}
	return nil
}

func linkedTo(file string) (interp string, needed []string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(p.Open())
			if err != nil {
				return "", nil, err
			}
			interp = string(bytes.TrimRight(b, "\x00"))
		}
	}
	needed, err = f.ImportedLibraries()
	return interp, needed, err
}

// findLibrary finds a library by its name, or an interpreter by its path: the host's before what was unpacked below
// root, so that a program gets one C library; those of a host of another kind are none.
func (on *platform) findLibrary(name, root string) (program, error) {
	roots := []string{"", root}
	if on.foreign() {
		roots = roots[1:]
	}
	for _, r := range roots {
		if filepath.IsAbs(name) && exists(filepath.Join("/", r, name)) {
			return program{name, r}, nil
		}
		for _, dir := range on.libraries {
			if file := filepath.Join(dir, name); !filepath.IsAbs(name) && exists(filepath.Join("/", r, file)) {
				return program{file, r}, nil
			}
		}
	}
	return program{}, fmt.Errorf("find library %s in %s: %w", name, strings.Join(on.libraries, ", "), fs.ErrNotExist)
}

// addModules adds the kernel's modules and the list of those to load at start.
func (a *archive) addModules(k *Kernel) error {
	var order []string
	for _, name := range slices.Concat(guestModules, spareModules) {
		from := filepath.Join(k.Modules, name+".ko")
		if !exists(from) {
			continue // built in
		}
		if err := a.copyFile("lib/modules/"+name+".ko", from); err != nil {
			return err
		}
		if slices.Contains(guestModules, name) {
			order = append(order, name)
		}
	}
	a.file("lib/modules/modules.order", []byte(strings.Join(order, "\n")+"\n"), 0o644)
	return nil
}

// buildInitramfs writes the initramfs of one guest.
func buildInitramfs(to string, k *Kernel, programs []program, o *Options) error {
	a, on := newArchive(), platformOf(o.Kernel)
	root, err := on.basicPrograms(context.Background(), o.Progress)
	if err != nil {
		return err
	}
	if err := a.addBusybox(root); err != nil {
		return err
	}
	for _, file := range dynamic {
		programs = append(programs, program{file: file, root: root})
	}
	for _, p := range programs {
		if err := a.addProgram(on, p); err != nil {
			return err
		}
	}
	if err := a.addModules(k); err != nil {
		return err
	}
	if err := addInit(a, o); err != nil {
		return err
	}
	for name, content := range o.Files {
		a.file(name, content, 0o755)
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	return errors.Join(a.write(f), f.Close())
}

func addInit(a *archive, o *Options) error {
	if o.Script != "" {
		a.file("init", []byte("#!/bin/sh\n"+o.Script), 0o755)
		return nil
	}
	program, err := buildGuest(cmp.Or(platformOf(o.Kernel).goarch, platformOf(o.Kernel).debian))
	if err != nil {
		return err
	}
	if err := a.copyFile("init", program); err != nil || !o.Also32 {
		return err
	}
	if program, err = buildGuest("386"); err != nil {
		return err
	}
	return a.copyFile(wire.Init32, program)
}
