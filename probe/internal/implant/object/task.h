/* What a record tells of a task at a moment of its life. Included by implant.c. */

extern char vt_task_start[], vt_task_leader[], vt_task_signal[], vt_task_mm[], vt_signal_flags[], vt_signal_code[];
extern char vt_mm_exe[], vt_mm_args[], vt_mm_args_end[], vt_file_path[];

static inline char *pointer(char *base, u64 off)
{
	return *(char *volatile *)(base + off);
}

static inline int in_kernel(u64 p)
{
	return (long)p < 0;
}

/* tell_memory notes the executable and the arguments of a memory descriptor.
 * The arguments are read in the present address space: a new process has a copy
 * of its maker's. It returns the bytes of arguments copied behind a. */
static u32 tell_memory(struct about *a, u32 room, char *mm)
{
	u64 file = AT(u64, mm, vt_mm_exe), start = AT(u64, mm, vt_mm_args), size = AT(u64, mm, vt_mm_args_end) - start;
	if (in_kernel(file)) {
		a->exe_mnt = AT(u64, file, vt_file_path);
		a->exe_dentry = AT(u64, file + 8, vt_file_path);
	}
	a->args_start = start;
	a->args_size = size;
	if (!start || (long)size <= 0)
		return 0;
	if (size > room)
		size = room;
	return copy_from_user_nofault(a + 1, (const void *)start, size) == 0 ? (u32)size : 0;
}

static noinline u32 tell(u8 *buf, char *task)
{
	struct about *a = (struct about *)buf;
	u64 *words = (u64 *)buf;
	char *leader = pointer(task, CONST(vt_task_leader)), *parent = pointer(task, CONST(vt_task_real_parent));
	char *signal = pointer(task, CONST(vt_task_signal)), *mm = pointer(task, CONST(vt_task_mm));
	for (u32 i = 0; i < sizeof(*a) / 8; i++)
		words[i] = 0;
	a->task = (u64)task;
	a->start = AT(u64, task, vt_task_start);
	a->leader_start = AT(u64, leader, vt_task_start);
	a->parent_start = AT(u64, pointer(parent, CONST(vt_task_leader)), vt_task_start);
	a->tid = AT(u32, task, vt_task_pid);
	a->tgid = AT(u32, task, vt_task_tgid);
	a->ptgid = AT(u32, parent, vt_task_tgid);
	a->uid = uid_of(task);
	a->comm[0] = AT(u64, task, vt_task_comm);
	a->comm[1] = AT(u64, task + 8, vt_task_comm);
	a->leader_comm[0] = AT(u64, leader, vt_task_comm);
	a->leader_comm[1] = AT(u64, leader + 8, vt_task_comm);
	if (in_kernel((u64)signal)) {
		a->signal_flags = AT(u32, signal, vt_signal_flags);
		a->signal_code = AT(u32, signal, vt_signal_code);
	}
	if (!in_kernel((u64)mm))
		return sizeof(*a);
	return sizeof(*a) + tell_memory(a, SLOT_DATA - sizeof(*a), mm);
}
