// Physical pages, the pool, and page tables of the three kinds. The pool is all of RAM at one place, as NT's is not:
// an object's address tells its page, which makes the guest simple and its truth easy to check.
#include "nt.h"

struct bootinfo *boot;
u64 system_root;
static u64 next_page = FREE_PHYS;
static u64 free_pages;

#if defined(X64)
typedef u64 pte;
enum { TOP = 39, BITS = 9 };
#define KERNEL_FIRST 256
#define PAGED_VA (BUILD >= 10000 ? 0xffff9d0f20000000 : 0xfffff8a000000000)
#define APIC_VA 0xfffffffffffe0000
#elif defined(MODE_PAE)
typedef u64 pte;
enum { TOP = 30, BITS = 9 };
#define KERNEL_FIRST 2
#define PAGED_VA 0x8c000000
#define APIC_VA 0xfffe0000
#else
typedef u32 pte;
enum { TOP = 22, BITS = 10 };
#define KERNEL_FIRST 512
#define PAGED_VA 0xe1000000
#define APIC_VA 0xfffe0000
#endif
#define ADDR(e) ((u64)(e) & 0x000ffffffffff000)

u64 page_alloc(void)
{
	u64 p = free_pages;
	if (p)
		free_pages = *(u64 *)pv(p);
	else if ((p = next_page) >= boot->ram)
		panic("out of memory", p, 0, 0);
	else
		next_page += 4096;
	memset(pv(p), 0, 4096);
	return p;
}

void page_free(u64 p)
{
	*(u64 *)pv(p) = free_pages;
	free_pages = p;
}

u64 phys_of(void *p) { return (uptr)p - boot->pool; }

// The pool gives out powers of two, with a POOL_HEADER in front.
static void *freed[20];

static int class_of(u32 size)
{
	int c = 6;
	while (1u << c < size)
		c++;
	return c;
}

u64 run_of(u32 size)
{
	u64 p = next_page;
	next_page += (size + 4095) & ~4095u;
	if (next_page > boot->ram)
		panic("out of memory", p, size, 0);
	return p;
}

void *pool(u32 size, const char *tag)
{
	int c = class_of(size + 16);
	u8 *p = freed[c];
	if (p) {
		freed[c] = *(void **)p;
	} else {
		u32 all = c < 12 ? 4096 : 1u << c;
		p = pv(run_of(all));
		for (u32 at = 1u << c; at < all; at += 1u << c) {
			*(void **)(p + at) = freed[c];
			freed[c] = p + at;
		}
	}
	memset(p, 0, 1u << c);
#ifdef POOL_HEADER_PoolTag
	memcpy(p + POOL_HEADER_PoolTag + 16 - POOL_HEADER__size, tag, 4);
#endif
	return p + 16;
}

void pool_free(void *p, u32 size)
{
	int c = class_of(size + 16);
	p = (u8 *)p - 16;
	*(void **)p = freed[c];
	freed[c] = p;
}

// entry returns the entry for va at the lowest level, making tables on the way when asked to.
static pte *entry_of(u64 root, uptr va, int make)
{
	u64 t = root;
	for (int shift = TOP;; shift -= BITS) {
		pte *e = (pte *)pv(t) + (va >> shift & ((TOP == 30 && shift == 30) ? 3 : (1 << BITS) - 1));
		if (shift == 12)
			return e;
		if (!(*e & 1)) {
			if (!make)
				return 0;
			*e = (pte)(page_alloc() | (TOP == 30 && shift == 30 ? 1 : 0x67));
		} else if (*e & 0x80 && !(TOP == 30 && shift == 30)) {
			panic("large page in the way", va, *e, 0);
		}
		t = ADDR(*e);
	}
}

void put_pte(u64 root, uptr va, u64 value)
{
	*entry_of(root, va, 1) = (pte)value;
	__asm__ volatile("invlpg (%0)" ::"r"(va) : "memory");
}

u64 get_pte(u64 root, uptr va)
{
	pte *e = entry_of(root, va, 0);
	return e ? *e : 0;
}

void map(u64 root, uptr va, u64 phys, int flags)
{
	u64 v = phys | 0x21 | (flags & W ? 0x42 : 0) | (flags & U ? 4 : 0x100) | (flags & NC ? 0x18 : 0);
#if defined(X64) || defined(MODE_PAE)
	if (!(flags & X))
		v |= 1ull << 63;
#endif
	put_pte(root, va, v);
}

// Page-directory pointers of PAE are 32 bytes, many to a page, as NT has them.
#if !defined(X64) && defined(MODE_PAE)
static u64 pdpt_free[128];
static int pdpts;
#endif

u64 root_alloc(void)
{
#if defined(X64)
	u64 r = page_alloc();
	u64 *e = pv(r), *s = pv(system_root);
	for (int i = KERNEL_FIRST; i < 512; i++)
		e[i] = s[i];
	e[0x1ed] = r | 0x8000000000000063; // the table maps itself
#elif defined(MODE_PAE)
	if (!pdpts)
		for (u64 p = page_alloc(); pdpts < 127; pdpts++) // the first 32 bytes stay unused
			pdpt_free[pdpts] = p + 32 * (u64)(pdpts + 1);
	u64 r = pdpt_free[--pdpts];
	u64 *e = pv(r), *s = pv(system_root);
	for (int i = 0; i < 4; i++)
		e[i] = page_alloc() | 1;
	memcpy(pv(ADDR(e[2])), pv(ADDR(s[2])), 4096);
	memcpy(pv(ADDR(e[3])), pv(ADDR(s[3])), 4096);
	for (int i = 0; i < 4; i++)
		((u64 *)pv(ADDR(e[3])))[i] = ADDR(e[i]) | 0x63;
#else
	u64 r = page_alloc();
	u32 *e = pv(r), *s = pv(system_root);
	for (int i = KERNEL_FIRST; i < 1024; i++)
		e[i] = s[i];
	e[0x300] = (u32)r | 0x63;
#endif
	return r;
}

// free_tables gives back the tables below the entries first to last of t, and the pages that they
// map, shared ones apart.
static void free_tables(u64 t, int first, int last, int shift)
{
	pte *e = pv(t);
	for (int i = first; i < last; i++) {
		if (!(e[i] & 1)) {
			if (shift == 12 && e[i] & 0x800) // in transition: the page is the process's still
				page_free(ADDR(e[i]));
			continue;
		}
		if (shift > 12)
			free_tables(ADDR(e[i]), 0, 1 << BITS, shift - BITS);
		else if (page_shared(ADDR(e[i])))
			continue;
		page_free(ADDR(e[i]));
	}
}

void root_free(u64 r)
{
#if !defined(X64) && defined(MODE_PAE)
	u64 *e = pv(r);
	free_tables(ADDR(e[0]), 0, 512, 21);
	free_tables(ADDR(e[1]), 0, 512, 21);
	for (int i = 0; i < 4; i++)
		page_free(ADDR(e[i]));
	pdpt_free[pdpts++] = r;
#else
	free_tables(r, 0, KERNEL_FIRST, TOP);
	page_free(r);
#endif
}

void set_cr3(u64 root) { __asm__ volatile("mov %0,%%cr3" ::"r"((uptr)root) : "memory"); }

static uptr paged_next = PAGED_VA;

// paged returns memory that is mapped by small pages and so can be paged out.
uptr paged(u32 size)
{
	uptr at = paged_next;
	if (at >> 12 != (at + size - 1) >> 12)
		at = (at + 4095) & ~4095ul;
	paged_next = (at + size + 15) & ~15ul;
	for (uptr va = at & ~4095ul; va < at + size; va += 4096)
		if (!get_pte(system_root, va))
			map(system_root, va, page_alloc(), W);
	return at;
}

// paged_page makes paged go on with a page of its own, and returns its address.
uptr paged_page(void) { return paged_next = (paged_next + 4095) & ~4095ul; }

// page_out makes the page at va one that is in a paging file: valid, prototype and transition bits clear.
void page_out(uptr va)
{
	u64 old = get_pte(system_root, va);
	put_pte(system_root, va, 0x12340080);
	page_free(ADDR(old));
}

// mem_init makes the System process's page tables from the loader's, without the identity mapping.
void mem_init(void)
{
#if !defined(X64) && defined(MODE_PAE)
	u64 *l = pv(boot->loader_root), *e;
	u64 page = page_alloc();
	system_root = page + 32;
	e = pv(system_root);
	for (int i = 0; i < 4; i++) {
		e[i] = page_alloc() | 1;
		if (i >= 2 && l[i] & 1)
			memcpy(pv(ADDR(e[i])), pv(ADDR(l[i])), 4096);
		else if (i >= 2)
			l[i] = e[i];
	}
	for (int i = 0; i < 4; i++)
		((u64 *)pv(ADDR(e[3])))[i] = ADDR(e[i]) | 0x63;
#else
	system_root = page_alloc();
	pte *l = pv(boot->loader_root), *e = pv(system_root);
	for (int i = KERNEL_FIRST; i < 1 << BITS; i++)
		e[i] = l[i];
	e[TOP == 39 ? 0x1ed : 0x300] = (pte)(system_root | 0x63);
#endif
	map(system_root, SHARED_VA, page_alloc(), W);
	map(system_root, APIC_VA, 0xfee00000, W | NC);
#ifndef X64
	map(system_root, 0xffdff000, page_alloc(), W);
#endif
	set_cr3(system_root);
	paged(16);
}

// Kernel stacks are four pages.
static uptr free_stacks;

uptr stack_alloc(void)
{
	uptr s = free_stacks;
	if (s)
		free_stacks = PT(s, 0);
	else
		s = (uptr)pv(run_of(0x4000));
	memset((void *)s, 0, 0x4000);
	return s;
}

void stack_free(uptr s)
{
	PT(s, 0) = free_stacks;
	free_stacks = s;
}
