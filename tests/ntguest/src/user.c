// What a process has of its own: images, PEB, loader lists, parameters, threads' blocks and stacks.
#include "nt.h"

extern char prog[], prog_end[];
#ifdef X64
#define EXE_VA (BUILD >= 10000 ? 0x7ff6c4a10000 : 0x13f640000)
#define NTDLL_VA (BUILD >= 10000 ? 0x7ffb3a2d0000 : 0x77a10000)
#define K32_VA (BUILD >= 10000 ? 0x7ffb39810000 : 0x777f0000)
#define PEB_VA (BUILD >= 10000 ? 0xd5a3c00000 : 0x7fffffd8000)
#define TEB_VA (PEB_VA + 0x1000)
#define HEAP_VA 0x1b26de60000
#define STACK_VA 0xd5a3a00000
#else
#define EXE_VA 0x00400000
#define NTDLL_VA 0x77a10000
#define K32_VA 0x77740000
#define PEB_VA 0x7ffdf000
#define TEB_VA 0x7ffd0000
#define HEAP_VA 0x00150000
#define STACK_VA 0x00030000
#endif
#define USER_SHARED 0x7ffe0000
enum { HEAP_PAGES = 8, STUB = 32, NTDLL_TEXT = 0x1000 };

struct svc { const char *name; u16 nr; u8 args; };
#define SVC(nr, name, args) { #name, nr, args },
static const struct svc svcs[] = {
#include "services.inc"
};
enum { NSVC = sizeof svcs / sizeof svcs[0] };
static struct export_ ntdll_exports[NSVC];
static u64 ntdll_phys;
static u32 ntdll_size;
#ifndef X64
static uptr fast_call;
#endif

// stub writes a function of ntdll that makes a system call, in the form that the build's own have.
static void stub(u8 *s, u32 nr, u32 args)
{
#ifdef X64
	static const u8 old[] = { 0x4c, 0x8b, 0xd1, 0xb8, 0, 0, 0, 0, 0x0f, 0x05, 0xc3 };
	static const u8 new[] = { 0x4c, 0x8b, 0xd1, 0xb8, 0, 0, 0, 0, 0xf6, 0x04, 0x25, 0x08, 0x03, 0xfe, 0x7f, 0x01, 0x75, 0x03, 0x0f, 0x05, 0xc3, 0xcd, 0x2e, 0xc3 };
	memcpy(s, BUILD >= 10000 ? new : old, BUILD >= 10000 ? sizeof new : sizeof old);
	U32(s, 4) = nr;
	(void)args;
#else
	static const u8 all[] = { 0xb8, 0, 0, 0, 0, 0xba, 0x00, 0x03, 0xfe, 0x7f, 0xff, 0x12, 0xc2, 0, 0 };
	memcpy(s, all, sizeof all);
	U32(s, 1) = nr;
	U16(s, 13) = (u16)(4 * args);
#endif
}

static uptr ntdll_function(const char *name)
{
	for (u32 i = 0; i < NSVC; i++)
		if (streq(svcs[i].name, name))
			return NTDLL_VA + NTDLL_TEXT + STUB * i;
	panic("no such service", 0, 0, 0);
}

// shared_data fills the page that user and kernel see: KUSER_SHARED_DATA.
static void shared_data(void)
{
	U32(SHARED_VA, KUSER_SHARED_DATA_NtMajorVersion) = MAJOR;
	U32(SHARED_VA, KUSER_SHARED_DATA_NtMinorVersion) = MINOR;
	U32(SHARED_VA, KUSER_SHARED_DATA_NtProductType) = 1;
#ifdef KUSER_SHARED_DATA_NtBuildNumber
	U32(SHARED_VA, KUSER_SHARED_DATA_NtBuildNumber) = claimed_build;
#endif
	memcpy((void *)(SHARED_VA + KUSER_SHARED_DATA_NtSystemRoot), u"C:\\Windows", 22);
#ifndef X64
	U32(SHARED_VA, 0x300) = (u32)fast_call + (option("int2e", 0) ? 16 : 0);
	U32(SHARED_VA, 0x304) = (u32)fast_call + 4;
#endif
}

// ntdll_init makes the one image of ntdll that all processes share.
void ntdll_init(void)
{
	static const struct section text = { ".text", NTDLL_TEXT, STUB * (NSVC + 1), 0x60000020 };
	u32 edata = (NTDLL_TEXT + STUB * (NSVC + 1) + 4095) & ~4095u;
	ntdll_size = edata + 0x8000;
	ntdll_phys = run_of(ntdll_size);
	u8 *at = pv(ntdll_phys);
	memset(at, 0xcc, ntdll_size);
	for (u32 i = 0; i < NSVC; i++) {
		stub(at + NTDLL_TEXT + STUB * i, svcs[i].nr, svcs[i].args);
		ntdll_exports[i] = (struct export_){ svcs[i].name, (void *)(uptr)(NTDLL_VA + NTDLL_TEXT + STUB * i) };
	}
#ifndef X64
	// KiFastSystemCall, its return, and KiIntSystemCall
	static const u8 calls[] = { 0x8b, 0xd4, 0x0f, 0x34, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x8d, 0x54, 0x24, 0x08, 0xcd, 0x2e, 0xc3 };
	memcpy(at + NTDLL_TEXT + STUB * NSVC, calls, sizeof calls);
	fast_call = NTDLL_VA + NTDLL_TEXT + STUB * NSVC;
#endif
	struct pe p = { .at = at, .base = NTDLL_VA, .size = ntdll_size, .stamp = STAMP, .entry = NTDLL_TEXT, .is64 = PSZ == 8, .dll = 1, .name = "ntdll.dll", .exports = ntdll_exports, .nexports = NSVC, .edata = edata, .sections = &text, .nsections = 1 };
	pe_build(&p);
	shared_data();
}

int page_shared(u64 phys)
{
	return (phys >= ntdll_phys && phys < ntdll_phys + ntdll_size) || phys == (get_pte(system_root, SHARED_VA) & 0x000ffffffffff000);
}

// user_page maps a fresh page in a process and returns the kernel's view of it.
static uptr user_page(struct proc *p, uptr va, int flags)
{
	u64 page = page_alloc();
	map(p->root, va, page, flags | U);
	return (uptr)pv(page);
}

// ualloc returns size bytes of the process's heap, within a page: the address there, and the kernel's view in *k.
static uptr ualloc(struct proc *p, u32 size, uptr *k)
{
	size = (size + 15) & ~15u;
	if (p->uleft < size) {
		p->uva = p->uva ? (p->uva + 4095) & ~4095ul : HEAP_VA;
		if (p->uva >= HEAP_VA + 4096 * HEAP_PAGES)
			panic("user heap is full", p->pid, 0, 0);
		p->upage = user_page(p, p->uva, W);
		p->uleft = 4096;
	}
	uptr va = p->uva;
	*k = p->upage + (va & 4095);
	p->uva += size;
	p->uleft -= size;
	if (!p->uleft)
		p->uva = va + size;
	return va;
}

static uptr ustring(struct proc *p, const u16 *s)
{
	uptr k, va = ualloc(p, 2 * wlen(s) + 2, &k);
	memcpy((void *)k, s, 2 * wlen(s) + 2);
	return va;
}

// image maps a page of headers, so that an image's base is one. Pages of the real thing come after it, not mapped.
static void image(struct proc *p, uptr va, u32 size, int is64, const char *name)
{
	static const struct section text = { ".text", 0x1000, 0x1000, 0x60000020 };
	struct pe h = { .at = (u8 *)user_page(p, va, 0), .base = va, .size = size, .stamp = STAMP, .entry = 0x1000, .is64 = is64, .dll = !!name, .name = name, .edata = 0xc00, .sections = &text, .nsections = 1 };
	pe_build(&h);
}

// A loader list: where its heads are, in the width of its process.
struct ldr { uptr k, va; int wide; };

static void put(uptr k, uptr off, uptr v, int wide)
{
	if (wide)
		PT(k, off) = v;
	else
		U32(k, off) = (u32)v;
}

// The three lists go through entries of user space, so each is linked by keeping the previous entry of both views.
struct link { uptr k, va; };

static void entry_link(struct ldr *l, struct link *last, uptr k, uptr va, uptr head, uptr at)
{
	uptr w = l->wide ? PSZ : 4;
	uptr first = l->va + head;
	put(last->k, 0, va + at, l->wide);
	put(k + at, w, last->va, l->wide);
	put(k + at, 0, first, l->wide);
	put(l->k + head, w, va + at, l->wide);
	*last = (struct link){ k + at, va + at };
}

struct lists { struct ldr l; struct link last[3]; uptr w; };

static struct lists loader(struct proc *p, int wide)
{
	uptr k, w = wide ? PSZ : 4, va = ualloc(p, 0x60, &k), first = wide ? PEB_LDR_DATA_InLoadOrderModuleList : 0xc;
	U32(k, 0) = 0x58;
	U8(k, 4) = 1;
	struct lists s = { { k, va, wide }, { { 0, 0 } }, w };
	for (uptr i = 0; i < 3; i++) {
		uptr head = first + 2 * w * i;
		put(k, head, va + head, wide);
		put(k, head + w, va + head, wide);
		s.last[i] = (struct link){ k + head, va + head };
	}
	return s;
}

// module_add adds a module to the lists. cold: 0 as usual, 1 its name is paged out, 2 in transition.
static void module_add(struct proc *p, struct lists *s, uptr base, uptr size, const u16 *path, int cold)
{
	int wide = s->l.wide;
	uptr w = s->w, k, text;
	uptr va = ualloc(p, wide ? LDR_DATA_TABLE_ENTRY__size : 0x50, &k);
	if (cold) {
		uptr page = user_page(p, p->cold, W);
		memcpy((void *)page, path, 2 * wlen(path) + 2);
		text = p->cold;
		u64 pte = get_pte(p->root, text);
		put_pte(p->root, text, cold == 2 ? (pte & 0x000ffffffffff000) | 0x880 : 0x6780 << 12 | 0x80);
		if (cold == 1)
			page_free(pte & 0x000ffffffffff000);
		p->cold += 4096;
	} else {
		text = ustring(p, path);
	}
	uptr first = wide ? PEB_LDR_DATA_InLoadOrderModuleList : 0xc;
	for (uptr i = 0; i < 3; i++) // the program itself is in no order of initialisation
		if (i != 2 || base != p->base)
			entry_link(&s->l, &s->last[i], k, va, first + 2 * w * i, 2 * w * i);
	const u16 *name = basename(path);
	put(k, 6 * w, base, wide);
	put(k, 7 * w, base + 0x1000, wide);
	U32(k, 8 * w) = (u32)size;
	uptr names = 9 * w;
	if (wide) {
		unicode(k + names, path, text);
		unicode(k + names + 2 * w, name, text + 2 * (uptr)(name - path));
	} else {
		unicode32(k + names, path, (u32)text);
		unicode32(k + names + 8, name, (u32)(text + 2 * (uptr)(name - path)));
	}
	p->mod[p->nmod++] = (struct module){ base, size, path, name, !wide, cold };
}

static void parameters(struct proc *p)
{
	uptr k, va = ualloc(p, RTL_USER_PROCESS_PARAMETERS__size, &k), env;
	U32(k, RTL_USER_PROCESS_PARAMETERS_Length) = RTL_USER_PROCESS_PARAMETERS__size;
	U32(k, RTL_USER_PROCESS_PARAMETERS_MaximumLength) = RTL_USER_PROCESS_PARAMETERS__size;
	U32(k, RTL_USER_PROCESS_PARAMETERS_Flags) = 1;
	unicode(AT(k, RTL_USER_PROCESS_PARAMETERS_ImagePathName), p->path, ustring(p, p->path));
	unicode(AT(k, RTL_USER_PROCESS_PARAMETERS_CommandLine), p->cmdline, ustring(p, p->cmdline));
	unicode(AT(k, RTL_USER_PROCESS_PARAMETERS_CurrentDirectory), u"C:\\Windows\\", ustring(p, u"C:\\Windows\\"));
	PT(k, RTL_USER_PROCESS_PARAMETERS_Environment) = ualloc(p, 64, &env);
	memcpy((void *)env, u"OS=Windows_NT\0", 30);
	p->params = va;
}

static void peb(struct proc *p, uptr ldr)
{
	p->peb = PEB_VA;
	uptr k = user_page(p, PEB_VA, W);
	PT(k, PEB_ImageBaseAddress) = p->base;
	PT(k, PEB_Ldr) = ldr;
	PT(k, PEB_ProcessParameters) = p->params;
	U32(k, PEB_SessionId) = p->session;
	U32(k, PEB_NumberOfProcessors) = 2;
	U32(k, PEB_OSMajorVersion) = MAJOR;
	U32(k, PEB_OSMinorVersion) = MINOR;
	U16(k, PEB_OSBuildNumber) = (u16)claimed_build;
}

#ifdef X64
// wow gives the process a 32-bit PEB and loader lists besides.
static void wow(struct proc *p)
{
	p->peb32 = 0x7efde000;
	uptr k = user_page(p, p->peb32, W), exe = 0x400000;
	struct lists s = loader(p, 0);
	U32(k, PEB32_ImageBaseAddress) = (u32)exe;
	U32(k, PEB32_Ldr) = (u32)s.l.va;
	module_add(p, &s, exe, 0x9000, p->path, 0);
	module_add(p, &s, 0x77d40000, 0x180000, u"C:\\Windows\\SysWOW64\\ntdll.dll", 0);
	image(p, 0x77d40000, 0x180000, 0, "ntdll.dll");
	vad_add(p, 0x77d40000, 0x180000, 7, 1, u"\\Windows\\SysWOW64\\ntdll.dll");
	vad_add(p, p->peb32, 0x1000, 4, 0, 0);
#ifdef EPROCESS_Wow64Process
	PT(p->ep, EPROCESS_Wow64Process) = p->peb32;
#else
	uptr w = (uptr)pool(EWOW64PROCESS__size, "Wow6");
	PT(w, EWOW64PROCESS_Peb) = p->peb32;
	PT(p->ep, EPROCESS_WoW64Process) = w;
#endif
}
#endif

static const u16 *on_volume(const u16 *path) { return path[1] == ':' ? path + 2 : path; }

// images maps the program and its libraries.
static void images(struct proc *p, const struct want *w)
{
	uptr n = (uptr)(prog_end - prog);
	image(p, p->base, 0x9000, !p->wow && PSZ == 8, 0);
	for (uptr at = 0; at < n; at += 4096)
		memcpy((void *)user_page(p, p->base + 0x1000 + at, X), prog + at, n - at < 4096 ? n - at : 4096);
	for (u32 at = 0; at < ntdll_size; at += 4096)
		map(p->root, NTDLL_VA + at, ntdll_phys + at, U | X);
	image(p, K32_VA, 0xd4000, PSZ == 8, "kernel32.dll");
	map(p->root, USER_SHARED, get_pte(system_root, SHARED_VA) & 0x000ffffffffff000, U);
	vad_add(p, p->base, 0x9000, 7, 1, on_volume(p->path));
	vad_add(p, NTDLL_VA, ntdll_size, 7, 1, u"\\Windows\\System32\\ntdll.dll");
	vad_add(p, K32_VA, 0xd4000, 7, 1, u"\\Windows\\System32\\kernel32.dll");
	(void)w;
}

static void block(struct proc *p, const struct want *w)
{
	uptr k, va = ualloc(p, sizeof(struct block), &k);
	struct block *b = p->block = (struct block *)k;
	b->NtCreateFile = ntdll_function("NtCreateFile");
	b->NtOpenKey = ntdll_function("NtOpenKey");
	b->NtClose = ntdll_function("NtClose");
	b->NtAllocateVirtualMemory = ntdll_function("NtAllocateVirtualMemory");
	b->NtFreeVirtualMemory = ntdll_function("NtFreeVirtualMemory");
	b->NtDelayExecution = ntdll_function("NtDelayExecution");
	b->NtTerminateProcess = ntdll_function("NtTerminateProcess");
	b->NtCreateProcess = ntdll_function(BUILD < 6000 ? "NtCreateProcessEx" : "NtCreateUserProcess");
	b->NtCreateThread = ntdll_function(BUILD < 6000 ? "NtCreateThread" : "NtCreateThreadEx");
	b->NtTerminateThread = ntdll_function("NtTerminateThread");
	b->kind = p->kind = w->kind;
	wcat(b->file, 64, u"\\??\\C:\\work\\", basename(p->path));
	wcat(b->key, 64, u"\\Registry\\Machine\\Software\\Vitrine\\", basename(p->path));
	wcat(b->missing, 64, u"\\??\\C:\\missing\\", basename(p->path));
	p->slots = va; // until threads have started: where the block is for the program
}

struct thread *user_thread(struct proc *p)
{
	uptr n = (uptr)p->nthreads;
	struct thread *t = thread_new(p, p->base + 0x1000, 1);
	t->teb = TEB_VA + (PSZ == 8 ? 0x2000 * n : 0xf000 - 0x1000 * (n + 1));
	t->ustack = STACK_VA + 0x40000 * n + 0x40000;
	uptr k = user_page(p, t->teb, W);
#ifdef X64
	user_page(p, t->teb + 0x1000, W);
#endif
	PT(k, TEB_NtTib + 6 * PSZ) = t->teb;
	PT(k, TEB_NtTib + PSZ) = t->ustack;
	PT(k, TEB_NtTib + 2 * PSZ) = t->ustack - 0x2000;
	PT(k, TEB_ClientId) = p->pid;
	PT(k, TEB_ClientId + PSZ) = t->tid;
	PT(k, TEB_ProcessEnvironmentBlock) = PEB_VA;
	PT(t->et, KTHREAD_Teb) = t->teb;
	uptr stack = user_page(p, t->ustack - 0x1000, W);
	user_page(p, t->ustack - 0x2000, W);
	vad_add(p, t->ustack - 0x40000, 0x40000, 4, 0, 0);
	PT(t->et, KTHREAD_TrapFrame) = t->sp = 0;
	uptr top = PT(t->et, KTHREAD_InitialStack), frame;
#ifdef X64
	frame = top - KTRAP_FRAME__size;
	U64(frame, KTRAP_FRAME_Rip) = p->base + 0x1000;
	U64(frame, KTRAP_FRAME_Rsp) = t->ustack - 0x200 - 8;
	U16(frame, KTRAP_FRAME_SegCs) = 0x33;
	U16(frame, KTRAP_FRAME_SegSs) = 0x2b;
	U32(frame, KTRAP_FRAME_EFlags) = 0x202;
	U64(frame, KTRAP_FRAME_Rcx) = p->slots;
	U64(frame, KTRAP_FRAME_Rdx) = n == 0;
	(void)stack;
#else
	frame = top - 0x10 - 0x7c;
	U32(frame, KTRAP_FRAME_Eip) = p->base + 0x1000;
	U32(frame, KTRAP_FRAME_HardwareEsp) = t->ustack - 0x200;
	U32(frame, KTRAP_FRAME_SegCs) = 0x1b;
	U32(frame, KTRAP_FRAME_HardwareSegSs) = 0x23;
	U32(frame, KTRAP_FRAME_EFlags) = 0x202;
	U32(frame, KTRAP_FRAME_SegFs) = 0x3b;
	U32(frame, KTRAP_FRAME_SegDs) = U32(frame, KTRAP_FRAME_SegEs) = 0x23;
	U32(stack, 0x1000 - 0x200 + 4) = (u32)p->slots;
	U32(stack, 0x1000 - 0x200 + 8) = n == 0;
#endif
	PT(t->et, KTHREAD_TrapFrame) = frame;
	extern char KiThreadStartup[];
	uptr regs = PSZ == 8 ? 6 : 4;
	t->sp = frame - (regs + 1) * PSZ;
	PT(t->sp, regs * PSZ) = (uptr)KiThreadStartup;
	PT(t->et, KTHREAD_KernelStack) = t->sp;
	ready(t);
	return t;
}

// user_setup fills a new process's address space.
void user_setup(struct proc *p, const struct want *w)
{
	p->wow = w->wow && PSZ == 8;
	p->base = p->wow ? 0x400000 : (uptr)EXE_VA;
	p->cold = HEAP_VA + 0x20000;
	images(p, w);
	if (p->wow) // the rest of a 32-bit process must be below 4 GiB, for the lists to reach it
		p->uva = 0x00500000;
	struct lists s = loader(p, 1);
	int cold = w->pid % 12 == 4 ? 1 : w->pid % 12 == 8 ? 2 : 0;
	module_add(p, &s, p->base, 0x9000, p->path, 0);
	module_add(p, &s, NTDLL_VA, ntdll_size, u"C:\\Windows\\SYSTEM32\\ntdll.dll", 0);
	module_add(p, &s, K32_VA, 0xd4000, u"C:\\Windows\\System32\\kernel32.dll", cold);
	parameters(p);
	peb(p, s.l.va);
	block(p, w);
#ifdef X64
	if (p->wow)
		wow(p);
#endif
	PT(p->ep, EPROCESS_Peb) = p->peb;
	PT(p->ep, EPROCESS_SectionBaseAddress) = p->base;
	vad_add(p, HEAP_VA, 0x40000, 4, 0, 0);
	if (p->wow)
		vad_add(p, 0x500000, 0x10000, 4, 0, 0);
	vad_add(p, PEB_VA, 0x1000, 4, 0, 0);
	vad_add(p, USER_SHARED, 0x1000, 1, 0, 0);
	for (u32 i = 0; i < w->threads; i++)
		user_thread(p);
}
