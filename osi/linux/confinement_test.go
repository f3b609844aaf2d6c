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

// pidTree puts tasks into init_pid_ns.idr: a tree of two levels.
func pidTree(w *world, tasks map[int]arch.GVA) (top arch.GVA) {
	ns := w.alloc()
	w.f.symbols["init_pid_ns"] = ns
	top = w.alloc()
	w.s.PutUint(w.field("xa_node", top, "shift"), 6, 1)
	w.set("pid_namespace", ns, "idr.idr_rt.xa_head", top|xaInternal)
	for id, task := range tasks {
		slot := w.field("xa_node", top, "slots") + arch.GVA(8*(id>>6))
		leaf := arch.GVA(w.s.Uint64(slot)) &^ xaTag
		if leaf == 0 {
			leaf = w.alloc()
			w.s.PutUint64(slot, uint64(leaf|xaInternal))
		}
		pid := w.alloc()
		w.s.PutUint64(w.field("xa_node", leaf, "slots")+arch.GVA(8*(id&63)), uint64(pid))
		w.set("pid", pid, "tasks", w.field("task_struct", task, "pid_links"))
		w.set("task_struct", task, "thread_pid", pid)
		w.s.PutUint64(pid+128+8, uint64(ns))
	}
	return top
}

func TestTaskByID(t *testing.T) {
	bothKernels(t, func(t *testing.T, w *world) {
		tasks := map[int]arch.GVA{1: w.process(1, "init"), 70: w.process(70, "x"), 3000: w.process(3000, "y")}
		tasks[71] = w.thread(tasks[70], 71, "second")
		top := pidTree(w, tasks)
		s := w.open()
		for id, task := range tasks {
			if got, ok := s.taskByID(id); ok != (id != 71) || ok && got != task {
				t.Errorf("taskByID(%d) = %v, %v", id, got, ok)
			}
			p, err := s.ProcessByPID(t.Context(), id)
			if id == 71 { // a thread's
				if !errors.Is(err, osi.ErrNoProcess) {
					t.Errorf("ProcessByPID(%d) = %+v, %v", id, p, err)
				}
			} else if err != nil || p.Task != task {
				t.Errorf("ProcessByPID(%d) = %v, %v", id, p.Task, err)
			}
		}
		for _, id := range []int{-1, 0, 2, 64, 69, 4096, 1 << 22, 1 << 40} {
			if got, ok := s.taskByID(id); ok {
				t.Errorf("taskByID(%d) = %v", id, got)
			}
		}
		// What the tree does not lead to is found on the list.
		w.s.PutUint(w.field("xa_node", top, "shift"), 200, 1)
		if p, err := s.ProcessByPID(t.Context(), 3000); err != nil || p.PID != 3000 {
			t.Errorf("with a broken tree: %+v, %v", p, err)
		}
		// A node that holds itself.
		w.s.PutUint(w.field("xa_node", top, "shift"), 6, 1)
		for i := range 64 {
			w.s.PutUint64(w.field("xa_node", top, "slots")+arch.GVA(8*i), uint64(top|xaInternal))
		}
		if got, ok := s.taskByID(70); ok {
			t.Errorf("in a tree that bites its tail: %v", got)
		}
	})
}

// group makes a control group under another.
func (w *world) group(parent arch.GVA, name string) arch.GVA {
	n := w.alloc()
	w.set("kernfs_node", n, "name", w.str(name))
	for _, m := range []string{"__parent", "parent"} {
		if _, ok := w.f.fields["kernfs_node."+m]; ok {
			w.set("kernfs_node", n, m, parent)
		}
	}
	return n
}

// join puts a task's set into a group of a hierarchy.
func (w *world) join(set, node arch.GVA, id int, name string, mask int) {
	link, cgroup, root := w.alloc(), w.alloc(), w.alloc()
	w.set("cgrp_cset_link", link, "cgrp", cgroup)
	w.set("cgroup", cgroup, "kn", node)
	w.set("cgroup", cgroup, "root", root)
	w.set("cgroup_root", root, "hierarchy_id", id)
	w.set("cgroup_root", root, "subsys_mask", mask)
	w.s.PutString(w.field("cgroup_root", root, "name"), name)
	w.push(w.field("css_set", set, "cgrp_links"), w.field("cgrp_cset_link", link, "cgrp_link"))
}

func TestConfinement(t *testing.T) {
	bothKernels(t, func(t *testing.T, w *world) {
		task := w.process(1, "init")
		pidTree(w, map[int]arch.GVA{1: task})
		for _, p := range []arch.GVA{w.init, task} {
			proxy := w.alloc()
			w.set("task_struct", p, "nsproxy", proxy)
			ns := w.alloc()
			w.set("uts_namespace", ns, "ns.inum", int(uint32(ns)))
			w.set("nsproxy", proxy, "uts_ns", ns)
		}
		net := w.alloc()
		w.set("net", net, "ns.inum", 77)
		for _, p := range []arch.GVA{w.init, task} {
			w.set("nsproxy", w.ptr("task_struct", p, "nsproxy"), "net_ns", net)
		}
		set, root := w.alloc(), w.group(0, "")
		w.set("task_struct", task, "cgroups", set)
		w.empty(w.field("css_set", set, "cgrp_links"))
		id := strings.Repeat("ab", 32)
		w.join(set, w.group(w.group(root, "docker"), id), 0, "", 0)
		w.join(set, root, 1, "systemd", 0)
		array, sub := w.alloc(), w.alloc()
		w.f.symbols["cgroup_subsys"] = array
		w.s.PutUint64(array+8, uint64(sub))
		w.set("cgroup_subsys", sub, "legacy_name", w.str("cpu"))
		w.join(set, root, 2, "", 2)
		fs := w.alloc()
		w.set("task_struct", task, "fs", fs)
		w.set("fs_struct", fs, "root.mnt", w.rootFS.mnt)
		w.set("fs_struct", fs, "root.dentry", w.path("/srv/jail", 9))
		s := w.open()
		uts := w.ptr("nsproxy", w.ptr("task_struct", task, "nsproxy"), "uts_ns")
		want := osi.Confinement{
			Root: "/srv/jail",
			Namespaces: []osi.Namespace{
				{Kind: "net", Inode: 77, Initial: true}, {Kind: "pid", Initial: true}, {Kind: "uts", Inode: uint64(uint32(uts))},
			},
			Cgroups: []osi.Cgroup{
				{Path: "/docker/" + id}, {Hierarchy: 1, Controllers: []string{"name=systemd"}, Path: "/"}, {Hierarchy: 2, Controllers: []string{"cpu"}, Path: "/"},
			},
			Container: &osi.Container{Runtime: "docker", ID: id},
		}
		got, err := osi.ConfinementOf(t.Context(), s, handleOf(task))
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		// Without a symbol the first task leads to the controllers.
		delete(w.f.symbols, "cgroup_subsys")
		w.f.fields["css_set.subsys"], w.f.fields["cgroup_subsys_state.ss"] = member{400, 14 * 8}, member{16, 8}
		first, state := w.alloc(), w.alloc()
		w.set("task_struct", w.init, "cgroups", first)
		w.s.PutUint64(first+400+8, uint64(state))
		w.s.PutUint64(state+16, uint64(sub))
		got, err = osi.ConfinementOf(t.Context(), w.open(), handleOf(task))
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("without cgroup_subsys: %v (-want +got):\n%s", err, diff)
		}
		// A path that bites its tail.
		for _, m := range []string{"__parent", "parent"} {
			if _, ok := w.f.fields["kernfs_node."+m]; ok {
				w.set("kernfs_node", root, m, root)
				w.set("kernfs_node", root, "name", w.str("x"))
			}
		}
		if _, err := osi.ConfinementOf(t.Context(), s, handleOf(task)); !errors.Is(err, osi.ErrCorrupt) {
			t.Errorf("with an endless path: %v", err)
		}
	})
}

func TestEnviron(t *testing.T) {
	bothKernels(t, func(t *testing.T, w *world) {
		task := w.process(1, "init")
		mm, user := w.memory(task)
		user.Map(0x7ffd000, 0x1000, vitrinetest.User)
		user.Put(0x7ffd100, []byte("A=1\x00B=two words\x00"))
		w.set("mm_struct", mm, "env_start", 0x7ffd100)
		w.set("mm_struct", mm, "env_end", 0x7ffd110)
		s := w.open()
		got, err := osi.Environ(t.Context(), s, handleOf(task))
		if diff := cmp.Diff([]string{"A=1", "B=two words"}, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		w.set("mm_struct", mm, "env_end", 0x7fffffff000) // a lie
		if got, err := osi.Environ(t.Context(), s, handleOf(task)); err == nil || len(got) == 0 {
			t.Errorf("with a huge environment: %d strings, %v; want some and an error", len(got), err)
		}
		w.set("task_struct", task, "flags", pfKThread)
		if _, err := osi.Environ(t.Context(), s, handleOf(task)); !errors.Is(err, osi.ErrNoUserMemory) {
			t.Errorf("of a kernel thread: %v", err)
		}
	})
}
