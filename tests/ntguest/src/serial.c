// The serial port: what the guest says, and what it is told.
#include "nt.h"

enum { COM1 = 0x3f8 };

void serial_init(void)
{
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 0x80);
	outb(COM1, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 3);
	outb(COM1 + 2, 7);
	outb(COM1 + 4, 3);
}

// serial_get returns a byte that came in, -1 without one.
int serial_get(void)
{
	return inb(COM1 + 5) & 1 ? inb(COM1) : -1;
}

static void put(u8 c)
{
	while (!(inb(COM1 + 5) & 0x20))
		;
	outb(COM1, c);
}

void out(const char *s)
{
	while (*s)
		put((u8)*s++);
}

// outx prints a number as a JSON string in hexadecimal, since JSON's numbers end at 2^53 for many.
void outx(u64 v)
{
	int shift = 60;
	while (shift && !(v >> shift & 15))
		shift -= 4;
	out("\"0x");
	for (; shift >= 0; shift -= 4)
		put((u8)"0123456789abcdef"[v >> shift & 15]);
	out("\"");
}

void outd(u32 v)
{
	char buf[12], *p = buf + 11;
	*p = 0;
	do
		*--p = (char)('0' + v % 10);
	while (v /= 10);
	out(p);
}

// outw prints a string of UTF-16 as a JSON string.
void outw(const u16 *s)
{
	put('"');
	for (; *s; s++) {
		if (*s >= ' ' && *s < 127 && *s != '"' && *s != '\\') {
			put((u8)*s);
			continue;
		}
		out("\\u");
		for (int shift = 12; shift >= 0; shift -= 4)
			put((u8)"0123456789abcdef"[*s >> shift & 15]);
	}
	put('"');
}

_Noreturn void panic(const char *why, u64 a, u64 b, u64 c)
{
	out("\n{\"type\":\"panic\",\"why\":\"");
	out(why);
	out("\",\"values\":[");
	outx(a);
	out(",");
	outx(b);
	out(",");
	outx(c);
	out("]}\n");
	for (;;)
		__asm__ volatile("cli; hlt");
}

// option returns the number, in hexadecimal, that the command line has for name.
u64 option(const char *name, u64 def)
{
	for (const char *s = boot->cmdline; *s; s++) {
		const char *n = name, *v = s;
		while (*n && *n == *v)
			n++, v++;
		if (*n || *v != '=' || (s != boot->cmdline && s[-1] != ' '))
			continue;
		u64 x = 0;
		for (v++; *v && *v != ' '; v++)
			x = x << 4 | (u64)(*v <= '9' ? *v - '0' : (*v | 32) - 'a' + 10);
		return x;
	}
	return def;
}
