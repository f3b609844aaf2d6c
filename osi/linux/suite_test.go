package linux

import (
	"fmt"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
	"github.com/vitrine-vmi/vitrine/vitrinetest/providertest"
)

// TestConformanceOnMadeUpGuests runs the suite of providers without a guest.
func TestConformanceOnMadeUpGuests(t *testing.T) {
	bothKernels(t, func(t *testing.T, w *world) {
		boot := time.Unix(1.7e9, 0).UTC()
		w.clock(boot)
		fs := w.alloc()
		w.set("fs_struct", fs, "pwd.mnt", w.rootFS.mnt)
		w.set("fs_struct", fs, "pwd.dentry", w.path("/srv", 5))
		task, mm, vmas := shell(w)
		vvar(w, vmas[7])
		w.thread(task, 5, "second")
		user := w.spaceOf(mm)
		user.Map(0x7ffd000, 0x1000, vitrinetest.User|vitrinetest.Writable)
		user.Put(0x7ffd800, []byte("sh\x00-i\x00"))
		w.set("mm_struct", mm, "arg_start", 0x7ffd800)
		w.set("mm_struct", mm, "arg_end", 0x7ffd806)
		openFiles(w, task, map[int]arch.GVA{2: w.file(w.rootFS, w.path("/dev/tty", 3), 9, 2)})
		kthread := w.process(2, "kthreadd")
		w.set("task_struct", kthread, "flags", pfKThread)
		for _, p := range []arch.GVA{task, kthread} {
			w.set("task_struct", p, "fs", fs)
		}
		providertest.Test(t, w.open(), &providertest.Truth{
			Modules: []osi.Module{},
			Processes: []providertest.Process{
				{PID: 1, Name: "sh", Exe: "/bin/sh", Args: []string{"sh", "-i"}, States: "R", Threads: 2, Start: boot, TIDs: []int{1, 5},
					Mappings: shellMaps, Files: []osi.File{{FD: 2, Path: "/dev/tty", Pos: 9, Flags: 2}}, Cwd: "/srv", StartBrk: 0x600000, Stack: 0x7ffd500},
				{PID: 2, Name: "kthreadd", States: "R", KThread: true, Threads: 1, Start: boot, TIDs: []int{2}, Files: []osi.File{}, Cwd: "/srv"},
			},
		})
	})
}

// manyWorld has n processes that share an executable, with arguments.
func manyWorld(t testing.TB, n int) *world {
	w := newWorld(t, false)
	exe := w.file(w.rootFS, w.path("/usr/bin/sleep", 1), 0, 0)
	for i := range n {
		mm, user := w.memory(w.process(i+1, fmt.Sprintf("kid%d", i)))
		user.Map(0x7ffd000, 0x1000, vitrinetest.User)
		user.Put(0x7ffd000, []byte("sleep\x00100\x00"))
		w.set("mm_struct", mm, "arg_start", 0x7ffd000)
		w.set("mm_struct", mm, "arg_end", 0x7ffd00a)
		w.set("mm_struct", mm, "exe_file", exe)
	}
	return w
}

// TestListingReadsLittle bounds the reads for each process: with memory that
// is not mapped into this process, each is a system call.
func TestListingReadsLittle(t *testing.T) {
	const n = 200
	w := manyWorld(t, n)
	s := w.open()
	before := w.b.Count(vitrinetest.OpRead)
	if got, errs := collectErr(s.Processes(t.Context())); len(got) != n || errs != nil {
		t.Fatalf("%d processes, %v", len(got), errs)
	}
	each := (w.b.Count(vitrinetest.OpRead) - before) / n
	// Of these some ten are for page tables: the made-up kernel maps its memory
	// by 4 KiB pages, where a real one has large ones.
	if each > 25 {
		t.Errorf("%d reads for each process, want 25 at most", each)
	}
}

func BenchmarkProcesses(b *testing.B) {
	s, n := manyWorld(b, 500).open(), 0
	for b.Loop() {
		for _, err := range s.Processes(b.Context()) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/process")
}

func BenchmarkThreadAt(b *testing.B) {
	w := newWorld(b, false)
	task, _, _ := shell(w)
	s := w.open()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.ThreadAt(b.Context(), task); err != nil {
			b.Fatal(err)
		}
	}
}
