// The user program, in ring 3: makes system calls through ntdll's stubs. It has no data of its own.
#include "nt.h"

typedef ntstatus NTAPI create_file(uptr *h, u32 access, void *oa, void *iosb, void *size, u32 attrs, u32 share, u32 disp, u32 opts, void *ea, u32 ealen);
typedef ntstatus NTAPI open_key(uptr *h, u32 access, void *oa);
typedef ntstatus NTAPI close_(uptr h);
typedef ntstatus NTAPI allocate(sptr process, uptr *base, uptr zero, uptr *size, u32 type, u32 prot);
typedef ntstatus NTAPI free_(sptr process, uptr *base, uptr *size, u32 type);
typedef ntstatus NTAPI delay(u32 alertable, s64 *interval);
typedef ntstatus NTAPI terminate(sptr process, u32 status);
typedef ntstatus NTAPI terminate_thread(sptr thread, u32 status);

static void attributes(uptr oa, uptr us, u16 *name)
{
	for (u32 i = 0; i < OBJECT_ATTRIBUTES__size; i++)
		U8(oa, i) = 0;
	u32 n = 0;
	while (name[n])
		n++;
	U16(us, 0) = (u16)(2 * n);
	U16(us, 2) = (u16)(2 * n + 2);
	PT(us, PSZ) = (uptr)name;
	U32(oa, OBJECT_ATTRIBUTES_Length) = OBJECT_ATTRIBUTES__size;
	U32(oa, OBJECT_ATTRIBUTES_Attributes) = 0x40; // OBJ_CASE_INSENSITIVE
	PT(oa, OBJECT_ATTRIBUTES_ObjectName) = us;
}

// make_calls makes eight calls, two of which fail.
static void make_calls(struct block *b)
{
	uptr oa[8], us[2], iosb[2], file = 0, key = 0, base = 0, size = 0x2000, none = 0;
	attributes((uptr)oa, (uptr)us, b->file);
	((create_file *)b->NtCreateFile)(&file, 0x120089, oa, iosb, 0, 0x80, 3, 1, 0x60, 0, 0);
	attributes((uptr)oa, (uptr)us, b->key);
	((open_key *)b->NtOpenKey)(&key, 0x20019, oa);
	((allocate *)b->NtAllocateVirtualMemory)(-1, &base, 0, &size, 0x3000, 4);
	if (base)
		*(volatile u32 *)base = b->done;
	attributes((uptr)oa, (uptr)us, b->missing);
	((create_file *)b->NtCreateFile)(&none, 0x80100000, oa, iosb, 0, 0, 1, 1, 0x20, 0, 0);
	((close_ *)b->NtClose)(key);
	((close_ *)b->NtClose)(file);
	((close_ *)b->NtClose)(0xdead0);
	size = 0;
	((free_ *)b->NtFreeVirtualMemory)(-1, &base, &size, 0x8000);
}

#if BUILD < 6000
typedef ntstatus NTAPI create_process(uptr *h, u32 access, void *oa, sptr parent, u32 flags, uptr section, uptr debug, uptr exceptions, u32 job);
typedef ntstatus NTAPI create_thread(uptr *h, u32 access, void *oa, uptr process, void *client, void *context, void *stack, u32 suspended);
#else
typedef ntstatus NTAPI create_process(uptr *h, uptr *ht, u32 access, u32 thread_access, void *oa, void *toa, u32 flags, u32 tflags, void *params, void *info, void *attributes);
typedef ntstatus NTAPI create_thread(uptr *h, u32 access, void *oa, uptr process, uptr start, uptr arg, u32 flags, uptr zero, uptr commit, uptr reserve, void *attributes);
#endif

static void begin_thread(struct block *b, uptr *h, uptr process)
{
#if BUILD < 6000
	((create_thread *)b->NtCreateThread)(h, 0x1f03ff, 0, process, 0, 0, 0, 0);
#else
	((create_thread *)b->NtCreateThread)(h, 0x1fffff, 0, process, 0, 0, 0, 0, 0, 0, 0);
#endif
}

// give_birth makes a process that ends at once, and every other time lets go of it at once.
static void give_birth(struct block *b, s64 *interval)
{
	uptr process = 0, thread = 0, own = 0;
#if BUILD < 6000
	((create_process *)b->NtCreateProcess)(&process, 0x1f0fff, 0, -1, 0, 0, 0, 0, 0);
	begin_thread(b, &thread, process);
#else
	((create_process *)b->NtCreateProcess)(&process, &thread, 0x1fffff, 0x1fffff, 0, 0, 0, 0, 0, 0, 0);
#endif
	if (b->born < 2)
		begin_thread(b, &own, (uptr)-1);
	if (b->born % 2 == 0)
		for (int i = 0; i < 10; i++)
			((delay *)b->NtDelayExecution)(0, interval);
	((close_ *)b->NtClose)(thread);
	((close_ *)b->NtClose)(process);
	if (own)
		((close_ *)b->NtClose)(own);
	b->born++;
}

NTAPI void start(struct block *b, u32 first);
__attribute__((section(".text.start"))) NTAPI void start(struct block *b, u32 first)
{
	s64 interval = b->kind == KindSleeper ? -2000000 : -50000;
	for (;;) {
		if (b->leave && first)
			((terminate *)b->NtTerminateProcess)(-1, b->leave - 1);
		if (b->kind == KindSpinner) {
			for (volatile u32 i = 0; i < 50000; i++)
				;
			b->spins++;
			continue;
		}
		if (!first && (b->births || b->born))
			((terminate_thread *)b->NtTerminateThread)(-2, 0x55);
		if (first && __atomic_load_n(&b->births, __ATOMIC_RELAXED)) {
			give_birth(b, &interval);
			__atomic_fetch_sub(&b->births, 1, __ATOMIC_RELAXED);
			continue;
		}
		if (first && __atomic_load_n(&b->rounds, __ATOMIC_RELAXED)) {
			make_calls(b);
			__atomic_fetch_sub(&b->rounds, 1, __ATOMIC_RELAXED);
			__atomic_fetch_add(&b->done, 1, __ATOMIC_RELAXED);
			continue;
		}
		((delay *)b->NtDelayExecution)(0, &interval);
	}
}
