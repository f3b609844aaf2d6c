// Which thread runs where. All of it under the kernel's lock.
#include "nt.h"

void swap_context(uptr *from, uptr to);
static struct thread *queue, *queue_end;
struct thread *sleepers;

struct thread *current(void) { return this_cpu()->cur; }

static void state(struct thread *t, int s)
{
	t->state = (u8)s;
	U8(t->et, KTHREAD_State) = (u8)s;
#ifdef KTHREAD_Running
	U8(t->et, KTHREAD_Running) = s == Running;
#endif
}

void ready(struct thread *t)
{
	state(t, Ready);
	t->ready = 0;
	if (queue)
		queue_end->ready = t;
	else
		queue = t;
	queue_end = t;
}

static struct thread *take(void)
{
	struct thread *t = queue;
	if (t)
		queue = t->ready;
	return t;
}

// idle_begins makes a processor's idle thread the one that it runs.
void idle_begins(struct cpu *c)
{
	c->cur = c->idle;
	c->idle->cpu = (int)(c - cpus);
	state(c->idle, Running);
	PT(c->prcb, KPRCB_CurrentThread) = PT(c->prcb, KPRCB_IdleThread) = c->idle->et;
	set_kernel_stack(c, c->idle);
}

// schedule gives the processor to who is next, or to its idle thread.
void schedule(void)
{
	struct cpu *c = this_cpu();
	struct thread *old = c->cur, *new = take();
	if (!new) {
		if (old->state == Running)
			return;
		new = c->idle;
	}
	if (old->state == Running && old != c->idle)
		ready(old);
	old->cpu = -1;
	new->cpu = (int)(c - cpus);
	state(new, Running);
	if (old == c->idle)
		state(old, Ready);
	c->cur = new;
	c->switches++;
	U32(new->et, KTHREAD_ContextSwitches)++;
	PT(c->prcb, KPRCB_CurrentThread) = new->et;
	set_kernel_stack(c, new);
	set_cr3(new->proc->root); // also the same one: what another processor has unmapped must not be remembered here
	swap_context(&old->sp, new->sp);
}

void sleep_ticks(u32 n)
{
	struct thread *t = current();
	t->wake = ticks + n;
	t->ready = sleepers;
	sleepers = t;
	state(t, Waiting);
	schedule();
}

static void wake(void)
{
	struct thread **at = &sleepers;
	while (*at) {
		struct thread *t = *at;
		if ((s32)(ticks - t->wake) < 0) {
			at = &t->ready;
			continue;
		}
		*at = t->ready;
		ready(t);
	}
}

void process_reap(void);

// system_time writes a KSYSTEM_TIME as its readers need it.
static void system_time(uptr at, u64 v)
{
	U32(at, 8) = (u32)(v >> 32);
	U32(at, 0) = (u32)v;
	U32(at, 4) = (u32)(v >> 32);
}

// tick is the clock's interrupt.
void tick(void)
{
	struct cpu *c = this_cpu();
	if (c == &cpus[0]) {
		ticks++;
		system_time(SHARED_VA + KUSER_SHARED_DATA_InterruptTime, (u64)ticks * 50000);
		system_time(SHARED_VA + KUSER_SHARED_DATA_SystemTime, now());
		wake();
		process_reap();
		command_poll();
	}
	schedule();
}

#ifdef X64
#define TF_IP KTRAP_FRAME_Rip
#define TF_ERR KTRAP_FRAME_ErrorCode
#define APIC 0xfffffffffffe0000
#else
#define TF_IP KTRAP_FRAME_Eip
#define TF_ERR KTRAP_FRAME_ErrCode
#define APIC 0xfffe0000ul
#endif

// KiTrap is every interrupt and exception but system calls.
void KiTrap(u32 vector, uptr frame)
{
	if (vector < 32) {
		uptr cr2;
		__asm__ volatile("mov %%cr2,%0" : "=r"(cr2));
		panic("exception", vector, PT(frame, TF_IP), vector == 14 ? cr2 : PT(frame, TF_ERR));
	}
	if (vector != 0xd1)
		return;
	U32(APIC, 0xb0) = 0;
	klock();
	tick();
	kunlock();
}

// idle_loop is what idle threads do. They come with the lock.
_Noreturn void idle_loop(void)
{
	for (;;) {
		kunlock();
		__asm__ volatile("sti; hlt; cli" ::: "memory");
		klock();
		schedule();
	}
}
