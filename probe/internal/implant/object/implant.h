/* Layout that the implant shares with the host (layout.go holds the same
 * numbers; a test compares them). All little-endian, x86-64. */
#ifndef IMPLANT_H
#define IMPLANT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* Header of the data region, three pages long with the function table behind it.
 * Each side's counters have a cache line of their own. */
struct header {
	u64 magic;	/* 0: HEADER_MAGIC */
	u64 nunits;	/* 8: of the ring; power of two */
	u64 size;	/* 16: of the whole region */
	u64 code;	/* 24: address of the code region */
	u64 reserved0[4];
	u64 head;	/* 64: units claimed so far; the guest's */
	u64 reserved1[7];
	u64 tail;	/* 128: units given back so far; the host's */
	u64 heartbeat;	/* 136: changes while the host lives */
	u64 stop;	/* 144: the host wants no records */
	u64 stale;	/* 152: TSC ticks without a heartbeat after which waiting ends */
	u64 clock_due;	/* 160: TSC from which the wall clock is to be read again; the guest's, as all below */
	u64 reserved2[3];
	u64 lost;	/* 192: records dropped because the ring was full */
	u64 silent;	/* 200: waiting ended by a stale heartbeat: no more records */
	u64 reserved6;
	u64 inside;	/* 216: threads that may be in a function of the kernel that the implant has called */
	u64 reserved3[4];
	u32 mode;	/* 256: MODE_* */
	u32 ncomms;	/* 260 */
	u32 nuids;	/* 264 */
	u32 reserved4;
	u32 uids[12];	/* 272 */
	u64 comms[8][2];/* 320 */
	u64 clock_seq;	/* 448: odd while the next two are written */
	u64 clock_tsc;	/* 456 */
	u64 clock_wall;	/* 464: the guest's wall clock at that TSC, in ns since 1970 */
	u64 clock_every;/* 472: ticks to the next reading: doubled by each up to ... */
	u64 clock_most;	/* 480 */
	u64 reserved5[3];
};

#define HEADER_MAGIC	0x31746e616c706d69ul	/* "implant1" */

#define MODE_LOSSLESS	1	/* wait while the ring is full, where that is allowed */
#define MODE_TGID	2	/* only threads whose process id is in the bitmap */
#define MODE_COMM	8	/* only threads with one of the names */
#define MODE_UID	16	/* only threads with one of the user ids */
#define MODE_FILTER	(MODE_TGID | MODE_COMM | MODE_UID)

#define FUNCS_OFFSET	4096	/* of the function table in the data region */
#define MAX_CAPTURES	6

/* What to copy from user memory into a record. */
struct capture {
	u8 arg;		/* argument that points to it; CAP_VIA: the capture that holds the pointer */
	u8 kind;	/* CAP_* */
	u16 max;	/* bytes, a terminating NUL included */
	u8 lenarg;	/* CAP_BUFFER, CAP_VIA: argument that tells the length, or LEN_* */
	u8 when;	/* PHASE_*; what cannot be read at entry is tried again at return */
	u8 unit;	/* bytes for each one that the length counts; 0 is 1 */
	u8 off;		/* CAP_VIA: where the pointer is */
};

#define LEN_MAX		255	/* max bytes */
#define LEN_RESULT	254	/* as many bytes as the function's result says */
#define LEN_NEXT	253	/* CAP_VIA: what the u32 behind the pointer says */
#define LEN_BOTH	252	/* the lesser of the last two */
#define PHASE_ENTER	1
#define PHASE_RETURN	2

#define CAP_STRING	1
#define CAP_BUFFER	2
#define CAP_VECTOR	3	/* strings that a list of pointers ends with NULL: u16 VECTOR_*, then each with its NUL */
#define CAP_COUNT	4	/* u32: how many pointers are in such a list, at most COUNT_MAX */
#define CAP_VIA		5	/* a buffer that a pointer in an earlier capture points to */

#define VECTOR_MORE	1	/* the list goes on */
#define VECTOR_FAULT	2	/* what follows could not be read */
#define VECTOR_CUT	4	/* the last string goes on */
#define VECTOR_MAX	64
#define COUNT_MAX	4096

struct func {
	u32 flags;	/* 0: FUNC_* */
	u32 ncaptures;	/* 4 */
	u32 about;	/* 8: ABOUT_*; with it there are no captures */
	u32 reserved;
	struct capture captures[MAX_CAPTURES];	/* 16 */
};			/* 64 bytes */

/* The record of an entry begins its data with a struct about of a task. */
#define ABOUT_ARG	1	/* the one that argument 0 points to */
#define ABOUT_CURRENT	2

#define FUNC_ENTER	1	/* records entries */
#define FUNC_RETURN	2	/* records returns */
#define FUNC_SYSCALL	4	/* arguments are in the pt_regs that argument 0 points to */
#define FUNC_COMPAT	8	/* ... in the registers of a 32-bit call */
#define FUNC_SYNC	16	/* the thread waits for the host's answer */
#define FUNC_FORK	32	/* argument 0 is a new task: its process inherits the bit of the present one */
#define FUNC_RETURN_DATA 128	/* some capture is for the return */
#define FUNC_WHOLE	256	/* returns are not slim: the call may change who the thread is */

/* The ring consists of units, which is what indices count. A record takes as
 * many as it needs and begins with a slot; a slim one is the first unit of a
 * slot. One that begins in the last units runs on behind the ring. */
#define UNIT_SIZE	64
#define SLOT_SIZE	512	/* of the largest */
#define SLOT_DATA	(SLOT_SIZE - 160)

struct slot {
	u64 mark;	/* 0: index + vt_key once the record is complete; 0 when a waiting thread has gone on */
	u64 tsc;	/* 8 */
	u16 func;	/* 16 */
	u16 cpu;	/* 18 */
	u8 kind;	/* 20: KIND_* */
	u8 flags;	/* 21: SLOT_* */
	u16 datalen;	/* 22: bytes used of data */
	u64 task;	/* 24 */
	u64 call;	/* 32: index of the entry's record */
	u64 result;	/* 40: at return; at entry argument 0 itself, which args may not hold */
	u64 comm[2];	/* 48: a slim record ends before it */
	u64 args[6];	/* 64 */
	u64 regs;	/* 112: address of the saved registers (struct entry, struct leave) */
	u64 value;	/* 120: the page tables in use (CR3); with SLOT_SYNC the answer replaces it by what the caller gets */
	u32 tid;	/* 128 */
	u32 tgid;	/* 132 */
	u32 ptgid;	/* 136 */
	u32 uid;	/* 140 */
	u64 answer;	/* 144: SLOT_SYNC: 0 until the host has answered, ANSWER_* */
	u64 reserved;
	u8 data[SLOT_DATA]; /* 160: per capture a u16 length (CAP_FAILED: not readable, CAP_NOT_NOW), then the bytes */
};

/* A task as ABOUT_* records it, with the first bytes of its arguments behind. */
struct about {
	u64 task;	/* 0 */
	u64 start;	/* 8: nanoseconds since boot */
	u64 leader_start; /* 16: of the process's first thread */
	u64 parent_start; /* 24: of the parent process */
	u64 exe_mnt;	/* 32: struct path of the executable */
	u64 exe_dentry;	/* 40 */
	u64 args_start;	/* 48: in user memory */
	u64 args_size;	/* 56: bytes */
	u32 tid;	/* 64 */
	u32 tgid;	/* 68 */
	u32 ptgid;	/* 72 */
	u32 uid;	/* 76 */
	u32 signal_flags; /* 80: signal_struct->flags */
	u32 signal_code; /* 84: ->group_exit_code */
	u64 comm[2];	/* 88 */
	u64 leader_comm[2]; /* 104 */
};			/* 120 */

#define KIND_ENTER	1
#define KIND_RETURN	2

#define SLOT_SYNC	1	/* the thread waits */
#define SLOT_NOWAIT	2	/* the thread could not be held up here: a lossy record without an answer */
#define SLOT_SLIM	4	/* a return in one unit: the thread is what it was at the entry */

#define CAP_FAILED	0xffff
#define CAP_NOT_NOW	0xfffe

#define ANSWER_GO	1	/* go on */
#define ANSWER_SKIP	2	/* do not run the function, return value; at return: return value instead */
#define ANSWER_DROP	3	/* go on, do not record the return */

#define NO_SLOT		(~0ul)

/* What vt_enter tells the stub. */
#define ACT_WRAP	0
#define ACT_PASS	1
#define ACT_SKIP	2

/* The stub's frame: lies above the wrapped call's return address. Nothing else
 * is kept over the call. Its size is at least this and chosen by the host. */
struct frame {
	u64 call;	/* index of the entry's record, NO_SLOT for none */
	u64 arg0;
	u64 value;	/* ACT_SKIP: the result */
	u64 again;	/* bits of captures that failed */
	u64 reserved;
};

/* The stack as the enter trampoline leaves it. */
struct entry {
	u64 args[6];	/* rdi rsi rdx rcx r8 r9 */
	u64 back;	/* return address into the stub */
	struct frame frame;
};

/* The stack as the leave trampoline leaves it. */
struct leave {
	u64 rax, rdx;
	struct frame frame;
};

#endif
