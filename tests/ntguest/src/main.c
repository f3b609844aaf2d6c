// Starts everything: the kernel, its first processes, the processors.
#include "nt.h"

volatile u32 zw_wanted;
#define LOCAL "S-1-5-21-1111111111-2222222222-3333333333-1001"
#define SYS u"C:\\Windows\\System32\\"

static const struct want first[] = {
	{ SYS u"smss.exe", u"", "S-1-5-18", 0, 4, 0, 1, KindSleeper, 0 },
	{ SYS u"csrss.exe", u"ObjectDirectory=\\Windows", "S-1-5-18", 0, 300, 0, 2, KindSleeper, 0 },
	{ SYS u"wininit.exe", u"", "S-1-5-18", 0, 300, 0, 1, KindSleeper, 0 },
	{ SYS u"services.exe", u"", "S-1-5-18", 0, 0, 0, 1, KindSleeper, 0 },
	{ SYS u"svchost.exe", u"-k LocalService", "S-1-5-19", 0, 0, 0, 2, KindSleeper, 0 },
	{ SYS u"svchost.exe", u"-k NetworkService", "S-1-5-20", 0, 0, 0, 1, KindSleeper, 0 },
	{ u"C:\\Windows\\explorer.exe", u"", LOCAL, 1, 0, 0, 3, KindSleeper, 0 },
	{ u"C:\\Program Files\\A program with a long name.exe", u"--one \"two words\"", LOCAL, 1, 0, 0, 1, KindSleeper, 0 },
	{ u"C:\\Users\\J\u00fcrgen\\\u0437\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439.exe", u"", LOCAL, 1, 0, 0, 1, KindSleeper, 0 },
	{ u"C:\\Program Files (x86)\\old32.exe", u"/legacy", LOCAL, 1, 0, 0, 1, KindSleeper, 1 },
	{ u"C:\\work\\worker1.exe", u"1", LOCAL, 1, 0, 0, 1, KindWorker, 0 },
	{ u"C:\\work\\worker2.exe", u"2", LOCAL, 1, 0, 0, 2, KindWorker, 0 },
	{ u"C:\\work\\spin.exe", u"", LOCAL, 1, 0, 0, 1, KindSpinner, 0 },
};

NTAPI ntstatus ZwOpenKey(uptr *h, u32 access, uptr oa);
NTAPI ntstatus ZwClose(uptr h);

// zw_thread is a thread of the System process: it calls services from within the kernel.
static void zw_thread(void)
{
	static u16 name[] = u"\\Registry\\Machine\\System\\Setup";
	for (;;) {
		sleep_ticks(1);
		while (zw_wanted) {
			uptr oa[8], us[2], h = 0;
			memset(oa, 0, sizeof oa);
			U32(oa, OBJECT_ATTRIBUTES_Length) = OBJECT_ATTRIBUTES__size;
			U32(oa, OBJECT_ATTRIBUTES_Attributes) = 0x240; // OBJ_KERNEL_HANDLE too
			PT(oa, OBJECT_ATTRIBUTES_ObjectName) = (uptr)us;
			unicode((uptr)us, name, (uptr)name);
			ZwOpenKey(&h, 0x20019, (uptr)oa);
			ZwClose(h);
			zw_wanted--;
		}
	}
}

static void rest(void)
{
	for (;;)
		sleep_ticks(400);
}

static void kernel_thread(void (*run)(void))
{
	struct thread *t = thread_new(sysproc, (uptr)run, 0);
	uptr regs = PSZ == 8 ? 6 : 4;
	t->sp = PT(t->et, KTHREAD_InitialStack) - 0x100 - (regs + 1) * PSZ - (PSZ == 8 ? 0 : 4);
	t->sp &= ~15ul; // so that it is, once popped, as after a call
	PT(t->sp, regs * PSZ) = (uptr)run;
	ready(t);
}

void kernel_threads(void)
{
	kernel_thread(zw_thread);
	kernel_thread(rest);
}

// things gives a process handles of each type.
static void things(struct proc *p)
{
	handle_add(p, FileType, file_object(u"\\Windows\\System32\\drivers\\etc\\hosts"), 0x120089, u"\\Device\\HarddiskVolume2\\Windows\\System32\\drivers\\etc\\hosts");
	handle_add(p, KeyType, key_object(u"\\REGISTRY\\MACHINE\\SOFTWARE\\Vitrine"), 0x20019, u"\\REGISTRY\\MACHINE\\SOFTWARE\\Vitrine");
	handle_add(p, KeyType, key_object(u"\\REGISTRY\\USER\\S-1-5-18\\\u0416\u0443\u043a"), 0x20019, u"\\REGISTRY\\USER\\S-1-5-18\\\u0416\u0443\u043a");
	handle_add(p, MutantType, named_object(MutantType, u"SingleInstance"), 0x1f0001, u"SingleInstance");
	handle_add(p, MutantType, named_object(MutantType, 0), 0x1f0001, 0);
	handle_add(p, SectionType, named_object(SectionType, u"SharedState"), 4, u"SharedState");
	handle_add(p, EventType, named_object(EventType, u"GoneQuiet"), 0x1f0003, u"GoneQuiet");
	handle_add(p, PortType, named_object(PortType, u"ThePort"), 0x1f0001, u"ThePort");
}

static void first_processes(void)
{
	u32 smss = 0, wininit = 0, explorer = 0;
	for (u32 i = 0; i < sizeof first / sizeof first[0]; i++) {
		struct want w = first[i];
		if (w.wow && PSZ == 4)
			continue;
		w.ppid = i == 0 ? 4 : i < 3 ? smss : i < 6 ? wininit : i == 6 ? 2000 : explorer; // explorer's parent has ended
		struct proc *p = proc_new(&w);
		smss = i == 0 ? p->pid : smss;
		wininit = i == 2 ? p->pid : wininit;
		explorer = i == 6 ? p->pid : explorer;
		if (i == 6)
			things(p);
		if (i == 3)
			for (int k = 0; k < 600; k++) // more than one page of handles holds
				handle_add(p, EventType, named_object(EventType, 0), 0x1f0003, 0);
		if (i == 3)
			handle_close(p, 0x20), handle_close(p, 0x24);
	}
	for (u64 n = option("procs", 0); n; n--) {
		struct want w = { SYS u"crowd.exe", u"", LOCAL, 1, explorer, 0, 1, KindSleeper, 0 };
		proc_new(&w);
	}
}

void KiSystemStartup(void)
{
	// The loader's page tables, in use still, have low memory as it is and all of it in the pool.
	boot = (struct bootinfo *)(uptr)(((struct bootinfo *)BOOTINFO)->pool + BOOTINFO);
	u32 n = (u32)option("cpus", 1);
	serial_init();
	mem_init();
	cpu_init(0);
	image_init();
	objects_init();
	process_init();
	idle_begins(&cpus[0]);
	syscalls_init();
	ntdll_init();
	first_processes();
	cpus_start(n);
	image_protect();
	klock();
	truth_all();
	idle_loop();
}
