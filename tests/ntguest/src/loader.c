// Puts the kernel where it was asked for, and maps it. 32-bit code for all modes.
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bootinfo {
	u64 image, image_size, pool, ram, loader_root;
	char cmdline[1024];
};

struct kernel_header { u32 magic, entry, end, rel, relend; };

extern u8 blob[], blob_end[];
extern u64 entry;
extern u32 root;

#define INFO ((struct bootinfo *)0x7000)
#define IMAGE 0x400000u
static u32 tables = 0x200000;

static u32 table(void)
{
	u32 t = tables;
	tables += 4096;
	for (u32 i = 0; i < 1024; i++)
		((u32 *)t)[i] = 0;
	return t;
}

static u64 number(const char *name, u64 def)
{
	for (const char *s = INFO->cmdline; *s; s++) {
		const char *n = name, *v = s;
		while (*n && *n == *v)
			n++, v++;
		if (*n || *v != '=' || (s != INFO->cmdline && s[-1] != ' '))
			continue;
		u64 x = 0;
		for (v++; *v && *v != ' '; v++) {
			u32 d = *v <= '9' ? *v - '0' : (*v | 32) - 'a' + 10;
			if (d > 15)
				break;
			x = x << 4 | d;
		}
		return x;
	}
	return def;
}

#if defined(MODE_X64)
#define TOP 39
#elif defined(MODE_PAE)
#define TOP 30
#endif

#ifdef TOP
// map maps size bytes at va to pa; big by 2 MiB pages.
static void map(u64 va, u64 pa, u64 size, int big, u64 flags)
{
	for (u64 end = pa + size; pa < end; va += big ? 0x200000 : 4096, pa += big ? 0x200000 : 4096) {
		u64 *t = (u64 *)root;
		for (int shift = TOP; shift > (big ? 21 : 12); shift -= 9) {
			u64 *e = &t[va >> shift & 511 & (TOP == 30 && shift == 30 ? 3 : 511)];
			if (!*e)
				*e = table() | (TOP == 30 && shift == 30 ? 1 : 3);
			t = (u64 *)(u32)(*e & ~0xfffull);
		}
		t[va >> (big ? 21 : 12) & 511] = pa | flags | 3 | (big ? 0x80 : 0);
	}
}
#else
static void map(u64 va, u64 pa, u64 size, int big, u64 flags)
{
	u32 *t = (u32 *)root, step = big ? 0x400000 : 4096;
	for (u64 end = pa + size; pa < end; va += step, pa += step) {
		u32 *e = &t[(u32)va >> 22];
		if (big) {
			*e = (u32)(pa | flags | 0x83);
			continue;
		}
		if (!*e)
			*e = table() | 3;
		((u32 *)(*e & ~0xfffu))[(u32)va >> 12 & 1023] = (u32)(pa | flags | 3);
	}
}
#endif

static void relocate(struct kernel_header *h)
{
#ifdef MODE_X64
	struct { u64 off, info, add; } *r = (void *)(IMAGE + h->rel);
	for (; (u32)r < IMAGE + h->relend; r++)
		if ((u32)r->info == 8)
			*(u64 *)(IMAGE + (u32)r->off) = INFO->image + r->add;
#else
	struct { u32 off, info; } *r = (void *)(IMAGE + h->rel);
	for (; (u32)r < IMAGE + h->relend; r++)
		if ((r->info & 255) == 8)
			*(u32 *)(IMAGE + r->off) += (u32)INFO->image;
#endif
}

static void words(u32 *mbi)
{
	const char *s = mbi[0] & 4 ? (const char *)mbi[4] : "";
	while (*s && *s != ' ') // the kernel's path
		s++;
	u32 n = 0;
	for (; *s && n < sizeof INFO->cmdline - 1; s++)
		INFO->cmdline[n++] = *s;
	INFO->cmdline[n] = 0;
}

u32 load(u32 *mbi)
{
	words(mbi);
	u32 *to = (u32 *)IMAGE, *from = (u32 *)blob;
	while ((u8 *)from < blob_end)
		*to++ = *from++;
	struct kernel_header h = *(struct kernel_header *)IMAGE;
#if defined(MODE_X64)
	INFO->image = number("base", 0xfffff80002a00000);
	INFO->pool = number("pool", 0xfffffa8000000000);
#else
	INFO->image = number("base", 0x82600000);
	INFO->pool = number("pool", 0x84000000);
#endif
	INFO->image_size = (h.end + 4095) & ~4095u;
	INFO->ram = ((u64)mbi[2] * 1024 + 0x100000) & ~0x3fffffull;
	relocate(&h);
	root = table();
	INFO->loader_root = root;
	map(0, 0, INFO->ram, 1, 0);
	map(INFO->pool, 0, INFO->ram, 1, 0x100);
	map(INFO->image, IMAGE, INFO->image_size, 0, 0x100);
	entry = INFO->image + h.entry;
	return 0;
}
