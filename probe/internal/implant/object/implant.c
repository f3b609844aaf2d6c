/* The implant: what runs inside the guest's kernel when a probed function is
 * entered or returns. It is freestanding, keeps no state of its own outside the
 * data region, calls nothing of the kernel but the two nofault copies and the
 * clock, and never sleeps. Undefined vt_* symbols are constants that the host's loader fills in
 * from the guest's own type information and symbols. */
#include "implant.h"

/* Constants: their addresses are their values. */
extern char vt_task_pid[], vt_task_tgid[], vt_task_real_parent[], vt_task_comm[], vt_task_cred[], vt_cred_uid[];
extern char vt_nslots[], vt_bitmap_offset[], vt_bitmap_bits[], vt_ring_offset[];

/* The kernel's; reached by direct calls, since a sealed function may have no endbr64. */
extern long strncpy_from_user_nofault(char *dst, const void *src, long count);
extern long copy_from_user_nofault(void *dst, const void *src, u64 size);
extern u64 ktime_get_real_fast_ns(void); /* safe in any context */

#define CONST(name) ((u64)name)
#define AT(type, base, name) (*(volatile type *)((char *)(base) + CONST(name)))
#define barrier() asm volatile("" ::: "memory")

static inline struct header *header(void)
{
	struct header *h;
	asm("movabs $vt_data, %0" : "=r"(h));
	return h;
}

static inline char *current_task(void)
{
	char *t;
	asm volatile("movq %%gs:vt_pcpu_current, %0" : "=r"(t));
	return t;
}

static inline u32 current_cpu(void)
{
	u32 cpu;
	asm volatile("movl %%gs:vt_pcpu_cpu, %0" : "=r"(cpu));
	return cpu;
}

static inline u64 rdtsc(void)
{
	u32 lo, hi;
	asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (u64)hi << 32 | lo;
}

static inline u64 read_cr3(void)
{
	u64 v;
	asm volatile("movq %%cr3, %0" : "=r"(v));
	return v;
}

static inline void copy_words(void *dst, const void *src, u64 words)
{
	asm volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(words) :: "memory");
}

/* may_wait tells whether this thread may be held up: interrupts on, preemption
 * count zero (the top bit is the inverted need-resched flag). */
static inline int may_wait(void)
{
	u64 flags;
	u32 count;
	asm volatile("pushfq\n\tpopq %0" : "=r"(flags));
	asm volatile("movl %%gs:vt_pcpu_preempt, %0" : "=r"(count));
	return (flags & 0x200) && !(count & 0x7fffffff);
}

struct patience {
	u64 beat, since;
};

/* lives pauses a little and tells whether the host still lives. When it does
 * not, the implant falls silent for all. */
static int lives(volatile struct header *h, struct patience *p)
{
	u64 now = rdtsc(), beat = h->heartbeat;
	if (h->stop || h->silent)
		return 0;
	if (p->since == 0 || beat != p->beat) {
		p->beat = beat;
		p->since = now | 1;
	} else if (now - p->since > h->stale) {
		h->silent = 1;
		return 0;
	}
	asm volatile("pause");
	return 1;
}

/* claim returns the index of a slot that is ours to fill, NO_SLOT when the
 * record is lost. A slot that the host has not given back is never touched. */
static u64 claim(volatile struct header *h, int wait)
{
	struct patience p = { 0, 0 };
	for (;;) {
		u64 i = h->head;
		if (i - h->tail >= CONST(vt_nslots)) {
			if (wait && lives(h, &p))
				continue;
			__atomic_fetch_add(&h->lost, 1, __ATOMIC_RELAXED);
			return NO_SLOT;
		}
		if (__atomic_compare_exchange_n(&h->head, &i, i + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			return i;
	}
}

static inline struct slot *slot_at(struct header *h, u64 i)
{
	return (struct slot *)((char *)h + CONST(vt_ring_offset) + (i & (CONST(vt_nslots) - 1)) * SLOT_SIZE);
}

static inline struct func *func_at(struct header *h, u32 id)
{
	return (struct func *)((char *)h + FUNCS_OFFSET) + id;
}

static inline u32 *bit_word(struct header *h, u32 id)
{
	return (u32 *)((char *)h + CONST(vt_bitmap_offset)) + id / 32;
}

static int has_bit(struct header *h, u32 id)
{
	return id < CONST(vt_bitmap_bits) && (*bit_word(h, id) >> id % 32 & 1);
}

static void change_bit(struct header *h, u32 id, int on)
{
	if (id >= CONST(vt_bitmap_bits))
		return;
	if (on)
		__atomic_fetch_or(bit_word(h, id), 1u << id % 32, __ATOMIC_RELAXED);
	else
		__atomic_fetch_and(bit_word(h, id), ~(1u << id % 32), __ATOMIC_RELAXED);
}

static int comm_passes(struct header *h, char *task)
{
	u64 *comm = (u64 *)(task + CONST(vt_task_comm));
	u64 a = comm[0], b = comm[1];
	/* Bytes behind the NUL are leftovers of a longer name. */
	u64 zero = (a - 0x0101010101010101ul) & ~a & 0x8080808080808080ul;
	if (zero) {
		a &= (zero & -zero) - 1;
		b = 0;
	} else {
		zero = (b - 0x0101010101010101ul) & ~b & 0x8080808080808080ul;
		if (zero)
			b &= (zero & -zero) - 1;
	}
	for (u32 i = 0; i < h->ncomms && i < 8; i++)
		if (h->comms[i][0] == a && h->comms[i][1] == b)
			return 1;
	return 0;
}

static u32 uid_of(char *task)
{
	return AT(u32, AT(char *, task, vt_task_cred), vt_cred_uid);
}

static int uid_passes(struct header *h, char *task)
{
	u32 uid = uid_of(task);
	for (u32 i = 0; i < h->nuids && i < 12; i++)
		if (h->uids[i] == uid)
			return 1;
	return 0;
}

static int passes(struct header *h, u32 mode, char *task)
{
	if ((mode & MODE_TGID) && !has_bit(h, AT(u32, task, vt_task_tgid)))
		return 0;
	if ((mode & MODE_UID) && !uid_passes(h, task))
		return 0;
	return !(mode & MODE_COMM) || comm_passes(h, task);
}

/* follow gives a new process the bit of the one that makes it, before it can
 * run. It also clears what an earlier process of the same id has left. */
static void follow(struct header *h, char *task, u64 child)
{
	u32 tgid = AT(u32, child, vt_task_tgid), by = AT(u32, task, vt_task_tgid);
	if (tgid != by) /* a thread shares its process's */
		change_bit(h, tgid, has_bit(h, by));
}

/* read_clock notes the wall clock at a TSC, for whoever turns the TSC of records
 * into times. A reading that was interrupted is left to the next record. */
static __attribute__((noinline)) void read_clock(struct header *h)
{
	u64 seq = h->clock_seq, before, wall, after;
	if ((seq & 1) || !__atomic_compare_exchange_n(&h->clock_seq, &seq, seq + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return; /* another thread is at it */
	__atomic_fetch_add(&h->inside, 1, __ATOMIC_SEQ_CST);
	before = rdtsc();
	wall = ktime_get_real_fast_ns();
	after = rdtsc();
	if (after - before < h->clock_most / 64) {
		*(volatile u64 *)&h->clock_tsc = before + (after - before) / 2;
		*(volatile u64 *)&h->clock_wall = wall;
		*(volatile u64 *)&h->clock_due = after + h->clock_every;
		h->clock_every = h->clock_every * 2 < h->clock_most ? h->clock_every * 2 : h->clock_most;
	}
	barrier();
	*(volatile u64 *)&h->clock_seq = seq + 2;
	__atomic_fetch_sub(&h->inside, 1, __ATOMIC_SEQ_CST);
}

static void describe(struct header *h, struct slot *s, u32 id, u32 kind, char *task)
{
	u64 *comm = (u64 *)(task + CONST(vt_task_comm));
	s->tsc = rdtsc();
	if (s->tsc >= h->clock_due)
		read_clock(h);
	s->func = id;
	s->kind = kind;
	s->flags = 0;
	s->cpu = current_cpu();
	s->task = (u64)task;
	s->tid = AT(u32, task, vt_task_pid);
	s->tgid = AT(u32, task, vt_task_tgid);
	s->ptgid = AT(u32, AT(char *, task, vt_task_real_parent), vt_task_tgid);
	s->uid = uid_of(task);
	s->comm[0] = comm[0];
	s->comm[1] = comm[1];
	s->value = read_cr3();
	s->datalen = 0;
}

static void arguments(u64 *to, u32 flags, u64 *args)
{
	u64 *r = (u64 *)args[0]; /* struct pt_regs, an ABI that user space knows */
	if (!(flags & FUNC_SYSCALL)) {
		for (int i = 0; i < 6; i++)
			to[i] = args[i];
	} else if (flags & FUNC_COMPAT) {
		to[0] = (u32)r[5], to[1] = (u32)r[11], to[2] = (u32)r[12];
		to[3] = (u32)r[13], to[4] = (u32)r[14], to[5] = (u32)r[4];
	} else {
		to[0] = r[14], to[1] = r[13], to[2] = r[12];
		to[3] = r[7], to[4] = r[9], to[5] = r[8];
	}
}

#include "capture.h"

/* wait_answer holds the thread until the host has answered or is found dead. */
static u64 wait_answer(struct header *h, struct slot *s, u64 *value)
{
	struct patience p = { 0, 0 };
	u64 answer;
	while (!(answer = *(volatile u64 *)&s->answer) && lives(h, &p))
		;
	*value = *(volatile u64 *)&s->value;
	barrier();
	*(volatile u64 *)&s->seq = 0; /* the slot may be given back */
	return answer;
}

/* commit publishes the record; with sync it waits for the host's answer. */
static u64 commit(struct header *h, struct slot *s, u64 index, u32 flags, int wait, u64 *value)
{
	int sync = (flags & FUNC_SYNC) && wait;
	s->answer = 0;
	s->flags = sync ? SLOT_SYNC : (flags & FUNC_SYNC) ? SLOT_NOWAIT : 0;
	barrier();
	*(volatile u64 *)&s->seq = index + 1;
	return sync ? wait_answer(h, s, value) : ANSWER_GO;
}

static __attribute__((noinline)) void take_data(struct slot *s, u8 *buf, u32 used)
{
	s->datalen = used;
	copy_words(s->data, buf, (used + 7) / 8);
}

static long post_entry(struct header *h, struct func *f, u32 flags, struct entry *e, u32 id, char *task, u8 *buf, u32 used, u64 *args)
{
	int wait = (flags & FUNC_SYNC) || (h->mode & MODE_LOSSLESS) ? may_wait() : 0;
	u64 i = claim(h, wait), answer;
	struct slot *s;
	(void)f;
	if (i == NO_SLOT) /* an entry that was lost has no return, so that the loss is exact */
		return ACT_PASS;
	s = slot_at(h, i);
	describe(h, s, id, KIND_ENTER, task);
	for (int k = 0; k < 6; k++)
		s->args[k] = args[k];
	s->call = e->frame.call = i;
	s->result = e->args[0];
	s->regs = (u64)e;
	if (used)
		take_data(s, buf, used);
	answer = commit(h, s, i, flags, wait, &e->frame.value);
	if (answer == ANSWER_SKIP)
		return ACT_SKIP;
	return answer == ANSWER_GO && (flags & FUNC_RETURN) ? ACT_WRAP : ACT_PASS;
}

static __attribute__((noinline)) long enter_capturing(struct header *h, struct func *f, u32 flags, struct entry *e, u32 id, char *task, u64 *args)
{
	u8 buf[SLOT_DATA + 8] __attribute__((aligned(8)));
	u32 used = capture(buf, f, flags, args, 0, PHASE_ENTER, &e->frame.again);
	return post_entry(h, f, flags, e, id, task, buf, used, args);
}

#include "task.h"

/* vt_enter is called by each stub when its function is entered. */
long vt_enter(struct entry *e, u32 id)
{
	struct header *h = header();
	struct func *f = func_at(h, id);
	u32 flags = *(volatile u32 *)&f->flags, mode = *(volatile u32 *)&h->mode;
	char *task = current_task();
	u64 args[6];
	if ((flags & FUNC_FORK) && (mode & MODE_TGID))
		follow(h, task, e->args[0]);
	if (!(flags & (FUNC_ENTER | FUNC_RETURN)) || h->stop)
		return ACT_PASS;
	if ((mode & MODE_FILTER) && !passes(h, mode, task)) {
		h->filtered++;
		return ACT_PASS;
	}
	if (h->silent) {
		__atomic_fetch_add(&h->lost, 1, __ATOMIC_RELAXED);
		return ACT_PASS;
	}
	arguments(args, flags, e->args);
	e->frame.arg0 = e->args[0];
	e->frame.again = 0;
	if (f->about)
		return enter_telling(h, f, flags, e, id, task, args);
	if (f->ncaptures)
		return enter_capturing(h, f, flags, e, id, task, args);
	return post_entry(h, f, flags, e, id, task, 0, 0, args);
}

static void post_return(struct header *h, u32 flags, struct leave *l, u32 id, char *task, u8 *buf, u32 used)
{
	int wait = (flags & FUNC_SYNC) || (h->mode & MODE_LOSSLESS) ? may_wait() : 0;
	u64 value, i = claim(h, wait);
	struct slot *s;
	if (i == NO_SLOT)
		return;
	s = slot_at(h, i);
	describe(h, s, id, KIND_RETURN, task);
	s->call = l->frame.call;
	s->result = l->rax;
	s->regs = (u64)l;
	if (used)
		take_data(s, buf, used);
	if (commit(h, s, i, flags, wait, &value) == ANSWER_SKIP)
		l->rax = value;
}

static __attribute__((noinline)) void return_capturing(struct header *h, struct func *f, u32 flags, struct leave *l, u32 id, char *task)
{
	u8 buf[SLOT_DATA + 8] __attribute__((aligned(8)));
	u64 args[6];
	arguments(args, flags, &l->frame.arg0);
	post_return(h, flags, l, id, task, buf, capture(buf, f, flags, args, l->rax, PHASE_RETURN, &l->frame.again));
}

/* vt_leave is called by a stub when the wrapped function has returned. */
void vt_leave(struct leave *l, u32 id)
{
	struct header *h = header();
	struct func *f = func_at(h, id);
	u32 flags = *(volatile u32 *)&f->flags;
	char *task = current_task();
	if (!(flags & FUNC_RETURN) || h->stop)
		return;
	if (h->silent) {
		__atomic_fetch_add(&h->lost, 1, __ATOMIC_RELAXED);
		return;
	}
	/* The arguments of other functions are gone by now. */
	if ((flags & FUNC_RETURN_DATA || l->frame.again) && (flags & FUNC_SYSCALL))
		return_capturing(h, f, flags, l, id, task);
	else
		post_return(h, flags, l, id, task, 0, 0);
}
