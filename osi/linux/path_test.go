package linux

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// pathOf resolves a dentry in a mount.
func pathOf(w *world, p place, d arch.GVA) (string, error) {
	s := w.open()
	return s.newResolver(s.fresh()).path(pathKey{p.mnt, d})
}

func TestPaths(t *testing.T) {
	bothKernels(t, func(t *testing.T, w *world) {
		long := strings.Repeat("long", 50)
		home := w.path("/home", 2)
		disk := w.mountFS("ext4", w.rootFS, home)
		nested := w.mountFS("tmpfs", disk, w.dentry(disk.root, "tmp", 3))
		sub := w.dentry(disk.root, "sub", 8)
		bind := w.mountFS("", w.rootFS, w.path("/srv", 2))
		bind.root = sub
		w.set("mount", bind.mount, "mnt.mnt_root", sub)
		deleted := w.dentry(disk.root, "gone", 4)
		w.set("dentry", deleted, "d_hash.pprev", 0)
		for _, tt := range []struct {
			on   place
			d    arch.GVA
			want string
		}{
			{w.rootFS, w.rootFS.root, "/"},
			{w.rootFS, w.path("/usr/bin/env", 1), "/usr/bin/env"},
			{w.rootFS, w.path("/"+long+"/x", 1), "/" + long + "/x"},
			{disk, disk.root, "/home"},
			{disk, w.dentry(disk.root, "me", 5), "/home/me"},
			{disk, deleted, "/home/gone (deleted)"},
			{nested, w.dentry(nested.root, "a\nb", 6), "/home/tmp/a\nb"},
			{bind, w.dentry(sub, "in", 7), "/srv/in"},
			{bind, w.dentry(disk.root, "moved out", 7), "/moved out"}, // of the mount's root: the kernel stops too
		} {
			got, err := pathOf(w, tt.on, tt.d)
			if err != nil || got != tt.want {
				t.Errorf("path = %q, %v, want %q", got, err, tt.want)
			}
		}
	})
}

func TestPseudoFilesAreNamedAsProcDoes(t *testing.T) {
	w := newWorld(t, false)
	ops := w.alloc()
	w.set("dentry_operations", ops, "d_dname", arch.GVA(0xffffffff81000000))
	nsInode := func(d arch.GVA) arch.GVA {
		ns, nsOps := w.alloc(), w.alloc()
		w.set("inode", w.ptr("dentry", d, "d_inode"), "i_private", ns)
		w.set("ns_common", ns, "ops", nsOps)
		w.set("proc_ns_operations", nsOps, "name", w.str("net"))
		return d
	}
	for _, tt := range []struct{ fs, name, want string }{
		{"pipefs", "", "pipe:[77]"}, {"sockfs", "TCP", "socket:[77]"},
		{"anon_inodefs", "[eventfd]", "anon_inode:[eventfd]"}, {"pidfs", "", "anon_inode:[pidfd]"},
		{"nsfs", "", "net:[77]"}, {"tmpfs", "memfd:a memfd", "/memfd:a memfd (deleted)"},
	} {
		p := w.mountFS(tt.fs, place{}, 0)
		d := w.dentry(p.root, tt.name, 77)
		w.set("dentry", d, "d_parent", d)
		w.set("dentry", d, "d_op", ops)
		if tt.fs == "nsfs" {
			nsInode(d)
		}
		if got, err := pathOf(w, p, d); err != nil || got != tt.want {
			t.Errorf("%s: path = %q, %v, want %q", tt.fs, got, err, tt.want)
		}
	}
	// A dentry with operations, none of which makes names, is like any other.
	plain := w.alloc()
	d := w.path("/proc", 1)
	w.set("dentry", d, "d_op", plain)
	if got, err := pathOf(w, w.rootFS, d); err != nil || got != "/proc" {
		t.Errorf("path = %q, %v, want /proc", got, err)
	}
}

func TestHostilePathsEnd(t *testing.T) {
	for name, build := range map[string]func(w *world) (place, arch.GVA){
		"two directories in each other": func(w *world) (place, arch.GVA) {
			a := w.path("/a/b", 1)
			w.set("dentry", w.ptr("dentry", a, "d_parent"), "d_parent", a)
			return w.rootFS, a
		},
		"two mounts on each other": func(w *world) (place, arch.GVA) {
			a := w.mountFS("ext4", w.rootFS, w.path("/x", 1))
			b := w.mountFS("ext4", a, a.root)
			w.set("mount", a.mount, "mnt_parent", b.mount)
			w.set("mount", a.mount, "mnt_mountpoint", b.root)
			return a, a.root
		},
		"a name of a gigabyte": func(w *world) (place, arch.GVA) {
			d := w.path("/x", 1)
			w.set("dentry", d, "d_name.len", 1<<30)
			return w.rootFS, d
		},
		"a name in user memory": func(w *world) (place, arch.GVA) {
			d := w.path("/x", 1)
			w.set("dentry", d, "d_name.name", 0x1000)
			return w.rootFS, d
		},
		"a dentry in user memory": func(w *world) (place, arch.GVA) { return w.rootFS, 0x1000 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false)
			p, d := build(w)
			if got, err := pathOf(w, p, d); !errors.Is(err, osi.ErrCorrupt) {
				t.Errorf("path = %q, %v, want ErrCorrupt", got, err)
			}
		})
	}
}

func TestOverlayMappingShowsTheUpperPath(t *testing.T) {
	w := newWorld(t, false)
	task, _, _ := shell(w)
	s := w.open()
	m, err := s.MappingAt(t.Context(), handleOf(task), 0x700000)
	if err != nil {
		t.Fatal(err)
	}
	file := w.file(w.rootFS, w.path("/lower/libc", 9), 0, 0)
	upper := w.path("/merged/libc", 9)
	w.set("file", file, "f_mode", fmodeBacking)
	w.set("backing_file", file, "user_path.mnt", w.rootFS.mnt)
	w.set("backing_file", file, "user_path.dentry", upper)
	mm := w.ptr("task_struct", task, "mm")
	e, _, err := newMapleTree(s.kernel, s.l).find(w.ptr("mm_struct", mm, "mm_mt.ma_root"), 0x700000)
	if err != nil {
		t.Fatal(err)
	}
	w.set("vm_area_struct", e.value, "vm_file", file)
	if got, err := s.MappingAt(t.Context(), handleOf(task), 0x700000); err != nil || got.Name != "/merged/libc" || m.Name == got.Name {
		t.Errorf("mapping of a backing file is named %q, %v", got.Name, err)
	}
}

// openFiles gives a process a table of files: descriptor to file.
func openFiles(w *world, task arch.GVA, files map[int]arch.GVA, cloexec ...int) arch.GVA {
	fs, fdt, array, open, exec := w.alloc(), w.alloc(), w.alloc(), w.alloc(), w.alloc()
	w.set("task_struct", task, "files", fs)
	w.set("files_struct", fs, "fdt", fdt)
	w.set("fdtable", fdt, "max_fds", 128)
	w.set("fdtable", fdt, "fd", array)
	w.set("fdtable", fdt, "open_fds", open)
	w.set("fdtable", fdt, "close_on_exec", exec)
	mark := func(bitmap arch.GVA, fd int) {
		at := bitmap + arch.GVA(fd/64*8)
		w.s.PutUint64(at, w.s.Uint64(at)|1<<(fd%64))
	}
	for fd, f := range files {
		w.s.PutUint64(array+arch.GVA(8*fd), uint64(f))
		mark(open, fd)
	}
	for _, fd := range cloexec {
		mark(exec, fd)
	}
	return fdt
}

func TestFiles(t *testing.T) {
	w := newWorld(t, false)
	task := w.process(1, "p")
	tty, log := w.path("/dev/tty", 3), w.path("/var/log/x", 4)
	openFiles(w, task, map[int]arch.GVA{
		0: w.file(w.rootFS, tty, 0, 0o2), 65: w.file(w.rootFS, log, 1<<40, 0o102001), 7: 0, // 7 is being opened
	}, 65)
	s := w.open()
	want := []osi.File{
		{FD: 0, Path: "/dev/tty", Flags: 2, FlagNames: "O_RDWR", Inode: 3},
		{FD: 65, Path: "/var/log/x", Pos: 1 << 40, Flags: 0o2102001, FlagNames: "O_WRONLY|O_APPEND|O_LARGEFILE|O_CLOEXEC", Inode: 4},
	}
	got, errs := collectErr(s.Files(t.Context(), handleOf(task)))
	if diff := cmp.Diff(want, got); errs != nil || diff != "" {
		t.Errorf("%v -want +got\n%s", errs, diff)
	}
	if f, err := s.FileByFD(t.Context(), handleOf(task), 65); err != nil || f != want[1] {
		t.Errorf("FileByFD(65) = %+v, %v", f, err)
	}
	for _, fd := range []int{-1, 1, 7, 128, 1 << 40} {
		if f, err := s.FileByFD(t.Context(), handleOf(task), fd); !errors.Is(err, osi.ErrNoFile) {
			t.Errorf("FileByFD(%d) = %+v, %v, want ErrNoFile", fd, f, err)
		}
	}
	fs := w.alloc()
	w.set("task_struct", task, "fs", fs)
	w.set("fs_struct", fs, "pwd.mnt", w.rootFS.mnt)
	w.set("fs_struct", fs, "pwd.dentry", w.path("/srv", 5))
	if cwd, err := s.Cwd(t.Context(), handleOf(task)); err != nil || cwd != "/srv" {
		t.Errorf("Cwd = %q, %v", cwd, err)
	}
}

func TestFilesOfNoTable(t *testing.T) {
	w := newWorld(t, false)
	task := w.process(1, "zombie")
	got, errs := collectErr(w.open().Files(t.Context(), handleOf(task)))
	if got != nil || errs != nil {
		t.Errorf("files of a process without any: %v, %v", got, errs)
	}
	fdt := openFiles(w, task, nil)
	w.set("fdtable", fdt, "max_fds", 1<<30)
	if got, errs := collectErr(w.open().Files(t.Context(), handleOf(task))); len(errs) != 1 || !errors.Is(errs[0], osi.ErrCorrupt) {
		t.Errorf("a table of 2^30 files: %v, %v, want ErrCorrupt", got, errs)
	}
}

func TestOneBadFileDoesNotHideTheOthers(t *testing.T) {
	w := newWorld(t, false)
	task := w.process(1, "p")
	openFiles(w, task, map[int]arch.GVA{1: 0x1000, 2: w.file(w.rootFS, w.path("/ok", 1), 0, 0)})
	got, errs := collectErr(w.open().Files(t.Context(), handleOf(task)))
	if len(got) != 1 || got[0].Path != "/ok" || len(errs) != 1 {
		t.Errorf("%+v, %v, want /ok and one error", got, errs)
	}
}

func TestOpenFlags(t *testing.T) {
	for f, want := range map[uint32]string{
		0: "O_RDONLY", 3: "O_ACCMODE", 0o4010002: "O_RDWR|O_SYNC", 0o10001: "O_WRONLY|O_DSYNC",
		0o20200000: "O_RDONLY|O_TMPFILE", 0o200000: "O_RDONLY|O_DIRECTORY", 0x80000000: "O_RDONLY|0x80000000",
	} {
		if got := openFlags(false, f); got != want {
			t.Errorf("openFlags(%#o) = %s, want %s", f, got, want)
		}
	}
}

func TestOpenFlagsOfARM64(t *testing.T) {
	for f, want := range map[uint32]string{
		0o40000: "O_RDONLY|O_DIRECTORY", 0o100000: "O_RDONLY|O_NOFOLLOW", 0o200001: "O_WRONLY|O_DIRECT", 0o400002: "O_RDWR|O_LARGEFILE",
		0o20040000: "O_RDONLY|O_TMPFILE", 0o2004000: "O_RDONLY|O_NONBLOCK|O_CLOEXEC",
	} {
		if got := openFlags(true, f); got != want {
			t.Errorf("openFlags(%#o) = %s, want %s", f, got, want)
		}
	}
}

func TestModules(t *testing.T) {
	for _, old := range []bool{false, true} {
		w := newWorld(t, old)
		head := w.f.symbols["modules"]
		add := func(name string, state int, base, initBase arch.GVA) {
			m := w.alloc()
			w.s.PutString(w.field("module", m, "name"), name)
			w.set("module", m, "state", state)
			if old {
				w.set("module", m, "core_layout.base", base)
				w.set("module", m, "core_layout.size", 0x4000)
				w.set("module", m, "init_layout.base", initBase)
				w.set("module", m, "init_layout.size", 0x1000)
			} else {
				for i, at := range []arch.GVA{base, 0, initBase} { // regions of 24 bytes, see fixed
					w.s.PutUint64(m+200+arch.GVA(24*i), uint64(at))
					w.s.PutUint32(m+212+arch.GVA(24*i), uint32([]int{0x4000, 0x77, 0x1000}[i]))
				}
			}
			w.push(head, w.field("module", m, "list"))
		}
		const at = 0xffffffffc0000000
		add("fat", 0, at, 0)
		add("loading", 1, at+0x10000, at+0x20000)
		add("unformed", moduleUnformed, at+0x30000, 0)
		s := w.open()
		got, errs := collectErr(s.Modules(t.Context()))
		want := []osi.Module{
			{Name: "fat", Base: at, Size: 0x4000, Ranges: []osi.Range{{Start: at, End: at + 0x4000}}},
			{Name: "loading", Base: at + 0x10000, Size: 0x5000, Ranges: []osi.Range{{Start: at + 0x10000, End: at + 0x14000}, {Start: at + 0x20000, End: at + 0x21000}}},
		}
		if diff := cmp.Diff(want, got); errs != nil || diff != "" {
			t.Errorf("old %v: %v -want +got\n%s", old, errs, diff)
		}
		if m, err := s.ModuleAt(t.Context(), at+0x20fff); err != nil || m.Name != "loading" {
			t.Errorf("ModuleAt(init section) = %s, %v", m.Name, err)
		}
		if m, err := s.ModuleAt(t.Context(), at+0x21000); !errors.Is(err, osi.ErrNoModule) {
			t.Errorf("ModuleAt(nothing) = %s, %v, want ErrNoModule", m.Name, err)
		}
	}
}

// FuzzStructures lets the fuzzer overwrite the kernel's structures: every
// question must end, without a panic, in values or errors.
func FuzzStructures(f *testing.F) {
	w := newWorld(f, false)
	task, _, _ := shell(w)
	openFiles(w, task, map[int]arch.GVA{1: w.file(w.rootFS, w.path("/ok", 1), 0, 0)})
	w.thread(task, 2, "second")
	s := w.open()
	n := uint64(w.mapped - slab)
	image := map[arch.GVA][]byte{}
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	f.Fuzz(func(t *testing.T, patch []byte) {
		for at, old := range image {
			w.s.Put(at, old)
			delete(image, at)
		}
		for ; len(patch) >= 11; patch = patch[11:] {
			off := uint64(patch[0])<<16 | uint64(patch[1])<<8 | uint64(patch[2])
			at := slab + arch.GVA(off*8%n)
			pa, err := arch.Walk(w.b, w.s.Mode(), w.s.Root(), at)
			if err != nil {
				continue
			}
			if image[at] == nil {
				image[at] = make([]byte, 8)
				if _, err := w.b.ReadPhysical(image[at], pa.Addr); err != nil {
					t.Fatal(err)
				}
			}
			w.s.Put(at, patch[3:11])
		}
		askEverything(t, s, task)
	})
}

// askEverything asks every question once. What comes is anything but endless.
func askEverything(t *testing.T, s *system, task arch.GVA) {
	ctx, h := t.Context(), handleOf(task)
	const most = 10000
	count(t, most, s.Processes(ctx))
	count(t, most, s.ProcessHandles(ctx))
	count(t, most, s.Threads(ctx, h))
	count(t, most, s.Mappings(ctx, h))
	count(t, most, s.Libraries(ctx, h))
	count(t, most, s.Files(ctx, h))
	count(t, most, s.Modules(ctx))
	for _, err := range []error{
		second(s.MappingAt(ctx, h, 0x700000)), second(s.FileByFD(ctx, h, 1)), second(s.Cwd(ctx, h)), second(s.Memory(ctx, h)),
		second(s.ThreadAt(ctx, task)), second(s.Current(ctx, 0)), second(s.ProcessByPID(ctx, 1)), second(s.ModuleAt(ctx, slab)),
	} {
		if err != nil && fatal(err) {
			t.Fatal(err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func count[T any](t *testing.T, most int, seq func(func(T, error) bool)) {
	n := 0
	for range seq {
		if n++; n > most {
			t.Fatalf("more than %d entries of %T", most, *new(T))
		}
	}
}

var _ = vitrinetest.Page4K
