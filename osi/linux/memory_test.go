package linux

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// region is one mapping to be made.
type region struct {
	start, end arch.GVA
	flags      int
	file       arch.GVA
	pgoff      int
}

// mapAll makes the mappings of a process: a tree, or a list and a red-black
// tree (all to the right, which a search does not mind).
func (w *world) mapAll(mm arch.GVA, regions []region) []arch.GVA {
	var all []arch.GVA
	var entries []mapleEntry
	for _, r := range regions {
		v := w.alloc()
		w.set("vm_area_struct", v, "vm_start", r.start)
		w.set("vm_area_struct", v, "vm_end", r.end)
		w.set("vm_area_struct", v, "vm_mm", mm)
		w.set("vm_area_struct", v, "vm_flags", r.flags)
		w.set("vm_area_struct", v, "vm_file", r.file)
		w.set("vm_area_struct", v, "vm_pgoff", r.pgoff)
		all = append(all, v)
		entries = append(entries, mapleEntry{uint64(r.start), uint64(r.end) - 1, v})
	}
	if w.isOld() {
		w.chain(mm, all)
	} else {
		w.set("mm_struct", mm, "mm_mt.ma_root", mapleWorld{w}.tree(entries, 4))
	}
	return all
}

func (w *world) isOld() bool {
	_, old := w.f.fields["mm_struct.mmap"]
	return old
}

func (w *world) chain(mm arch.GVA, all []arch.GVA) {
	w.set("mm_struct", mm, "mmap", all[0])
	w.set("mm_struct", mm, "mm_rb.rb_node", w.field("vm_area_struct", all[0], "vm_rb"))
	for i := 1; i < len(all); i++ {
		w.set("vm_area_struct", all[i-1], "vm_next", all[i])
		w.set("vm_area_struct", all[i], "vm_prev", all[i-1])
		rb := w.field("vm_area_struct", all[i-1], "vm_rb")
		w.set("rb_node", rb, "rb_right", w.field("vm_area_struct", all[i], "vm_rb"))
	}
}

// shell makes a process with the mappings of a small program.
func shell(w *world) (task, mm arch.GVA, vmas []arch.GVA) {
	task = w.process(1, "sh")
	mm, _ = w.memory(task)
	exe := w.file(w.rootFS, w.path("/bin/sh", 11), 0, 0)
	lib := w.file(w.rootFS, w.path("/lib/libc.so.6", 12), 0, 0)
	locale := w.file(w.rootFS, w.path("/usr/share/locale", 13), 0, 0)
	w.set("mm_struct", mm, "exe_file", exe)
	w.set("mm_struct", mm, "start_brk", 0x600000)
	w.set("mm_struct", mm, "brk", 0x621000)
	w.set("mm_struct", mm, "start_stack", 0x7ffd500)
	vmas = w.mapAll(mm, []region{
		{0x400000, 0x401000, vmRead, exe, 0},
		{0x401000, 0x410000, vmRead | vmExec, exe, 1},
		{0x410000, 0x412000, vmRead | vmWrite, 0, 0},
		{0x600000, 0x621000, vmRead | vmWrite, 0, 0},
		{0x700000, 0x701000, vmRead, lib, 0},
		{0x701000, 0x720000, vmRead | vmExec, lib, 1},
		{0x730000, 0x740000, vmRead | vmMayShare, locale, 16},
		{0x750000, 0x752000, vmRead, 0, 0x7ffff},
		{0x7ff0000, 0x7ffe000, vmRead | vmWrite, 0, 0},
	})
	return task, mm, vmas
}

var shellMaps = []osi.Mapping{
	{Range: osi.Range{Start: 0x400000, End: 0x401000}, Perms: "r--p", Name: "/bin/sh", Kind: osi.MappingFile, Inode: 11},
	{Range: osi.Range{Start: 0x401000, End: 0x410000}, Perms: "r-xp", Offset: 0x1000, Name: "/bin/sh", Kind: osi.MappingFile, Inode: 11},
	{Range: osi.Range{Start: 0x410000, End: 0x412000}, Perms: "rw-p"},
	{Range: osi.Range{Start: 0x600000, End: 0x621000}, Perms: "rw-p", Name: "[heap]", Kind: osi.MappingHeap},
	{Range: osi.Range{Start: 0x700000, End: 0x701000}, Perms: "r--p", Name: "/lib/libc.so.6", Kind: osi.MappingFile, Inode: 12},
	{Range: osi.Range{Start: 0x701000, End: 0x720000}, Perms: "r-xp", Offset: 0x1000, Name: "/lib/libc.so.6", Kind: osi.MappingFile, Inode: 12},
	{Range: osi.Range{Start: 0x730000, End: 0x740000}, Perms: "r--s", Offset: 0x10000, Name: "/usr/share/locale", Kind: osi.MappingFile, Inode: 13},
	{Range: osi.Range{Start: 0x750000, End: 0x752000}, Perms: "r--p", Name: "[vvar]"},
	{Range: osi.Range{Start: 0x7ff0000, End: 0x7ffe000}, Perms: "rw-p", Name: "[stack]", Kind: osi.MappingStack},
}

// vvar makes a mapping a special one.
func vvar(w *world, vma arch.GVA) {
	ops, special := w.alloc(), w.alloc()
	w.f.symbols["special_mapping_vmops"] = ops
	w.set("vm_special_mapping", special, "name", w.str("[vvar]"))
	w.set("vm_area_struct", vma, "vm_ops", ops)
	w.set("vm_area_struct", vma, "vm_private_data", special)
}

func TestMappings(t *testing.T) {
	bothKernels(t, func(t *testing.T, w *world) {
		task, _, vmas := shell(w)
		vvar(w, vmas[7])
		s := w.open()
		got, errs := collectErr(s.Mappings(t.Context(), handleOf(task)))
		if diff := cmp.Diff(shellMaps, got); errs != nil || diff != "" {
			t.Errorf("%v -want +got\n%s", errs, diff)
		}
		for _, m := range shellMaps {
			for _, a := range []arch.GVA{m.Start, m.End - 1} {
				at, err := s.MappingAt(t.Context(), handleOf(task), a)
				if diff := cmp.Diff(m, at); err != nil || diff != "" {
					t.Errorf("MappingAt(%v): %v -want +got\n%s", a, err, diff)
				}
			}
		}
		for _, hole := range []arch.GVA{0, 0x3fffff, 0x412000, 0x7ffe000, 0xffffffff81000000} {
			if m, err := s.MappingAt(t.Context(), handleOf(task), hole); !errors.Is(err, osi.ErrNoMapping) {
				t.Errorf("MappingAt(%v) = %+v, %v, want ErrNoMapping", hole, m, err)
			}
		}
	})
}

func TestMappingAtReadsLittle(t *testing.T) {
	w := newWorld(t, false)
	task := w.process(1, "many")
	mm, _ := w.memory(task)
	var regions []region
	for i := range 3000 {
		start := arch.GVA(0x10000 + i*0x2000)
		regions = append(regions, region{start, start + 0x1000, vmRead, 0, 0})
	}
	w.mapAll(mm, regions)
	s := w.open()
	before := w.b.Count(vitrinetest.OpRead)
	if _, err := s.MappingAt(t.Context(), handleOf(task), 0x10000+2000*0x2000); err != nil {
		t.Fatal(err)
	}
	if n := w.b.Count(vitrinetest.OpRead) - before; n > 120 {
		t.Errorf("one mapping of 3000 took %d reads", n)
	}
}

func TestLibraries(t *testing.T) {
	bothKernels(t, func(t *testing.T, w *world) {
		task, _, _ := shell(w)
		got, errs := collectErr(w.open().Libraries(t.Context(), handleOf(task)))
		want := []osi.Library{{Name: "libc.so.6", Path: "/lib/libc.so.6", Base: 0x700000, Size: 0x20000}}
		if diff := cmp.Diff(want, got); errs != nil || diff != "" {
			t.Errorf("%v -want +got\n%s", errs, diff)
		}
	})
}

func TestMemoryLayout(t *testing.T) {
	w := newWorld(t, false)
	task, _, _ := shell(w)
	kthread := w.process(2, "kthreadd")
	w.set("task_struct", kthread, "flags", pfKThread)
	w.set("task_struct", kthread, "mm", w.alloc()) // borrowed
	s := w.open()
	m, err := s.Memory(t.Context(), handleOf(task))
	if err != nil || m.StartBrk != 0x600000 || m.Brk != 0x621000 || m.StartStack != 0x7ffd500 {
		t.Errorf("Memory = %+v, %v", m, err)
	}
	if _, err := s.Memory(t.Context(), handleOf(kthread)); !errors.Is(err, osi.ErrNoUserMemory) {
		t.Errorf("Memory of a kernel thread: %v, want ErrNoUserMemory", err)
	}
	if got, errs := collectErr(s.Mappings(t.Context(), handleOf(kthread))); got != nil || errs != nil {
		t.Errorf("mappings of a kernel thread: %v, %v, want none", got, errs)
	}
}

func TestPages(t *testing.T) {
	w := newWorld(t, false)
	task := w.process(1, "p")
	mm, user := w.memory(task)
	w.mapAll(mm, []region{{0x400000, 0x500000, vmRead, 0, 0}, {0x40000000, 0x40400000, vmRead, 0, 0}, {0x100000000000, 0x7ff000000000, vmRead, 0, 0}})
	a := user.Map(0x401000, 0x2000, vitrinetest.User|vitrinetest.Writable)
	user.MapTo(0x40200000, 0x200000, vitrinetest.Page2M, vitrinetest.User|vitrinetest.NoExec)
	user.Map(0x600000, 0x1000, vitrinetest.User) // in no mapping: not the process's memory
	got, errs := collectErr(w.open().Pages(t.Context(), handleOf(task)))
	want := []osi.Page{
		{Start: 0x401000, Size: 0x1000, Addr: a, Writable: true, Exec: true},
		{Start: 0x402000, Size: 0x1000, Addr: a + 0x1000, Writable: true, Exec: true},
		{Start: 0x40200000, Size: 0x200000, Addr: 0x200000},
	}
	if diff := cmp.Diff(want, got); errs != nil || diff != "" {
		t.Errorf("%v -want +got\n%s", errs, diff)
	}
}

func TestTornMappingsAreReadAgain(t *testing.T) {
	w := newWorld(t, false)
	task, _, vmas := shell(w)
	w.set("vm_area_struct", vmas[3], "vm_end", 0x700000) // the heap grows: vma before tree
	s := w.open()
	reads := 0
	w.b.OnCall(func(vitrinetest.Call) {
		if reads++; reads == 150 {
			w.set("vm_area_struct", vmas[3], "vm_end", 0x621000)
		}
	})
	got, errs := collectErr(s.Mappings(t.Context(), handleOf(task)))
	if len(got) != len(shellMaps) || errs != nil || reads < 150 {
		t.Errorf("%d mappings, %v after %d reads", len(got), errs, reads)
	}
	w.b.OnCall(nil)
	w.set("vm_area_struct", vmas[3], "vm_end", 0x700000)
	got, errs = collectErr(s.Mappings(t.Context(), handleOf(task)))
	if len(got) != 3 || len(errs) != 1 || !errors.Is(errs[0], osi.ErrTorn) {
		t.Errorf("for ever torn: %d mappings, %v, want 3 and ErrTorn", len(got), errs)
	}
}

func TestAnonymousNames(t *testing.T) {
	w := newWorld(t, false)
	task, _, vmas := shell(w)
	name := w.alloc()
	w.s.PutString(name+4, "my arena")
	w.set("vm_area_struct", vmas[2], "anon_name", name)
	w.set("vm_area_struct", vmas[4], "anon_name", name)
	s := w.open()
	for a, want := range map[arch.GVA]string{0x410000: "[anon:my arena]", 0x700000: "[anon_shmem:my arena]"} {
		if m, err := s.MappingAt(t.Context(), handleOf(task), a); err != nil || m.Name != want {
			t.Errorf("MappingAt(%v) is named %q, %v, want %q", a, m.Name, err, want)
		}
	}
	// Until 6.2 the name lay in a union: for a file's mapping there is none.
	w.f.fields["vm_area_struct.shared"] = w.f.fields["vm_area_struct.anon_name"]
	if m, err := w.open().MappingAt(t.Context(), handleOf(task), 0x700000); err != nil || m.Name != "/lib/libc.so.6" {
		t.Errorf("with a union: %q, %v", m.Name, err)
	}
}
