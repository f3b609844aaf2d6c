// What the guest says of itself, one JSON object a line, and the commands that it takes.
#include "nt.h"

static int first;

static void key(const char *name)
{
	out(first ? "\"" : ",\"");
	first = 0;
	out(name);
	out("\":");
}

static void x(const char *name, u64 v) { key(name), outx(v); }
static void d(const char *name, u32 v) { key(name), outd(v); }
static void w(const char *name, const u16 *v) { key(name), outw(v); }
static void b(const char *name, int v) { key(name), out(v ? "true" : "false"); }

static void s(const char *name, const char *v)
{
	key(name);
	out("\"");
	out(v);
	out("\"");
}

static void open_(const char *bracket) { out(bracket), first = 1; }
static void close_(const char *bracket) { out(bracket), first = 0; }

// line begins an object of a type.
static void line(const char *type)
{
	open_("{");
	s("type", type);
}

static void item(void)
{
	if (!first)
		out(",");
	open_("{");
}

static const char *const held[] = { "", "paged out", "transition" };

static void modules(const struct module *m, int n)
{
	open_("[");
	for (int i = 0; i < n; i++, m++) {
		item();
		x("base", m->base), x("size", m->size), w("path", m->path), w("name", m->name), b("wow64", m->wow);
		s("held", held[m->paged]);
		close_("}");
	}
	close_("]");
}

static void threads(struct thread *t)
{
	open_("[");
	for (; t; t = t->next) {
		if (t->unlinked)
			continue;
		item();
		d("tid", t->tid), x("ethread", t->et), x("teb", t->teb), x("start", t->start);
		close_("}");
	}
	close_("]");
}

static void vads(struct proc *p)
{
	open_("[");
	for (int i = 0; i < p->nvad; i++) {
		struct vad *v = &p->vad[i];
		item();
		x("node", v->node), x("start", v->start), x("end", v->end), d("protection", v->prot), b("private", v->private_);
		b("image", v->image), w("file", v->file ? v->file : u"");
		close_("}");
	}
	close_("]");
}

static void handles(struct proc *p)
{
	open_("[");
	for (int i = 0; i < p->nhandle; i++) {
		struct handle *h = &p->handles[i];
		item();
		x("handle", h->value), x("object", h->object), s("type", type_name(h->type)), x("access", h->access);
		w("name", h->name ? h->name : u"");
		close_("}");
	}
	close_("]");
}

static void process(struct proc *p, int full)
{
	open_("{");
	d("pid", p->pid), d("ppid", p->ppid), x("eprocess", p->ep), x("dtb", p->root), s("image", p->image), w("path", p->path);
	w("command_line", p->cmdline), x("created", p->created), s("sid", p->sid), d("session", p->session), b("wow64", p->wow);
	x("peb", p->peb), x("peb32", p->peb32), x("parameters", p->params), x("base", p->base), x("token", p->token);
	x("handle_table", p->table), d("handle_count", (u32)p->nhandle), d("rounds", p->block ? p->block->done : 0);
	d("spins", p->block ? p->block->spins : 0);
	key("threads"), threads(p->threads);
	if (full) {
		key("modules"), modules(p->mod, p->nmod);
		key("vads"), vads(p);
		key("handles"), handles(p);
	}
	close_("}");
}

void truth_process(const char *event, struct proc *p)
{
	line(event);
	x("time", now());
	d("status", p->status);
	key("process"), process(p, 0);
	out("}\n");
}

void truth_thread(const char *event, struct thread *t, u32 status)
{
	line(event);
	x("time", now()), d("pid", t->proc->pid), d("tid", t->tid), x("ethread", t->et), d("status", status);
	out("}\n");
}

static const char *const names[Calls] = { "NtCreateFile", "NtOpenKey", "NtClose", "NtAllocateVirtualMemory", "NtFreeVirtualMemory", "NtDelayExecution", "NtTerminateProcess" };

void truth_call(struct call *c)
{
	line("call");
	d("seq", c->seq), s("name", names[c->what]), d("pid", c->pid), d("tid", c->tid), d("cpu", (u32)c->cpu), b("kernel", c->kernel);
	x("time", now()), x("status", c->status), x("out", c->out), w("object", c->name);
	key("args");
	open_("[");
	for (int i = 0; i < c->nargs; i++) {
		out(i ? "," : "");
		outx(c->args[i]);
	}
	close_("]");
	out("}\n");
}

static void counts(void)
{
	key("counters");
	open_("{");
	for (int i = 0; i < Calls; i++)
		d(names[i], counters[i]);
	close_("}");
}

static void guid(const u8 *g)
{
	static const u8 order[] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	char text[33];
	for (int i = 0; i < 16; i++) {
		text[2 * i] = "0123456789ABCDEF"[g[order[i]] >> 4];
		text[2 * i + 1] = "0123456789ABCDEF"[g[order[i]] & 15];
	}
	text[32] = 0;
	s("guid", text);
}

static void service_table(void)
{
	extern char KiServiceTable[], NtCreateFile[], NtOpenKey[], NtClose[], NtAllocateVirtualMemory[];
	x("KiServiceTable", (uptr)KiServiceTable), d("services", NSERVICES);
	key("functions");
	open_("{");
	x("NtCreateFile", (uptr)NtCreateFile), x("NtOpenKey", (uptr)NtOpenKey), x("NtClose", (uptr)NtClose);
	x("NtAllocateVirtualMemory", (uptr)NtAllocateVirtualMemory);
	close_("}");
}

// kernel tells where the kernel and its variables are.
static void kernel(void)
{
	extern u8 KdpDataBlockEncoded;
	extern u64 KiWaitNever, KiWaitAlways;
	line("kernel");
	s("what", "not Windows: a test guest that lays its structures out as a build does"), s("layout", LAYOUT), d("build", claimed_build);
	s("arch", PSZ == 8 ? "x64" : "x86"), b("pae", KERNEL_PAE), x("base", (uptr)__image), x("size", (u64)(__image_end - __image));
	x("text_end", (uptr)__text_end), x("physical", IMAGE_PHYS), s("pdb", PDB), guid(kernel_pe.guid), d("age", kernel_pe.age);
	x("dtb", system_root), x("kdbg", kdbg), b("kdbg_encoded", KdpDataBlockEncoded), x("KdpDataBlockEncoded", (uptr)&KdpDataBlockEncoded);
	x("KiWaitNever", KiWaitNever), x("KiWaitAlways", KiWaitAlways);
	x("PsActiveProcessHead", (uptr)PsActiveProcessHead), x("PsLoadedModuleList", (uptr)PsLoadedModuleList);
	x("PsInitialSystemProcess", PsInitialSystemProcess), x("PsIdleProcess", PsIdleProcess), x("PspCidTable", (uptr)&PspCidTable);
	x("counters_at", (uptr)counters), x("ticks_at", (uptr)&ticks), x("paged_page", (uptr)__paged);
	service_table();
	key("cpus");
	open_("[");
	for (int i = 0; i < ncpu; i++) {
		item();
		x("kpcr", cpus[i].pcr), x("kprcb", cpus[i].prcb), x("idt", cpus[i].idt), x("gdt", cpus[i].gdt), x("idle_thread", cpus[i].idle->et);
		close_("}");
	}
	close_("]");
	out("}\n");
	line("drivers");
	key("drivers"), modules(driver_list, ndrivers);
	out("}\n");
}

// truth_all tells everything as it is at this moment, ended by a line of type end.
void truth_all(void)
{
	kernel();
	u32 n = 0;
	for (struct proc *p = idleproc; p; p = p == idleproc ? procs : p->next, n++) {
		line("process");
		key("process"), process(p, 1);
		out("}\n");
	}
	line("end");
	d("processes", n), d("ticks", ticks), counts();
	out("}\n");
}

static void running(void)
{
	line("current");
	key("cpus");
	open_("[");
	for (int i = 0; i < ncpu; i++) {
		item();
		d("pid", cpus[i].cur->proc->pid), d("tid", cpus[i].cur->tid), x("ethread", cpus[i].cur->et), x("eprocess", cpus[i].cur->proc->ep);
		d("switches", cpus[i].switches);
		close_("}");
	}
	close_("]");
	out("}\n");
}

static u32 text_hash(void)
{
	u32 h = 2166136261u;
	for (char *at = __image + 4096; at < __text_end; at++)
		h = (h ^ (u8)*at) * 16777619u;
	return h;
}

static char command[64];
static u32 have, waited_for, churn, churn_at;

static u32 argument(const char *c)
{
	u32 v = 0;
	while (*c && *c != ' ')
		c++;
	while (*c == ' ')
		c++;
	for (; *c >= '0' && *c <= '9'; c++)
		v = v * 10 + (u32)(*c - '0');
	return v;
}

static int is(const char *name)
{
	const char *c = command;
	while (*name && *name == *c)
		name++, c++;
	return !*name && (!*c || *c == ' ');
}

static u32 all_done(void)
{
	u32 n = 0;
	for (struct proc *p = procs; p; p = p->next)
		if (p->block && p->kind == KindWorker)
			n += p->block->rounds + p->block->births;
	return n;
}

static void call_rounds(u32 n)
{
	for (struct proc *p = procs; p; p = p->next)
		if (p->block && p->kind == KindWorker)
			__atomic_fetch_add(&p->block->rounds, n, __ATOMIC_RELAXED);
	waited_for = 1;
}

// births makes the first worker make processes, and threads of its own.
static void births(u32 n)
{
	struct proc *p = procs;
	while (p && !(p->block && p->kind == KindWorker))
		p = p->next;
	if (p)
		__atomic_fetch_add(&p->block->births, n, __ATOMIC_RELAXED);
	waited_for = 1;
}

static struct proc *spawn(void)
{
	static const struct want child = { u"C:\\Windows\\System32\\child.exe", u"-x", "S-1-5-21-1111111111-2222222222-3333333333-1001", 1, 0, 0, 1, KindWorker, 0 };
	struct want want = child;
	want.ppid = procs->next ? procs->next->pid : 4;
	struct proc *p = proc_new(&want);
	truth_process("start", p);
	return p;
}

static void leave(u32 pid)
{
	struct proc *p = proc_find(pid);
	if (p && p->block && p->nthreads == 1)
		p->block->leave = 1 + 7;
}

static void obey(void)
{
	u32 n = argument(command);
	if (is("ps"))
		truth_all();
	else if (is("current"))
		running();
	else if (is("calls")) // calls N: each worker makes N rounds, untold
		call_rounds(n);
	else if (is("syscalls")) // the same, told
		logging = ~0u, call_rounds(n);
	else if (is("zw"))
		logging = ~0u, zw_wanted = n, waited_for = 1;
	else if (is("spawn"))
		spawn();
	else if (is("births"))
		births(n);
	else if (is("exit"))
		leave(n);
	else if (is("churn"))
		churn = n, churn_at = ticks;
	else if (is("ping") || is("hash"))
		;
	else
		out("{\"type\":\"unknown\"}\n");
	line("ok");
	s("command", command), x("text_hash", is("hash") ? text_hash() : 0), counts();
	out("}\n");
}

// churned starts a process every few ticks, and ends the one before.
static void churned(void)
{
	static u32 last;
	if (!churn || (s32)(ticks - churn_at) < 0)
		return;
	churn_at = ticks + churn;
	if (last)
		leave(last);
	last = spawn()->pid;
}

// command_poll is called at each tick.
void command_poll(void)
{
	if (waited_for && !all_done() && !zw_wanted) {
		waited_for = logging = 0;
		line("done");
		counts();
		out("}\n");
	}
	churned();
	for (int c; (c = serial_get()) >= 0;) {
		if (c != '\n') {
			if (have < sizeof command - 1)
				command[have++] = (char)c;
			continue;
		}
		command[have] = 0;
		have = 0;
		obey();
	}
}
