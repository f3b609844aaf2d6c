// What every part of the guest's kernel shares. layout.h, made for each build, has the offsets: STRUCT_Field.
#ifndef NT_H
#define NT_H

#include "layout.h"

#ifdef __x86_64__
#define X64 1
#define PSZ 8
#define NTAPI __attribute__((ms_abi))
#define KPCR_PRCB 0x180
#define SHARED_VA 0xfffff78000000000 // KUSER_SHARED_DATA as the kernel has it
#else
#define PSZ 4
#define NTAPI __attribute__((stdcall))
#define KPCR_PRCB 0x120
#define SHARED_VA 0xffdf0000
#endif

#define HANDLE_TABLE_FREE_HANDLECOUNT (3 * PSZ)
#define BOOTINFO 0x7000 // physical: struct bootinfo, left by the loader
#define TRAMPOLINE 0x8000 // physical: where other processors start
#define IMAGE_PHYS 0x400000
#define FREE_PHYS 0x800000 // RAM from here on is given out by pages

#ifndef __ASSEMBLER__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;
typedef unsigned long uptr;
typedef long sptr;
typedef u32 ntstatus;

// The loader's part of this is in loader.c.
struct bootinfo {
	u64 image, image_size, pool, ram, loader_root;
	char cmdline[1024];
};

// A field of an NT structure, by width.
#define PT(o, f) (*(volatile uptr *)((uptr)(o) + (f)))
#define U8(o, f) (*(volatile u8 *)((uptr)(o) + (f)))
#define U16(o, f) (*(volatile u16 *)((uptr)(o) + (f)))
#define U32(o, f) (*(volatile u32 *)((uptr)(o) + (f)))
#define U64(o, f) (*(volatile u64 *)((uptr)(o) + (f)))
#define AT(o, f) ((uptr)(o) + (f))

#define STATUS_SUCCESS 0u
#define STATUS_NOT_IMPLEMENTED 0xC0000002u
#define STATUS_ACCESS_VIOLATION 0xC0000005u
#define STATUS_INVALID_HANDLE 0xC0000008u
#define STATUS_NO_MEMORY 0xC0000017u
#define STATUS_OBJECT_NAME_NOT_FOUND 0xC0000034u
#define STATUS_INVALID_PARAMETER 0xC000000Du
#define STATUS_INVALID_SYSTEM_SERVICE 0xC000001Cu

enum { MAXCPU = 4, MAXMOD = 6, MAXVAD = 24, NAMELEN = 120 };

// The guest's own record of things, from which it prints the truth. It never reads NT's structures for that.
struct thread {
	struct thread *next; // of the process
	struct thread *ready; // queue of those that may run
	struct proc *proc;
	uptr et; // ETHREAD
	u32 tid;
	uptr stack; // kernel stack, lowest address
	uptr sp;
	uptr teb, start, ustack;
	u32 wake; // tick, when state is Waiting
	u8 state, runs; // runs: has user code to run
	int opened, unlinked; // handles to it, and whether it is off NT's lists
	int cpu; // that runs it, or -1
};

enum { Ready = 2, Running = 3, Terminated = 4, Waiting = 5 };

struct module {
	uptr base, size;
	const u16 *path, *name;
	int wow, paged; // 32-bit list; how the name is held: see Name in ntguest.go
};

struct vad {
	uptr node, start, end; // inclusive start, exclusive end
	u32 prot;
	int private_, image;
	const u16 *file;
};

struct handle {
	u32 value, access;
	uptr object;
	int type;
	const u16 *name;
};

struct proc {
	struct proc *next;
	uptr ep;
	u32 pid, ppid, session, kind;
	u64 created;
	u64 root; // what is loaded into CR3
	const u16 *path, *cmdline;
	char image[16];
	const char *sid;
	struct thread *threads;
	int nthreads, nmod, nvad, nhandle, hcap;
	struct module mod[MAXMOD];
	struct vad vad[MAXVAD];
	struct handle *handles;
	uptr peb, peb32, params, base, token, table;
	struct block *block; // as the kernel sees it
	uptr upage, uleft; // where the next user data goes: kernel's view, bytes left
	uptr uva, cold, slots;
	int wow, exiting;
	int opened, unlinked; // as of a thread
	u32 status;
};

struct cpu {
	uptr pcr, prcb;
	struct thread *cur, *idle;
	uptr gdt, tss, idt;
	u32 apic;
	u32 switches;
};

#include "block.h"

// cpu.c
extern struct cpu cpus[MAXCPU];
extern int ncpu;
extern volatile u32 ticks;
void cpu_init(int n);
void cpus_start(int n);
struct cpu *this_cpu(void);
void klock(void);
void kunlock(void);
void set_kernel_stack(struct cpu *c, struct thread *t);
_Noreturn void idle_loop(void);

// mem.c
extern struct bootinfo *boot;
void mem_init(void);
u64 page_alloc(void);
void page_free(u64 phys);
int page_shared(u64 phys); // whether all processes have the page
static inline void *pv(u64 phys) { return (void *)(uptr)(boot->pool + phys); }
void *pool(u32 size, const char *tag);
void pool_free(void *p, u32 size);
u64 run_of(u32 size); // physical pages one after the other, never given back
u64 phys_of(void *p);
enum { W = 1, U = 2, X = 4, NC = 8 };
void map(u64 root, uptr va, u64 phys, int flags);
void put_pte(u64 root, uptr va, u64 value);
u64 get_pte(u64 root, uptr va);
u64 root_alloc(void);
void root_free(u64 root);
extern u64 system_root;
uptr paged(u32 size);
uptr stack_alloc(void);
void stack_free(uptr s);
uptr paged_page(void);
void page_out(uptr va);
void set_cr3(u64 root);

// image.c
struct export_ { const char *name; void *addr; };
struct section { char name[8]; u32 rva, size, flags; };
struct pe {
	u8 *at; // where it is written
	uptr base; // where it is mapped
	u32 size, stamp, entry;
	int is64, dll;
	const char *name, *pdb; // name in the export directory and of the CodeView record; 0 without
	const struct export_ *exports; // sorted by name; addresses from base on
	u32 nexports, edata; // the export directory's place
	const struct section *sections;
	u32 nsections;
	u8 guid[16];
	u32 age;
};
void pe_build(const struct pe *p);
void image_init(void);
void image_protect(void);
extern char __image[], __image_end[], __text_end[], __rdata_end[], __paged[];
extern struct pe kernel_pe;
extern uptr kdbg, PsActiveProcessHead[2], PsLoadedModuleList[2], PsInitialSystemProcess, PsIdleProcess, PspCidTable;
extern u32 NtBuildNumber, claimed_build;

// objects.c
enum { TypeType = 2, DirectoryType, ProcessType = 7, ThreadType, TokenType = 5, MutantType = 14, EventType = 12, KeyType = 35, SectionType = 33, FileType = 28, DeviceType = 25, PortType = 36, TypeCount = 40 };
void objects_init(void);
void *object(int type, u32 size, const char *tag, const u16 *name);
void object_free(void *o, u32 size);
const char *type_name(int type);
void *file_object(const u16 *name);
void file_free(uptr f);
void *key_object(const u16 *path);
void *named_object(int type, const u16 *name);
uptr table_new(uptr process, u32 pid);
void table_free(struct proc *p);
u32 handle_add(struct proc *p, int type, void *obj, u32 access, const u16 *name);
struct handle *handle_find(struct proc *p, u32 value);
int handle_close(struct proc *p, u32 value);
void cid_add(u32 id, uptr object);
int cid_used(u32 id);
void cid_remove(u32 id);

// process.c, user.c
extern struct proc *procs, *sysproc, *idleproc;
struct want { const u16 *path, *args; const char *sid; u32 session, ppid, pid, threads, kind; int wow; };
struct proc *proc_new(const struct want *w);
void proc_exit(struct proc *p, u32 status);
struct thread *thread_new(struct proc *p, uptr start, int user);
void process_init(void);
struct proc *proc_find(u32 pid);
u64 now(void);
void ntdll_init(void);
extern struct thread *sleepers;
void user_setup(struct proc *p, const struct want *w);
struct thread *user_thread(struct proc *p);
void thread_exit(u32 status);
void opened(int type, uptr object, int by);
struct proc *proc_of(uptr ep);
void process_reap(void);

#ifdef X64
#define ALLOC_VA 0x1b26f000000
#else
#define ALLOC_VA 0x01000000
#endif

// vad.c
struct vad *vad_add(struct proc *p, uptr start, uptr size, u32 prot, int image, const u16 *file);
void vad_remove(struct proc *p, uptr start);

// image.c
extern struct module driver_list[];
extern int ndrivers;

// sched.c
void kernel_threads(void);
void ready(struct thread *t);
void idle_begins(struct cpu *c);
void schedule(void);
void tick(void);
void sleep_ticks(u32 n);
void sched_init(void);
struct thread *current(void);

// syscall.c
// Programs that come and go make calls too, which are not told.
enum { CallCreateFile, CallOpenKey, CallClose, CallAllocate, CallFree, CallDelay, CallTerminate, Calls };
struct call {
	u32 seq, pid, tid, status;
	int what, kernel, cpu, nargs;
	u64 args[11], out; // out: the handle made or the address given
	u16 name[NAMELEN];
};
extern u32 counters[Calls];
extern volatile u32 zw_wanted;
extern u32 logging; // how many calls are still to be told
void syscalls_init(void);

// serial.c, truth.c
void serial_init(void);
int serial_get(void);
void out(const char *s);
void outx(u64 v);
void outd(u32 v);
void outw(const u16 *s);
void truth_start(void);
void truth_process(const char *event, struct proc *p);
void truth_thread(const char *event, struct thread *t, u32 status);
void truth_call(struct call *c);
void truth_all(void);
void command_poll(void);
_Noreturn void panic(const char *why, u64 a, u64 b, u64 c);
u64 option(const char *name, u64 def);

// lib.c
void *memset(void *p, int c, unsigned long n);
void *memcpy(void *d, const void *s, unsigned long n);
u32 strlen_(const char *s);
int streq(const char *a, const char *b);
u32 wlen(const u16 *s);
u16 *wcat(u16 *buf, u32 cap, const u16 *a, const u16 *b);
u16 *wdup(const u16 *s);
const u16 *basename(const u16 *s);
void unicode(uptr at, const u16 *s, uptr buf); // UNICODE_STRING
void unicode32(uptr at, const u16 *s, u32 buf);
static inline void list_init(uptr h) { PT(h, 0) = h; PT(h, PSZ) = h; }
void list_tail(uptr h, uptr e);
void list_remove(uptr e);
static inline void outb(u16 p, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(p)); }
static inline u8 inb(u16 p) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { __asm__ volatile("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32))); }

#endif
#endif
