// The kernel's own image as NT's is: headers, exports, debugger data, the variables that others look for.
#include "nt.h"

uptr PsActiveProcessHead[2], PsLoadedModuleList[2], PsInitialSystemProcess, PsIdleProcess, MmPteBase;
u32 NtBuildNumber, claimed_build;
uptr MmHighestUserAddress, MmSystemRangeStart, MmUserProbeAddress;
u64 KiWaitNever, KiWaitAlways;
u8 KdpDataBlockEncoded;
uptr kdbg;
u64 KdDebuggerDataBlock[0x380 / 8];
static uptr kd_list[2];
static u8 version_block[0x28];
static u8 export_room[0x10000] __attribute__((aligned(4096)));

#ifdef X64
#define DRIVER_VA (BUILD >= 10000 ? 0xfffff80600000000 : 0xfffff88001000000)
#else
#define DRIVER_VA (KERNEL_PAE ? 0x8e000000 : 0xf8000000)
#endif

extern const struct export_ kernel_exports[];
extern const u32 nkernel_exports;

static struct section sections[4] = {
	{ ".text", 0x1000, 0, 0x68000020 }, { ".rdata", 0, 0, 0x48000040 }, { ".data", 0, 0, 0xc8000040 }, { "PAGE", 0, 0x1000, 0x60000020 },
};
struct pe kernel_pe;

static void headers(void)
{
	u32 text = (u32)(__text_end - __image), rdata = (u32)(__rdata_end - __image), data = (u32)(__paged - __image);
	sections[0].size = text - 0x1000;
	sections[1].rva = text;
	sections[1].size = rdata - text;
	sections[2].rva = rdata;
	sections[2].size = data - rdata;
	sections[3].rva = data;
	kernel_pe = (struct pe){
		.at = (u8 *)__image, .base = (uptr)__image, .size = (u32)(__image_end - __image), .stamp = STAMP, .entry = 0x1000,
		.is64 = PSZ == 8, .name = "ntoskrnl.exe", .pdb = PDB, .exports = kernel_exports,
		.nexports = nkernel_exports, .edata = (u32)((uptr)export_room - (uptr)__image),
		.sections = sections, .nsections = 4, .guid = GUID, .age = 1,
	};
	pe_build(&kernel_pe);
}

static u64 bswap(u64 v) { return (u64)__builtin_bswap32((u32)v) << 32 | __builtin_bswap32((u32)(v >> 32)); }
static u64 ror(u64 v, u32 n) { return n & 63 ? v >> (n & 63) | v << (64 - (n & 63)) : v; }

// encode does to debugger data what 8 and later do on x64, so that decoding it with the two numbers gives it back.
static void encode(void)
{
	KiWaitNever = 0x4d1b5f3a9c27e8d5;
	KiWaitAlways = 0x00c6a2e7913f5b84;
	for (u32 i = 0; i < sizeof KdDebuggerDataBlock / 8; i++) {
		u64 v = bswap(KdDebuggerDataBlock[i] ^ KiWaitAlways) ^ ((u64)(uptr)&KdpDataBlockEncoded | 0xffff000000000000);
		KdDebuggerDataBlock[i] = ror(v, (u32)KiWaitNever & 255) ^ KiWaitNever;
	}
	KdpDataBlockEncoded = 1;
}

static u64 wide(uptr v) { return (u64)(sptr)v; } // addresses of x86 are sign-extended in debugger data

static void debugger_data(void)
{
	u8 *d = (u8 *)KdDebuggerDataBlock;
	kdbg = (uptr)d;
	u64 *q = KdDebuggerDataBlock;
	kd_list[0] = kd_list[1] = (uptr)d;
	q[0] = q[1] = wide((uptr)kd_list);
	memcpy(d + 0x10, "KDBG", 4);
	U32(d, 0x14) = PSZ == 8 ? 0x340 : 0x290;
	q[0x18 / 8] = wide((uptr)__image);
	U16(d, 0x36) = PSZ == 8 || KERNEL_PAE;
	q[0x48 / 8] = wide((uptr)PsLoadedModuleList);
	q[0x50 / 8] = wide((uptr)PsActiveProcessHead);
	q[0x58 / 8] = wide((uptr)&PspCidTable);
	uptr v = (uptr)version_block;
	U16(v, DBGKD_GET_VERSION64_MajorVersion) = 0xf;
	U16(v, DBGKD_GET_VERSION64_MinorVersion) = (u16)claimed_build;
	U16(v, DBGKD_GET_VERSION64_MachineType) = PSZ == 8 ? 0x8664 : 0x14c;
	U64(v, DBGKD_GET_VERSION64_KernBase) = wide((uptr)__image);
	U64(v, DBGKD_GET_VERSION64_PsLoadedModuleList) = wide((uptr)PsLoadedModuleList);
	U64(v, DBGKD_GET_VERSION64_DebuggerDataList) = wide((uptr)kd_list);
	if (BUILD < 9200 || PSZ == 4)
		PT(cpus[0].pcr, KPCR_KdVersionBlock) = v;
	if (KDBG_ENCODED)
		encode();
}

// drivers: some from every sort of place. A name is held in paged memory; one of them is not there.
static const struct { const u16 *path; u32 size; int out; } drivers[] = {
	{ u"\\SystemRoot\\system32\\ntoskrnl.exe", 0, 0 },
	{ u"\\SystemRoot\\system32\\hal.dll", 0x49000, 0 },
	{ u"\\SystemRoot\\system32\\kdcom.dll", 0xa000, 0 },
	{ u"\\SystemRoot\\system32\\drivers\\disk.sys", 0x16000, 0 },
	{ u"\\SystemRoot\\System32\\Drivers\\Ntfs.sys", 0x12f000, 0 },
	{ u"\\SystemRoot\\system32\\drivers\\gone.sys", 0x7000, 1 },
	{ u"\\SystemRoot\\System32\\win32k.sys", 0x24a000, 0 },
	{ u"\\??\\C:\\Tools\\Tr\u00e4ger.sys", 0x5000, 0 },
};
struct module driver_list[sizeof drivers / sizeof drivers[0]];
int ndrivers;

// driver_image maps a header, so that each driver's base is an image of its own.
static uptr driver_image(uptr at, const u16 *path, u32 size)
{
	static const struct section text = { ".text", 0x1000, 0x1000, 0x68000020 };
	char name[40];
	u32 n = 0;
	for (const u16 *b = basename(path); b[n] && n < 39; n++)
		name[n] = b[n] < 128 ? (char)b[n] : '_';
	name[n] = 0;
	u64 page = page_alloc();
	struct pe p = { .at = pv(page), .base = at, .size = size, .stamp = STAMP, .entry = 0x1000, .is64 = PSZ == 8, .name = name, .edata = 0xc00, .sections = &text, .nsections = 1 };
	pe_build(&p);
	map(system_root, at, page, 0);
	return at;
}

static void driver_add(int i, uptr base, u32 size)
{
	const u16 *path = drivers[i].path, *name = basename(path);
	uptr e = (uptr)pool(LDR_DATA_TABLE_ENTRY__size, "MmLd"), text = paged(2 * wlen(path) + 2);
	memcpy((void *)text, path, 2 * wlen(path) + 2);
	PT(e, LDR_DATA_TABLE_ENTRY_DllBase) = base;
	PT(e, LDR_DATA_TABLE_ENTRY_EntryPoint) = base + 0x1000;
	U32(e, LDR_DATA_TABLE_ENTRY_SizeOfImage) = size;
	U32(e, LDR_DATA_TABLE_ENTRY_Flags) = 0x49104000;
	U32(e, LDR_DATA_TABLE_ENTRY_TimeDateStamp) = STAMP;
	unicode(AT(e, LDR_DATA_TABLE_ENTRY_FullDllName), path, text);
	unicode(AT(e, LDR_DATA_TABLE_ENTRY_BaseDllName), name, text + 2 * (uptr)(name - path));
	list_tail((uptr)PsLoadedModuleList, e);
	driver_list[ndrivers++] = (struct module){ base, size, path, name, 0, drivers[i].out };
}

static void load_drivers(void)
{
	uptr at = DRIVER_VA;
	list_init((uptr)PsLoadedModuleList);
	driver_add(0, (uptr)__image, (u32)(__image_end - __image));
	for (u32 i = 1; i < sizeof drivers / sizeof drivers[0]; i++) {
		uptr fresh = drivers[i].out ? paged_page() : 0;
		driver_image(at, drivers[i].path, drivers[i].size);
		driver_add((int)i, at, drivers[i].size);
		at += (drivers[i].size + 0xffff) & ~0xfffful;
		if (fresh) {
			paged_page();
			page_out(fresh);
		}
	}
}

void image_init(void)
{
	claimed_build = (u32)option("build", BUILD);
	NtBuildNumber = 0xf0000000 | claimed_build;
	MmSystemRangeStart = PSZ == 8 ? (uptr)0xffff080000000000ull : 0x80000000;
	MmHighestUserAddress = PSZ == 8 ? (uptr)0x7fffffeffffull : 0x7ffeffff;
	MmUserProbeAddress = PSZ == 8 ? (uptr)0x7fffffff0000ull : 0x7fff0000;
	list_init((uptr)PsActiveProcessHead);
	headers();
	debugger_data();
	load_drivers();
}

// image_protect gives the image's pages their protection, and takes the pageable one away.
void image_protect(void)
{
	for (char *at = __image; at < __image_end; at += 4096) {
		u64 phys = IMAGE_PHYS + (u64)(at - __image);
		map(system_root, (uptr)at, phys, at < __text_end && at > __image ? X : at >= __rdata_end ? W : 0);
	}
	put_pte(system_root, (uptr)__paged, 0x45670080);
}
