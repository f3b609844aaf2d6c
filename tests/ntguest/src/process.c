// Processes and threads: their objects, lists and tokens, and their ends.
#include "nt.h"

struct proc *procs, *sysproc, *idleproc;
static struct proc *graves;
static u32 next_id = 4;

// now is the time as FILETIME: 100 ns since 1601, from a fixed start so that runs are alike.
u64 now(void) { return 0x1d91d9a00000000 + (u64)ticks * 50000; }

static u32 number(const char **s)
{
	u32 v = 0;
	while (**s >= '0' && **s <= '9')
		v = v * 10 + (u32)(*(*s)++ - '0');
	if (**s == '-')
		(*s)++;
	return v;
}

// sid_write makes the binary form of a SID such as S-1-5-18 and returns its size.
static u32 sid_write(uptr at, const char *text)
{
	text += 4;
	U8(at, 0) = 1;
	U8(at, 7) = (u8)number(&text);
	u32 n = 0;
	while (*text)
		U32(at, 8 + 4 * n++) = number(&text);
	U8(at, 1) = (u8)n;
	return 8 + 4 * n;
}

enum { TOKEN_ROOM = TOKEN__size + 0x100 };

static uptr token_new(const char *sid, u32 session)
{
	static const char *const groups[] = { 0, "S-1-1-0", "S-1-5-32-545" };
	uptr t = (uptr)object(TokenType, TOKEN_ROOM, "Toke", 0), list = t + TOKEN__size, text = list + 3 * 2 * PSZ;
	memcpy((void *)t, session ? "User32 " : "*SYSTEM*", 8); // TokenSource, and AuthenticationId, the same in every build
	U32(t, 0x18) = session ? 0x12345 : 0x3e7;
	U32(t, TOKEN_SessionId) = session;
	U32(t, TOKEN_UserAndGroupCount) = 3;
	U32(t, TOKEN_TokenType) = 1;
	PT(t, TOKEN_UserAndGroups) = list;
	for (u32 i = 0; i < 3; i++) {
		PT(list, 2 * PSZ * i) = text;
		U32(list, 2 * PSZ * i + PSZ) = i ? 7 : 0;
		text += (sid_write(text, i ? groups[i] : sid) + 7) & ~7u;
	}
	return t;
}

static u32 take_id(void)
{
	while (cid_used(next_id))
		next_id += 4;
	u32 id = next_id;
	next_id = id < 0x20000 ? id + 4 : 0x400; // around before the table is full
	return id;
}

struct proc *proc_find(u32 pid)
{
	for (struct proc *p = procs; p; p = p->next)
		if (p->pid == pid && !p->exiting)
			return p;
	return 0;
}

static uptr session_space(u32 n)
{
	static uptr spaces[4];
	if (!spaces[n & 3]) {
		spaces[n & 3] = (uptr)pool(0x200, "MmSe");
		U32(spaces[n & 3], 8) = n;
	}
	return spaces[n & 3];
}

static void name(struct proc *p, const u16 *path)
{
	const u16 *b = basename(path);
	int i = 0;
	for (; i < 14 && b[i]; i++) // NT keeps 14 bytes and a NUL of it
		p->image[i] = b[i] < 128 ? (char)b[i] : '?';
	for (i = 0; p->image[i]; i++)
		U8(p->ep, EPROCESS_ImageFileName + (uptr)i) = (u8)p->image[i];
	static const u16 volume[] = u"\\Device\\HarddiskVolume2";
	u16 full[NAMELEN] = u"";
	if (path[1] == ':')
		wcat(full, NAMELEN, volume, path + 2);
	uptr info = (uptr)pool(OBJECT_NAME_INFORMATION__size + 2 * NAMELEN, "SeNa");
	memcpy((void *)(info + OBJECT_NAME_INFORMATION__size), full, 2 * wlen(full) + 2);
	unicode(info, full, full[0] ? info + OBJECT_NAME_INFORMATION__size : 0);
	PT(p->ep, EPROCESS_SeAuditProcessCreationInfo) = info;
#ifdef EPROCESS_ImageFilePointer
	if (full[0])
		PT(p->ep, EPROCESS_ImageFilePointer) = (uptr)file_object(path + 2);
#endif
}

static void dispatcher(uptr o, int type, u32 size)
{
	U8(o, 0) = (u8)type;
	U8(o, 2) = (u8)(size / 4);
	list_init(o + DISPATCHER_HEADER_WaitListHead);
}

// process_object makes the EPROCESS of p, in no list yet.
static void process_object(struct proc *p, const struct want *w)
{
	uptr e = p->ep = (uptr)object(ProcessType, EPROCESS__size, "Proc", 0);
	dispatcher(e, 3, KPROCESS__size);
	p->created = now();
	PT(e, KPROCESS_DirectoryTableBase) = (uptr)p->root;
	list_init(AT(e, KPROCESS_ThreadListHead));
	list_init(AT(e, EPROCESS_ThreadListHead));
	list_init(AT(e, KPROCESS_ProfileListHead));
	list_init(AT(e, KPROCESS_ReadyListHead));
	U8(e, KPROCESS_BasePriority) = 8;
	PT(e, EPROCESS_UniqueProcessId) = p->pid;
	PT(e, EPROCESS_InheritedFromUniqueProcessId) = p->ppid;
	U64(e, EPROCESS_CreateTime) = p->created;
	U32(e, EPROCESS_ExitStatus) = 0x103; // pending
	p->token = token_new(p->sid, p->session);
	PT(e, EPROCESS_Token) = p->token | (PSZ == 8 ? 0xf : 7);
	if (p->pid > 4)
		PT(e, EPROCESS_Session) = session_space(p->session);
	name(p, w->path);
}

static struct proc *record(const struct want *w)
{
	struct proc *p = pool(sizeof *p, "Mine");
	p->pid = w->pid;
	p->ppid = w->ppid;
	p->path = w->path;
	p->sid = w->sid;
	p->session = w->session;
	if (w->pid > 4) {
		u16 quoted[NAMELEN], line[NAMELEN];
		wcat(quoted, NAMELEN, u"\"", w->path);
		wcat(line, NAMELEN, quoted, u"\" ");
		wcat(quoted, NAMELEN, line, w->args);
		p->cmdline = wdup(quoted);
	} else {
		p->cmdline = u"";
	}
	return p;
}

static void insert(struct proc *p)
{
	struct proc **at = &procs;
	while (*at)
		at = &(*at)->next;
	*at = p;
	list_tail((uptr)PsActiveProcessHead, AT(p->ep, EPROCESS_ActiveProcessLinks));
	cid_add(p->pid, p->ep);
}

// proc_new makes a process with an address space and threads of its own, and puts it into the lists.
struct proc *proc_new(const struct want *w)
{
	struct want with = *w;
	if (!with.pid)
		with.pid = take_id();
	struct proc *p = record(&with);
	p->root = root_alloc();
	process_object(p, &with);
	p->table = table_new(p->ep, p->pid);
	PT(p->ep, EPROCESS_ObjectTable) = p->table;
	cid_add(p->pid, p->ep);
	user_setup(p, &with);
	insert(p);
	return p;
}

// thread_new makes a thread's object and stack. It does not run.
struct thread *thread_new(struct proc *p, uptr start, int user)
{
	struct thread *t = pool(sizeof *t, "Mine"), **at = &p->threads;
	uptr e = t->et = (uptr)object(ThreadType, ETHREAD__size, "Thre", 0);
	while (*at)
		at = &(*at)->next;
	*at = t;
	p->nthreads++;
	t->proc = p;
	t->start = start;
	t->cpu = -1;
	t->runs = (u8)user;
	t->tid = p == idleproc ? 0 : take_id();
	t->stack = stack_alloc();
	dispatcher(e, 6, KTHREAD__size);
	PT(e, KTHREAD_StackLimit) = t->stack;
	PT(e, KTHREAD_StackBase) = t->stack + 0x4000;
	PT(e, KTHREAD_InitialStack) = t->stack + 0x4000 - (PSZ == 8 ? 0 : 0x210);
	PT(e, KTHREAD_Process) = p->ep;
	PT(e, KTHREAD_ApcState + KAPC_STATE_Process) = p->ep;
	list_init(AT(e, KTHREAD_ApcState));
	list_init(AT(e, KTHREAD_ApcState) + 2 * PSZ);
	U8(e, KTHREAD_Priority) = 8;
	U8(e, KTHREAD_State) = t->state = Waiting;
	U8(e, KTHREAD_WaitReason) = 6;
	U8(e, KTHREAD_PreviousMode) = (u8)user;
	PT(e, ETHREAD_Cid) = p->pid;
	PT(e, ETHREAD_Cid + PSZ) = t->tid;
	PT(e, ETHREAD_StartAddress) = PT(e, ETHREAD_Win32StartAddress) = start;
	U64(e, ETHREAD_CreateTime) = BUILD < 6000 ? now() << 3 : now();
#ifdef ETHREAD_ThreadsProcess
	PT(e, ETHREAD_ThreadsProcess) = p->ep;
#endif
	list_tail(AT(p->ep, KPROCESS_ThreadListHead), AT(e, KTHREAD_ThreadListEntry));
	list_tail(AT(p->ep, EPROCESS_ThreadListHead), AT(e, ETHREAD_ThreadListEntry));
	U32(p->ep, EPROCESS_ActiveThreads)++;
	if (t->tid)
		cid_add(t->tid, e);
	return t;
}

static void asleep_no_more(struct thread *t)
{
	for (struct thread **at = &sleepers; *at; at = &(*at)->ready)
		if (*at == t) {
			*at = t->ready;
			return;
		}
}

// unlink_thread takes a thread that has ended out of the lists, once nothing has it open.
static void unlink_thread(struct thread *t)
{
	if (t->opened || t->unlinked || t->state != Terminated)
		return;
	t->unlinked = 1;
	list_remove(AT(t->et, ETHREAD_ThreadListEntry));
	cid_remove(t->tid);
}

static void unlink_process(struct proc *p)
{
	if (p->opened || p->unlinked || !p->exiting)
		return;
	p->unlinked = 1;
	list_remove(AT(p->ep, EPROCESS_ActiveProcessLinks));
	cid_remove(p->pid);
}

// end makes a thread that runs nowhere else be over.
static void end(struct thread *t, u32 status)
{
	if (t->state == Terminated)
		return;
	list_remove(AT(t->et, KTHREAD_ThreadListEntry));
	U32(t->proc->ep, EPROCESS_ActiveThreads)--;
	U32(t->et, ETHREAD_ExitStatus) = status;
	U64(t->et, ETHREAD_ExitTime) = now();
	U8(t->et, KTHREAD_State) = t->state = Terminated;
	unlink_thread(t);
}

// thread_exit ends the current thread, which is not the last of its process.
void thread_exit(u32 status)
{
	struct thread *t = current();
	end(t, status);
	truth_thread("thread-exit", t, status);
	schedule(); // does not come back
}

struct proc *proc_of(uptr ep)
{
	for (struct proc *p = procs; p; p = p->next)
		if (p->ep == ep)
			return p;
	for (struct proc *p = graves; p; p = p->next)
		if (p->ep == ep)
			return p;
	return 0;
}

// opened counts the handles of a process or thread. What has ended is in the lists until the last is closed.
void opened(int type, uptr object, int by)
{
	if (type == ProcessType) {
		struct proc *p = proc_of(object);
		p->opened += by;
		unlink_process(p);
	} else if (type == ThreadType) {
		struct proc *p = proc_of(PT(object, KTHREAD_Process));
		for (struct thread *t = p->threads; t; t = t->next)
			if (t->et == object) {
				t->opened += by;
				unlink_thread(t);
			}
	}
}

// proc_exit ends the current thread's process. Its other threads must be asleep.
void proc_exit(struct proc *p, u32 status)
{
	p->exiting = 1;
	for (struct thread *t = p->threads; t; t = t->next) {
		if (t != current())
			asleep_no_more(t);
		end(t, status);
	}
	p->status = status;
	U32(p->ep, EPROCESS_ExitStatus) = status;
	U64(p->ep, EPROCESS_ExitTime) = now();
	PT(p->ep, EPROCESS_ObjectTable) = 0;
	unlink_process(p);
	truth_process("exit", p);
	for (struct proc **at = &procs; *at; at = &(*at)->next)
		if (*at == p) {
			*at = p->next;
			break;
		}
	p->next = graves;
	graves = p;
	schedule(); // does not come back
}

static void bury(struct proc *p)
{
	while (p->nvad)
		vad_remove(p, p->vad[0].start);
	table_free(p);
	root_free(p->root);
	for (struct thread *t = p->threads, *next; t; t = next) {
		next = t->next;
		object_free((void *)t->et, ETHREAD__size);
		stack_free(t->stack);
		pool_free(t, sizeof *t);
	}
	object_free((void *)p->token, TOKEN_ROOM);
#ifdef EPROCESS_ImageFilePointer
	if (PT(p->ep, EPROCESS_ImageFilePointer))
		file_free(PT(p->ep, EPROCESS_ImageFilePointer));
#endif
	pool_free((void *)PT(p->ep, EPROCESS_SeAuditProcessCreationInfo), OBJECT_NAME_INFORMATION__size + 2 * NAMELEN);
	object_free((void *)p->ep, EPROCESS__size);
	pool_free((void *)p->cmdline, 2 * wlen(p->cmdline) + 2);
	pool_free(p, sizeof *p);
}

// process_reap frees what ended processes had, once none of their threads is on a processor.
void process_reap(void)
{
	for (struct proc **at = &graves; *at;) {
		struct proc *p = *at;
		int busy = p->opened;
		for (struct thread *t = p->threads; t; t = t->next)
			busy |= t->cpu >= 0 || t->opened;
		if (busy) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		bury(p);
	}
}

static void idle_process(void)
{
	static const struct want idle = { u"Idle", u"", "S-1-5-18", 0, 0, 0, 0, 0, 0 };
	idleproc = record(&idle);
	idleproc->root = system_root;
	process_object(idleproc, &idle);
	PsIdleProcess = idleproc->ep;
	for (u32 i = 0; i < MAXCPU && i < option("cpus", 1); i++)
		cpus[i].idle = thread_new(idleproc, (uptr)idle_loop, 0);
}

static void system_process(void)
{
	static const struct want sys = { u"System", u"", "S-1-5-18", 0, 0, 4, 0, 0, 0 };
	sysproc = record(&sys);
	next_id = 8;
	sysproc->root = system_root;
	process_object(sysproc, &sys);
	PsInitialSystemProcess = sysproc->ep;
	sysproc->table = table_new(sysproc->ep, 4);
	PT(sysproc->ep, EPROCESS_ObjectTable) = sysproc->table;
	insert(sysproc);
	kernel_threads();
	handle_add(sysproc, KeyType, key_object(u"\\REGISTRY\\MACHINE\\SYSTEM"), 0xf003f, u"\\REGISTRY\\MACHINE\\SYSTEM");
	handle_add(sysproc, FileType, file_object(u"\\pagefile.sys"), 0x12019f, u"\\Device\\HarddiskVolume2\\pagefile.sys");
}

void process_init(void)
{
	idle_process();
	system_process();
}
