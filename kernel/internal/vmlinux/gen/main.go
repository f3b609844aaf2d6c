// Command gen reduces a vmlinux with debug information to an ISF of the structures
// that this module reads, for tests:
//
//	go run ./kernel/internal/vmlinux/gen VMLINUX | xz -9e > internal/testvm/testdata/RELEASE.json.xz
package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/kernel/internal/vmlinux"
)

// structures are those whose members are asked for anywhere; what they hold comes
// with them.
var structures = []string{
	"list_head", "hlist_node", "rb_node", "task_struct", "signal_struct", "cred", "kthread", "worker", "timekeeper", "cfs_rq",
	"mm_struct", "vm_area_struct", "maple_range_64", "maple_arange_64", "vm_operations_struct", "vm_special_mapping", "anon_vma_name",
	"file", "fdtable", "files_struct", "fs_struct", "dentry", "dentry_operations", "super_block", "file_system_type", "mount", "inode",
	"ns_common", "proc_ns_operations", "module", "mod_kallsyms", "pid", "pid_namespace", "user_namespace", "nsproxy", "mnt_namespace",
	"uts_namespace", "ipc_namespace", "time_namespace", "cgroup_namespace", "net", "xa_node", "css_set", "cgrp_cset_link", "cgroup",
	"cgroup_root", "cgroup_subsys", "cgroup_subsys_state", "kernfs_node", "syscall_metadata", "pt_regs", "thread_info",
}

// symbols are those that are asked for and that a kernel without CONFIG_KALLSYMS_ALL
// has no symbols of; beside them some functions are kept, to tell the build by.
var symbols = []string{
	"linux_banner", "_text", "_stext", "_end", "init_task", "modules", "init_pid_ns", "init_user_ns", "init_uts_ns", "cgroup_subsys",
	"special_mapping_vmops", "tk_core", "system_state", "swapper_pg_dir", "__per_cpu_offset", "__per_cpu_start", "__per_cpu_end",
	"current_task", "__cpu_online_mask", "nr_cpu_ids", "syscalls_metadata", "sys_call_table", "vmcoreinfo_note", "__start_init_task", "__end_init_task",
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen VMLINUX")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string) error {
	f, err := vmlinux.Open(name)
	if err != nil {
		return err
	}
	for _, s := range structures {
		if _, ok := f.Size(s); !ok {
			fmt.Fprintln(os.Stderr, "without", s)
		}
	}
	f.Enum("system_states", "")
	f.Keep(func(name string) bool {
		return slices.Contains(symbols, name) || strings.HasPrefix(name, "__ia32_sys_s") || strings.HasPrefix(name, "vfs_")
	})
	w := bufio.NewWriter(os.Stdout)
	if err := f.Encode(w); err != nil {
		return err
	}
	return w.Flush()
}
