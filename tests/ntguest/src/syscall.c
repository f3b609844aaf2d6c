// The services that do something.
#include "nt.h"

u32 counters[Calls], logging;
static u32 sequence;

// begin notes a call, end_call that it is over. The record lies on the caller's kernel stack.
static void begin(struct call *c, int what, const uptr *args, int n)
{
	struct thread *t = current();
	*c = (struct call){ .pid = t->proc->pid, .tid = t->tid, .what = what, .cpu = (int)(this_cpu() - cpus), .nargs = n };
	c->kernel = !U8(t->et, KTHREAD_PreviousMode);
	for (int i = 0; i < n; i++)
		c->args[i] = args[i];
}

static ntstatus end_call(struct call *c, ntstatus status)
{
	c->status = status;
	counters[c->what]++;
	c->seq = ++sequence;
	if (logging) {
		logging--;
		truth_call(c);
	}
	return status;
}

// name_of takes the name out of OBJECT_ATTRIBUTES.
static void name_of(struct call *c, uptr oa)
{
	uptr us = PT(oa, OBJECT_ATTRIBUTES_ObjectName), text = PT(us, PSZ);
	u32 n = U16(us, 0) / 2;
	for (u32 i = 0; i < n && i < NAMELEN - 1; i++)
		c->name[i] = U16(text, 2 * i);
}

static int has(const u16 *s, const u16 *part)
{
	for (; *s; s++) {
		u32 i = 0;
		while (part[i] && s[i] == part[i])
			i++;
		if (!part[i])
			return 1;
	}
	return 0;
}

NTAPI ntstatus NtCreateFile(uptr *h, u32 access, uptr oa, uptr iosb, uptr size, u32 attrs, u32 share, u32 disp, u32 opts, uptr ea, u32 ealen)
{
	struct call c;
	const uptr args[] = { (uptr)h, access, oa, iosb, size, attrs, share, disp, opts, ea, ealen };
	begin(&c, CallCreateFile, args, 11);
	name_of(&c, oa);
	if (has(c.name, u"missing"))
		return end_call(&c, STATUS_OBJECT_NAME_NOT_FOUND);
	c.out = *h = handle_add(current()->proc, FileType, file_object(c.name + 6), access, 0);
	PT(iosb, 0) = STATUS_SUCCESS;
	PT(iosb, PSZ) = 1; // FILE_OPENED
	return end_call(&c, STATUS_SUCCESS);
}

NTAPI ntstatus NtOpenKey(uptr *h, u32 access, uptr oa)
{
	struct call c;
	const uptr args[] = { (uptr)h, access, oa };
	begin(&c, CallOpenKey, args, 3);
	name_of(&c, oa);
	c.out = *h = handle_add(current()->proc, KeyType, key_object(c.name), access, 0);
	return end_call(&c, STATUS_SUCCESS);
}

NTAPI ntstatus NtClose(uptr h)
{
	struct call c;
	begin(&c, CallClose, &h, 1);
	return end_call(&c, handle_close(current()->proc, (u32)h) ? STATUS_SUCCESS : STATUS_INVALID_HANDLE);
}

NTAPI ntstatus NtAllocateVirtualMemory(uptr process, uptr *base, uptr zero, uptr *size, u32 type, u32 prot)
{
	struct call c;
	const uptr args[] = { process, (uptr)base, zero, (uptr)size, type, prot };
	begin(&c, CallAllocate, args, 6);
	struct proc *p = current()->proc;
	uptr n = (*size + 4095) & ~4095ul, at = *base ? *base & ~0xffful : ALLOC_VA;
	for (int i = 0; i < p->nvad; i++)
		if (p->vad[i].start < at + n && at < p->vad[i].end) {
			at = (p->vad[i].end + 0xffff) & ~0xfffful;
			i = -1;
		}
	if (!n || n > 0x100000 || !vad_add(p, at, n, 4, 0, 0))
		return end_call(&c, STATUS_NO_MEMORY);
	for (uptr va = at; va < at + n; va += 4096)
		map(p->root, va, page_alloc(), W | U);
	*base = at;
	*size = n;
	c.out = at;
	return end_call(&c, STATUS_SUCCESS);
}

NTAPI ntstatus NtFreeVirtualMemory(uptr process, uptr *base, uptr *size, u32 type)
{
	struct call c;
	const uptr args[] = { process, (uptr)base, (uptr)size, type };
	begin(&c, CallFree, args, 4);
	struct proc *p = current()->proc;
	for (int i = 0; i < p->nvad; i++) {
		struct vad v = p->vad[i];
		if (v.start != *base || v.file)
			continue;
		for (uptr va = v.start; va < v.end; va += 4096) {
			page_free(get_pte(p->root, va) & 0x000ffffffffff000);
			put_pte(p->root, va, 0);
		}
		vad_remove(p, v.start);
		return end_call(&c, STATUS_SUCCESS);
	}
	return end_call(&c, STATUS_INVALID_PARAMETER);
}

NTAPI ntstatus NtDelayExecution(u32 alertable, uptr interval)
{
	(void)alertable;
	s32 low = (s32)U32(interval, 0); // negative: from now on, in 100 ns; a tick is 50,000 of them
	counters[CallDelay]++;
	sleep_ticks((u32)(-low) / 50000 + 1);
	return STATUS_SUCCESS;
}

NTAPI ntstatus NtTerminateProcess(uptr process, u32 status)
{
	(void)process;
	counters[CallTerminate]++;
	proc_exit(current()->proc, status);
	return STATUS_SUCCESS;
}

// birth makes a process whose program ends at once.
static struct proc *birth(uptr *h, u32 access, u32 threads)
{
	static const struct want brief = { u"C:\\Windows\\System32\\brief.exe", u"/once", "S-1-5-21-1111111111-2222222222-3333333333-1001", 1, 0, 0, 0, KindWorker, 0 };
	struct want w = brief;
	w.ppid = current()->proc->pid;
	w.threads = threads;
	struct proc *p = proc_new(&w);
	p->block->leave = 1 + 0x2a;
	truth_process("start", p);
	*h = handle_add(current()->proc, ProcessType, (void *)p->ep, access, 0);
	return p;
}

static ntstatus thread_for(uptr *h, uptr process, u32 access)
{
	struct handle *at = handle_find(current()->proc, (u32)process);
	struct proc *p = process == (uptr)-1 ? current()->proc : at && at->type == ProcessType ? proc_of(at->object) : 0;
	if (!p || p->exiting)
		return STATUS_INVALID_HANDLE;
	int more = p->nthreads > 0;
	struct thread *t = user_thread(p);
	if (more) // the first one is not told of
		truth_thread("thread-start", t, 0);
	*h = handle_add(current()->proc, ThreadType, (void *)t->et, access, 0);
	return STATUS_SUCCESS;
}

NTAPI ntstatus NtCreateProcessEx(uptr *h, u32 access, uptr oa, uptr parent, u32 flags, uptr section, uptr debug, uptr exceptions, u32 job)
{
	(void)oa, (void)parent, (void)flags, (void)section, (void)debug, (void)exceptions, (void)job;
	birth(h, access, 0);
	return STATUS_SUCCESS;
}

NTAPI ntstatus NtCreateUserProcess(uptr *h, uptr *ht, u32 access, u32 thread_access, uptr oa, uptr thread_oa, u32 flags, u32 thread_flags, uptr params, uptr info, uptr attributes)
{
	(void)oa, (void)thread_oa, (void)flags, (void)thread_flags, (void)params, (void)info, (void)attributes;
	struct proc *p = birth(h, access, 1);
	*ht = handle_add(current()->proc, ThreadType, (void *)p->threads->et, thread_access, 0);
	return STATUS_SUCCESS;
}

NTAPI ntstatus NtCreateThread(uptr *h, u32 access, uptr oa, uptr process, uptr client, uptr context, uptr stack, u32 suspended)
{
	(void)oa, (void)client, (void)context, (void)stack, (void)suspended;
	return thread_for(h, process, access);
}

NTAPI ntstatus NtCreateThreadEx(uptr *h, u32 access, uptr oa, uptr process, uptr start, uptr arg, u32 flags, uptr zero, uptr commit, uptr reserve, uptr attributes)
{
	(void)oa, (void)start, (void)arg, (void)flags, (void)zero, (void)commit, (void)reserve, (void)attributes;
	return thread_for(h, process, access);
}

NTAPI ntstatus NtTerminateThread(uptr thread, u32 status)
{
	if (thread != (uptr)-2)
		return STATUS_INVALID_HANDLE;
	thread_exit(status);
	return STATUS_SUCCESS;
}
