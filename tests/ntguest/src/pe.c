// Writes the headers, the export directory and the CodeView record of a PE image.
#include "nt.h"

static void section(uptr at, const struct section *s)
{
	memcpy((void *)at, s->name, 8);
	U32(at, 8) = U32(at, 16) = s->size;
	U32(at, 12) = U32(at, 20) = s->rva;
	U32(at, 36) = s->flags;
}

// exports writes the export directory and returns its size.
static u32 exports(const struct pe *p)
{
	uptr d = (uptr)p->at + p->edata;
	u32 n = p->nexports, fns = p->edata + 40, names = fns + 4 * n, ords = names + 4 * n, text = ords + 2 * n;
	U32(d, 4) = p->stamp;
	U32(d, 12) = text;
	U32(d, 16) = 1;
	U32(d, 20) = U32(d, 24) = n;
	U32(d, 28) = fns;
	U32(d, 32) = names;
	U32(d, 36) = ords;
	u32 len = strlen_(p->name) + 1;
	memcpy(p->at + text, p->name, len);
	text += len;
	for (u32 i = 0; i < n; i++) {
		len = strlen_(p->exports[i].name) + 1;
		U32(p->at, fns + 4 * i) = (u32)((uptr)p->exports[i].addr - p->base);
		U32(p->at, names + 4 * i) = text;
		U16(p->at, ords + 2 * i) = (u16)i;
		memcpy(p->at + text, p->exports[i].name, len);
		text += len;
	}
	return text - p->edata;
}

// codeview writes the debug directory and the record behind the headers.
static void codeview(const struct pe *p, uptr dirs)
{
	enum { AT = 0x800 };
	uptr d = (uptr)p->at + AT;
	u32 len = 24 + strlen_(p->pdb) + 1;
	U32(dirs, 8 * 6) = AT;
	U32(dirs, 8 * 6 + 4) = 28;
	U32(d, 4) = p->stamp;
	U32(d, 12) = 2;
	U32(d, 16) = len;
	U32(d, 20) = U32(d, 24) = AT + 28;
	memcpy((void *)(d + 28), "RSDS", 4);
	memcpy((void *)(d + 32), p->guid, 16);
	U32(d, 48) = p->age;
	memcpy((void *)(d + 52), p->pdb, len - 24);
}

void pe_build(const struct pe *p)
{
	uptr at = (uptr)p->at, nt = at + 0x80, opt = nt + 24;
	memset(p->at, 0, 4096);
	U16(at, 0) = 0x5a4d;
	U32(at, 0x3c) = 0x80;
	U32(nt, 0) = 0x4550;
	U16(nt, 4) = p->is64 ? 0x8664 : 0x14c;
	U16(nt, 6) = (u16)p->nsections;
	U32(nt, 8) = p->stamp;
	U16(nt, 20) = p->is64 ? 240 : 224;
	U16(nt, 22) = (u16)(2 | (p->is64 ? 0x20 : 0x100) | (p->dll ? 0x2000 : 0));
	U16(opt, 0) = p->is64 ? 0x20b : 0x10b;
	U32(opt, 16) = p->entry;
	U32(opt, 20) = 0x1000;
	if (p->is64)
		U64(opt, 24) = p->base;
	else
		U32(opt, 28) = (u32)p->base;
	U32(opt, 32) = U32(opt, 36) = 0x1000;
	U16(opt, 40) = U16(opt, 48) = MAJOR;
	U16(opt, 42) = U16(opt, 50) = MINOR;
	U32(opt, 56) = p->size;
	U32(opt, 60) = 0x1000;
	U16(opt, 68) = 1;
	uptr dirs = opt + (p->is64 ? 112 : 96);
	U32(dirs, -4) = 16;
	for (u32 i = 0; i < p->nsections; i++)
		section(dirs + 128 + 40 * i, &p->sections[i]);
	if (p->name) {
		U32(dirs, 0) = p->edata;
		U32(dirs, 4) = exports(p);
	}
	if (p->pdb)
		codeview(p, dirs);
}
