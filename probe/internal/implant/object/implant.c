/* The implant: what runs inside the guest's kernel when a probed function is
 * entered or returns. It is freestanding, keeps no state of its own outside the
 * data region, calls nothing of the kernel but the two nofault copies and the
 * clock, and never sleeps. Undefined vt_* symbols are constants that the host's loader fills in
 * from the guest's own type information and symbols. */
#include "implant.h"

/* Constants: their addresses are their values. */
extern char vt_task_pid[], vt_task_tgid[], vt_task_real_parent[], vt_task_comm[], vt_task_cred[], vt_cred_uid[];
extern char vt_nunits[], vt_bitmap_offset[], vt_bitmap_bits[], vt_ring_offset[];

/* The kernel's; reached by direct calls, since a sealed function may have no endbr64. */
extern long strncpy_from_user_nofault(char *dst, const void *src, long count);
extern long copy_from_user_nofault(void *dst, const void *src, u64 size);
extern u64 ktime_get_real_fast_ns(void); /* safe in any context */

#define CONST(name) ((u64)name)
#define AT(type, base, name) (*(volatile type *)((char *)(base) + CONST(name)))
#define barrier() asm volatile("" ::: "memory")
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define noinline __attribute__((noinline))
#define inlined inline __attribute__((always_inline))

static inline struct header *header(void)
{
	struct header *h;
	asm("movabs $vt_data, %0" : "=r"(h));
	return h;
}

/* key tells marks from whatever else lies in the ring, which user space may
 * have chosen. */
static inline u64 key(void)
{
	u64 k;
	asm("movabs $vt_key, %0" : "=r"(k));
	return k;
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

/* The slow paths lie behind the others, which so fit into one page: emulators go
 * from code to code within a page with the least effort. */
static noinline int make_room(volatile struct header *h, u64 units, u32 flags);
static noinline int comm_passes(struct header *h, char *task);
static noinline int uid_passes(struct header *h, char *task);
static noinline void follow(struct header *h, char *task, u64 child);
static noinline void read_clock(struct header *h);
static noinline long enter_whole(struct header *h, struct func *f, u32 flags, struct entry *e, u32 id, char *task);
static noinline void leave_whole(struct header *h, struct func *f, u32 flags, struct leave *l, u32 id, char *task);

/* claim returns the index of units that are ours to fill, NO_SLOT when the
 * record is lost. Units that the host has not given back are never touched. */
static inlined u64 claim(volatile struct header *h, u64 units, u32 flags)
{
	for (;;) {
		u64 i = h->head;
		if (unlikely(i + units - h->tail > CONST(vt_nunits))) {
			if (!make_room(h, units, flags))
				return NO_SLOT;
			continue;
		}
		if (likely(__atomic_compare_exchange_n(&h->head, &i, i + units, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)))
			return i;
	}
}

static inlined struct slot *slot_at(struct header *h, u64 i)
{
	return (struct slot *)((char *)h + CONST(vt_ring_offset) + (i & (CONST(vt_nunits) - 1)) * UNIT_SIZE);
}

static inline struct func *func_at(struct header *h, u32 id)
{
	return (struct func *)((char *)h + FUNCS_OFFSET) + id;
}

static inline u32 *bit_word(struct header *h, u32 id)
{
	return (u32 *)((char *)h + CONST(vt_bitmap_offset)) + id / 32;
}

static inlined int has_bit(struct header *h, u32 id)
{
	return id < CONST(vt_bitmap_bits) && (*bit_word(h, id) >> id % 32 & 1);
}

static inlined int passes(struct header *h, u32 mode, char *task)
{
	if ((mode & MODE_TGID) && !has_bit(h, AT(u32, task, vt_task_tgid)))
		return 0;
	if ((mode & MODE_UID) && !uid_passes(h, task))
		return 0;
	return !(mode & MODE_COMM) || comm_passes(h, task);
}

/* head fills in what every record begins with, but for the mark. */
static inlined void head(struct header *h, struct slot *s, u32 id, u32 kind, u32 flags, u32 datalen, char *task)
{
	u64 now = rdtsc();
	s->tsc = now;
	if (unlikely(now >= h->clock_due))
		read_clock(h);
	*(u64 *)&s->func = (u64)id | (u64)current_cpu() << 16 | (u64)(kind | flags << 8 | datalen << 16) << 32;
	s->task = (u64)task;
}

static inlined u32 uid_of(char *task)
{
	return AT(u32, AT(char *, task, vt_task_cred), vt_cred_uid);
}

/* who fills in the thread's identity. */
static inlined void who(struct slot *s, char *task)
{
	u64 *comm = (u64 *)(task + CONST(vt_task_comm));
	s->comm[0] = comm[0];
	s->comm[1] = comm[1];
	s->value = read_cr3();
	s->tid = AT(u32, task, vt_task_pid);
	s->tgid = AT(u32, task, vt_task_tgid);
	s->ptgid = AT(u32, AT(char *, task, vt_task_real_parent), vt_task_tgid);
	s->uid = uid_of(task);
}

/* publish makes the record visible. */
static inlined void publish(struct slot *s, u64 index)
{
	barrier();
	*(volatile u64 *)&s->mark = index + key();
}

/* user_arguments takes a system call's arguments from its struct pt_regs, an
 * ABI that user space knows. */
static inlined void user_arguments(u64 *to, u64 *r)
{
	to[0] = r[14], to[1] = r[13], to[2] = r[12];
	to[3] = r[7], to[4] = r[9], to[5] = r[8];
}

/* enter_call records the entry of a 64-bit system call of which nothing is captured. */
static inlined long enter_call(struct header *h, u32 flags, struct entry *e, u32 id, char *task)
{
	u64 i = claim(h, (SLOT_SIZE - SLOT_DATA + UNIT_SIZE - 1) / UNIT_SIZE, flags);
	struct slot *s;
	if (unlikely(i == NO_SLOT))
		return ACT_PASS;
	s = slot_at(h, i);
	head(h, s, id, KIND_ENTER, 0, 0, task);
	who(s, task);
	user_arguments(s->args, (u64 *)e->args[0]);
	s->result = e->frame.arg0 = e->args[0];
	s->regs = (u64)e;
	e->frame.again = 0;
	e->frame.call = i;
	publish(s, i);
	return flags & FUNC_RETURN ? ACT_WRAP : ACT_PASS;
}

/* is_plain tells whether a function is a 64-bit system call of which records are
 * taken and nothing else is wanted; flags are in the lower half of what. */
static inlined int is_plain(u64 what)
{
	return (what & ~(u64)(FUNC_ENTER | FUNC_RETURN | FUNC_WHOLE)) == FUNC_SYSCALL;
}

/* vt_enter is called by each stub when its function is entered. */
long vt_enter(struct entry *e, u32 id)
{
	struct header *h = header();
	struct func *f = func_at(h, id);
	u64 what = *(volatile u64 *)&f->flags;
	u32 flags = what, mode = *(volatile u32 *)&h->mode;
	char *task = current_task();
	if (unlikely(flags & FUNC_FORK) && (mode & MODE_TGID))
		follow(h, task, e->args[0]);
	if (unlikely(!(flags & (FUNC_ENTER | FUNC_RETURN)) || h->stop))
		return ACT_PASS;
	if ((mode & MODE_FILTER) && !passes(h, mode, task))
		return ACT_PASS;
	if (unlikely(h->silent)) {
		__atomic_fetch_add(&h->lost, 1, __ATOMIC_RELAXED);
		return ACT_PASS;
	}
	if (likely(is_plain(what) && !f->about))
		return enter_call(h, flags, e, id, task);
	return enter_whole(h, f, flags, e, id, task);
}

/* leave_call records the return of a system call in one unit. */
static inlined void leave_call(struct header *h, u32 flags, struct leave *l, u32 id, char *task)
{
	u64 i = claim(h, 1, flags);
	struct slot *s;
	if (unlikely(i == NO_SLOT))
		return;
	s = slot_at(h, i);
	head(h, s, id, KIND_RETURN, SLOT_SLIM, 0, task);
	s->call = l->frame.call;
	s->result = l->rax;
	publish(s, i);
}

/* vt_leave is called by a stub when the wrapped function has returned. */
void vt_leave(struct leave *l, u32 id)
{
	struct header *h = header();
	struct func *f = func_at(h, id);
	u32 flags = *(volatile u32 *)&f->flags;
	char *task = current_task();
	if (unlikely(!(flags & FUNC_RETURN) || h->stop))
		return;
	if (unlikely(h->silent)) {
		__atomic_fetch_add(&h->lost, 1, __ATOMIC_RELAXED);
		return;
	}
	if (likely((flags & (FUNC_SYSCALL | FUNC_SYNC | FUNC_WHOLE | FUNC_RETURN_DATA)) == FUNC_SYSCALL && !l->frame.again))
		leave_call(h, flags, l, id, task);
	else
		leave_whole(h, f, flags, l, id, task);
}

/* What follows is rarely or never on the way of a plain call. */

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
static noinline int lives(volatile struct header *h, struct patience *p)
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

/* SPINS is how often a waiting thread looks before each pause: emulators leave
 * their loop of translated code for a pause. */
#define SPINS	256

static inlined int room(volatile struct header *h, u64 units)
{
	return h->head + units - h->tail <= CONST(vt_nunits);
}

/* make_room waits until there is room for a record, where the thread may be held
 * up and shall be. It counts the record as lost when there will be none. */
static noinline int make_room(volatile struct header *h, u64 units, u32 flags)
{
	struct patience p = { 0, 0 };
	if (((flags & FUNC_SYNC) || (h->mode & MODE_LOSSLESS)) && may_wait()) {
		do {
			for (int k = 0; k < SPINS; k++)
				if (room(h, units))
					return 1;
		} while (lives(h, &p));
	}
	__atomic_fetch_add(&h->lost, 1, __ATOMIC_RELAXED);
	return 0;
}

static noinline int comm_passes(struct header *h, char *task)
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

static noinline int uid_passes(struct header *h, char *task)
{
	u32 uid = uid_of(task);
	for (u32 i = 0; i < h->nuids && i < 12; i++)
		if (h->uids[i] == uid)
			return 1;
	return 0;
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

/* follow gives a new process the bit of the one that makes it, before it can
 * run. It also clears what an earlier process of the same id has left. */
static noinline void follow(struct header *h, char *task, u64 child)
{
	u32 tgid = AT(u32, child, vt_task_tgid), by = AT(u32, task, vt_task_tgid);
	if (tgid != by) /* a thread shares its process's */
		change_bit(h, tgid, has_bit(h, by));
}

static void arguments(u64 *to, u32 flags, u64 *args)
{
	u64 *r = (u64 *)args[0];
	if (!(flags & FUNC_SYSCALL)) {
		for (int i = 0; i < 6; i++)
			to[i] = args[i];
	} else if (flags & FUNC_COMPAT) {
		to[0] = (u32)r[5], to[1] = (u32)r[11], to[2] = (u32)r[12];
		to[3] = (u32)r[13], to[4] = (u32)r[14], to[5] = (u32)r[4];
	} else {
		user_arguments(to, r);
	}
}

/* read_clock notes the wall clock at a TSC, for whoever turns the TSC of records
 * into times. A reading that was interrupted is left to the next record. */
static noinline void read_clock(struct header *h)
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

#include "capture.h"
#include "task.h"

/* wait_answer holds the thread until the host has answered or is found dead. */
static u64 wait_answer(struct header *h, struct slot *s, u64 *value)
{
	struct patience p = { 0, 0 };
	u64 answer = 0;
	do {
		for (int k = 0; k < SPINS && !answer; k++)
			answer = *(volatile u64 *)&s->answer;
	} while (!answer && lives(h, &p));
	*value = *(volatile u64 *)&s->value;
	barrier();
	*(volatile u64 *)&s->mark = 0; /* the record may be given back */
	return answer;
}

/* body is what a record that is not slim is made of. */
struct body {
	u64 *args;	/* 0 for none */
	u64 call;	/* NO_SLOT: this record's own index */
	u64 result, regs;
	u8 *buf;
	u32 used;	/* bytes of buf */
};

/* post writes a whole record and waits for its answer under sync delivery. It
 * returns the answer, 0 when the record was lost; index is where it is. */
static u64 post(struct header *h, u32 id, u32 flags, u32 kind, char *task, struct body *b, u64 *index, u64 *value)
{
	u64 i = claim(h, (SLOT_SIZE - SLOT_DATA + b->used + UNIT_SIZE - 1) / UNIT_SIZE, flags);
	struct slot *s;
	int sync = (flags & FUNC_SYNC) && may_wait();
	*index = i;
	if (i == NO_SLOT)
		return 0;
	s = slot_at(h, i);
	head(h, s, id, kind, sync ? SLOT_SYNC : (flags & FUNC_SYNC) ? SLOT_NOWAIT : 0, b->used, task);
	who(s, task);
	for (int k = 0; b->args && k < 6; k++)
		s->args[k] = b->args[k];
	s->call = b->call == NO_SLOT ? i : b->call;
	s->result = b->result;
	s->regs = b->regs;
	s->answer = 0;
	copy_words(s->data, b->buf, (b->used + 7) / 8);
	publish(s, i);
	return sync ? wait_answer(h, s, value) : ANSWER_GO;
}

/* enter_whole records an entry with all that there can be to it. The count of
 * threads inside covers the calls of kernel functions, and also functions that
 * are hooked outside of system calls, where a thread may be on no list. */
static noinline long enter_whole(struct header *h, struct func *f, u32 flags, struct entry *e, u32 id, char *task)
{
	u8 buf[SLOT_DATA + 8] __attribute__((aligned(8)));
	u64 args[6], answer;
	struct body b = { args, NO_SLOT, e->args[0], (u64)e, buf, 0 };
	__atomic_fetch_add(&h->inside, 1, __ATOMIC_SEQ_CST);
	arguments(args, flags, e->args);
	e->frame.arg0 = e->args[0];
	e->frame.again = 0;
	if (f->about)
		b.used = tell(buf, f->about == ABOUT_ARG ? (char *)args[0] : task);
	else if (f->ncaptures)
		b.used = capture(buf, f, flags, args, 0, PHASE_ENTER, &e->frame.again);
	answer = post(h, id, flags, KIND_ENTER, task, &b, &e->frame.call, &e->frame.value);
	__atomic_fetch_sub(&h->inside, 1, __ATOMIC_SEQ_CST);
	if (answer == ANSWER_SKIP)
		return ACT_SKIP;
	/* An entry that was lost has no return, so that the loss is exact. */
	return answer == ANSWER_GO && (flags & FUNC_RETURN) ? ACT_WRAP : ACT_PASS;
}

static noinline void leave_whole(struct header *h, struct func *f, u32 flags, struct leave *l, u32 id, char *task)
{
	u8 buf[SLOT_DATA + 8] __attribute__((aligned(8)));
	u64 args[6], value, index;
	struct body b = { 0, l->frame.call, l->rax, (u64)l, buf, 0 };
	__atomic_fetch_add(&h->inside, 1, __ATOMIC_SEQ_CST);
	/* The arguments of other functions are gone by now. */
	if ((flags & FUNC_RETURN_DATA || l->frame.again) && (flags & FUNC_SYSCALL)) {
		arguments(args, flags, &l->frame.arg0);
		b.used = capture(buf, f, flags, args, l->rax, PHASE_RETURN, &l->frame.again);
	}
	if (post(h, id, flags, KIND_RETURN, task, &b, &index, &value) == ANSWER_SKIP)
		l->rax = value;
	__atomic_fetch_sub(&h->inside, 1, __ATOMIC_SEQ_CST);
}
