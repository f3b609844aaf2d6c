// The processors: KPCR and KPRCB, descriptor tables, the other processors' start, the lock.
#include "nt.h"

struct cpu cpus[MAXCPU];
int ncpu = 1;
volatile u32 ticks;
static volatile u32 lock_word;
static volatile int started = 1;
extern char ki_traps[], KiSystemCall64[], KiSystemCall32[], KiFastCallEntry[], KiSystemService[], trampoline[], trampoline_end[], boot_stack_top[];
volatile uptr ap_cr3, ap_stack, ap_entry;

#ifdef X64
#define APIC 0xfffffffffffe0000
#else
#define APIC 0xfffe0000ul
#endif

static void apic(u32 reg, u32 v) { U32(APIC, reg) = v; }

// klock takes the one lock of the kernel: who is in the kernel has it, apart from the idle loop.
void klock(void)
{
	while (__atomic_exchange_n(&lock_word, 1, __ATOMIC_ACQUIRE))
		while (lock_word)
			__asm__ volatile("pause");
}

void kunlock(void) { __atomic_store_n(&lock_word, 0, __ATOMIC_RELEASE); }

// this_cpu goes by the control region, as NT does.
struct cpu *this_cpu(void)
{
	u8 n;
#ifdef X64
	__asm__ volatile("movb %%gs:%c1,%0" : "=q"(n) : "i"(KPCR_PRCB + KPRCB_Number));
#else
	__asm__ volatile("movb %%fs:%c1,%0" : "=q"(n) : "i"(KPCR_PRCB + KPRCB_Number));
#endif
	return &cpus[n];
}

static u64 segment(u32 base, u32 limit, u32 access, u32 flags)
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 | (u64)flags << 52 | (u64)(base >> 24) << 56;
}

// gate writes an interrupt's descriptor.
static void gate(uptr idt, int vector, uptr to, int ring)
{
#ifdef X64
	uptr e = idt + 16 * (uptr)vector;
	U16(e, 0) = (u16)to;
	U16(e, 2) = 0x10;
	U16(e, 4) = (u16)(0x8e00 | ring << 13);
	U16(e, 6) = (u16)(to >> 16);
	U32(e, 8) = (u32)(to >> 32);
#else
	uptr e = idt + 8 * (uptr)vector;
	U16(e, 0) = (u16)to;
	U16(e, 2) = 8;
	U16(e, 4) = (u16)(0x8e00 | ring << 13);
	U16(e, 6) = (u16)(to >> 16);
#endif
}

static void descriptors(struct cpu *c)
{
	c->gdt = (uptr)pool(0x1000, "GDT ");
	c->idt = (uptr)pool(0x1000, "IDT ");
	c->tss = (uptr)pool(0x1000, "TSS ");
	u64 *g = (u64 *)c->gdt;
#ifdef X64
	g[2] = 0x00209b0000000000; // 10: code, ring 0
	g[3] = 0x00cf93000000ffff; // 18: data, ring 0
	g[4] = 0x00cffb000000ffff; // 20: 32-bit code, ring 3
	g[5] = 0x00cff3000000ffff; // 28: data, ring 3
	g[6] = 0x0020fb0000000000; // 30: code, ring 3
	g[8] = segment((u32)c->tss, 0x67, 0x89, 0); // 40: task state
	g[9] = c->tss >> 32;
	g[10] = segment(0, 0xfff, 0xf3, 4); // 50: 32-bit thread block
#else
	g[1] = 0x00cf9b000000ffff; // 8: code, ring 0
	g[2] = 0x00cf93000000ffff; // 10: data, ring 0
	g[3] = 0x00cffb000000ffff; // 18: code, ring 3
	g[4] = 0x00cff3000000ffff; // 20: data, ring 3
	g[5] = segment(c->tss, 0x67, 0x89, 0); // 28: task state
	g[6] = segment(c->pcr, 0x7fff, 0x93, 4); // 30: processor control region
	g[7] = segment(0, 0xfff, 0xf3, 4); // 38: thread block, set at each switch
	U16(c->tss, 8) = 0x10;
#endif
	for (int v = 0; v < 256; v++)
		gate(c->idt, v, (uptr)ki_traps + 16 * (uptr)v, v == 3 || v == 4 ? 3 : 0);
#ifndef X64
	gate(c->idt, 0x2e, (uptr)KiSystemService, 3);
#endif
}

#ifdef X64
static void load(struct cpu *c)
{
	struct { u16 limit; uptr base; } __attribute__((packed)) g = { 0x5f, c->gdt }, i = { 0xfff, c->idt };
	__asm__ volatile("lgdt %0; lidt %1" ::"m"(g), "m"(i));
	__asm__ volatile("pushq $0x10; leaq 1f(%%rip),%%rax; pushq %%rax; lretq; 1: mov %0,%%ss; mov %1,%%ds; mov %1,%%es; mov %1,%%fs; mov %1,%%gs; mov $0x40,%%ax; ltr %%ax" ::"r"(0x18), "r"(0x2b) : "rax", "memory");
	wrmsr(0xc0000101, c->pcr);
	wrmsr(0xc0000102, 0);
	wrmsr(0xc0000081, 0x0023001000000000);
	wrmsr(0xc0000082, (uptr)KiSystemCall64);
	wrmsr(0xc0000083, (uptr)KiSystemCall32);
	wrmsr(0xc0000084, 0x4700);
}
#else
static void load(struct cpu *c)
{
	struct { u16 limit; uptr base; } __attribute__((packed)) g = { 0x3f, c->gdt }, i = { 0x7ff, c->idt };
	__asm__ volatile("lgdt %0; lidt %1" ::"m"(g), "m"(i));
	__asm__ volatile("ljmp $8,$1f; 1: mov %0,%%ss; mov %1,%%ds; mov %1,%%es; mov %1,%%gs; mov %2,%%fs; mov $0x28,%%ax; ltr %%ax" ::"r"(0x10), "r"(0x23), "r"(0x30) : "eax", "memory");
	wrmsr(0x174, 8);
	wrmsr(0x175, (uptr)pool(0x200, "Stak") + 0x1f0);
	wrmsr(0x176, (uptr)KiFastCallEntry);
}
#endif

// set_kernel_stack tells the processor where a thread's kernel stack begins.
void set_kernel_stack(struct cpu *c, struct thread *t)
{
	uptr top = PT(t->et, KTHREAD_InitialStack);
#ifdef X64
	U64(c->tss, 4) = top;
	PT(c->prcb, KPRCB_RspBase) = top;
	wrmsr(0xc0000102, t->teb);
#else
	U32(c->tss, 4) = (u32)top - 0x10;
	((u64 *)c->gdt)[7] = segment(t->teb, 0xfff, 0xf3, 4);
	U32(c->pcr, KPCR_NtTib + 4) = (u32)top;
	U32(c->pcr, KPCR_NtTib + 0x18) = t->teb;
#endif
}

// A build of 6 and later has its first processor's region in the kernel's image, XP and 2003 at a fixed address.
static u8 ki_initial_pcr[0x5000] __attribute__((aligned(4096)));

static uptr pcr_alloc(int n)
{
#ifndef X64
	if (BUILD < 6000 && n == 0)
		return 0xffdff000;
#endif
	return n ? (uptr)pool(0x7000, "Pcr ") - 16 : (uptr)ki_initial_pcr;
}

static void control_region(struct cpu *c, int n)
{
	uptr p = c->pcr;
	c->prcb = p + KPCR_PRCB;
#ifdef X64
	PT(p, KPCR_GdtBase) = c->gdt;
	PT(p, KPCR_TssBase) = c->tss;
	PT(p, KPCR_Self) = p;
	PT(p, KPCR_CurrentPrcb) = c->prcb;
	PT(p, KPCR_IdtBase) = c->idt;
#else
	PT(p, KPCR_SelfPcr) = p;
	PT(p, KPCR_Prcb) = c->prcb;
	PT(p, KPCR_IDT) = c->idt;
	PT(p, KPCR_GDT) = c->gdt;
	PT(p, KPCR_TSS) = c->tss;
	U8(p, KPCR_Number) = (u8)n;
	PT(p, KPCR_SetMember) = 1ul << n;
#endif
	U16(p, KPCR_MajorVersion) = 1;
	U16(p, KPCR_MinorVersion) = 1;
	U16(c->prcb, KPRCB_MajorVersion) = 1;
	U16(c->prcb, KPRCB_MinorVersion) = 1;
	U8(c->prcb, KPRCB_Number) = (u8)n;
#ifdef KPRCB_LegacyNumber
	U8(c->prcb, KPRCB_LegacyNumber) = (u8)n;
#endif
}

void cpu_init(int n)
{
	struct cpu *c = &cpus[n];
	c->pcr = pcr_alloc(n);
	c->apic = U32(APIC, 0x20) >> 24;
	descriptors(c);
	control_region(c, n);
	load(c);
	outb(0x21, 0xff); // the firmware's interrupts come at the vectors of exceptions
	outb(0xa1, 0xff);
	apic(0x350, 0x10000); // nor do those of the old interrupt controller come
	apic(0xf0, 0x1ff);
}

// timer makes ticks: QEMU's APIC counts nanoseconds.
static void timer(void)
{
	apic(0x3e0, 0xb);
	apic(0x320, 0x200d1);
	apic(0x380, 5000000);
}

static void delay(u32 n)
{
	while (n--)
		inb(0x80);
}

static void ap_main(void)
{
	int n = started;
	set_cr3(system_root);
	cpu_init(n);
	idle_begins(&cpus[n]);
	__atomic_store_n(&started, n + 1, __ATOMIC_RELEASE);
	klock();
	timer();
	idle_loop();
}

// cpus_start lets the processors up to n run, and this one's timer.
void cpus_start(int n)
{
	memcpy(pv(TRAMPOLINE), trampoline, (unsigned long)(trampoline_end - trampoline));
	ap_cr3 = boot->loader_root;
	ap_entry = (uptr)ap_main;
	for (int i = 1; i < n && i < MAXCPU; i++) {
		ap_stack = cpus[i].idle->stack + 0x4000 - 16;
		volatile u64 *param = (u64 *)pv(TRAMPOLINE + 0xf00);
		param[0] = ap_cr3;
		param[1] = ap_stack;
		param[2] = ap_entry;
		apic(0x310, (u32)i << 24);
		apic(0x300, 0x4500);
		delay(2000);
		// A start that comes before the host has let the processor see the INIT is lost, and one that is running ignores it:
		// it is sent until the processor is there, however long a busy host takes.
		for (int again = 0; again < 1000 && started == i; again++) {
			apic(0x310, (u32)i << 24);
			apic(0x300, 0x4600 | TRAMPOLINE >> 12);
			for (u32 k = 0; k < 20000 && started == i; k++)
				delay(1);
		}
		if (started == i)
			panic("processor does not start", (u64)i, 0, 0);
	}
	ncpu = started;
	timer();
}
