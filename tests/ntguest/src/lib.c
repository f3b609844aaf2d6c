// What a freestanding program lacks: memory, strings, lists.
#include "nt.h"

void *memset(void *p, int c, unsigned long n)
{
	for (u8 *b = p; n--;)
		*b++ = (u8)c;
	return p;
}

void *memcpy(void *d, const void *s, unsigned long n)
{
	u8 *to = d;
	for (const u8 *from = s; n--;)
		*to++ = *from++;
	return d;
}

u32 strlen_(const char *s)
{
	u32 n = 0;
	while (s[n])
		n++;
	return n;
}

int streq(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

u32 wlen(const u16 *s)
{
	u32 n = 0;
	while (s[n])
		n++;
	return n;
}

// wcat puts a and b one after the other into buf of cap units.
u16 *wcat(u16 *buf, u32 cap, const u16 *a, const u16 *b)
{
	u32 n = 0;
	for (; *a && n < cap - 1; a++)
		buf[n++] = *a;
	for (; *b && n < cap - 1; b++)
		buf[n++] = *b;
	buf[n] = 0;
	return buf;
}

u16 *wdup(const u16 *s)
{
	u32 size = 2 * (wlen(s) + 1);
	return memcpy(pool(size, "Name"), s, size);
}

const u16 *basename(const u16 *s)
{
	const u16 *b = s;
	for (; *s; s++)
		if (*s == '\\')
			b = s + 1;
	return b;
}

// unicode writes a UNICODE_STRING that says that s is at buf, which may be in another address space.
void unicode(uptr at, const u16 *s, uptr buf)
{
	U16(at, 0) = (u16)(2 * wlen(s));
	U16(at, 2) = (u16)(2 * wlen(s) + 2);
	PT(at, PSZ) = buf;
}

void unicode32(uptr at, const u16 *s, u32 buf)
{
	U16(at, 0) = (u16)(2 * wlen(s));
	U16(at, 2) = (u16)(2 * wlen(s) + 2);
	U32(at, 4) = buf;
}

void list_tail(uptr h, uptr e)
{
	uptr last = PT(h, PSZ);
	PT(e, 0) = h;
	PT(e, PSZ) = last;
	PT(last, 0) = e;
	PT(h, PSZ) = e;
}

void list_remove(uptr e)
{
	PT(PT(e, 0), PSZ) = PT(e, PSZ);
	PT(PT(e, PSZ), 0) = PT(e, 0);
}
