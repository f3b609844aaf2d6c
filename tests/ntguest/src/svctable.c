// The service table, as system calls find their way.
#include "nt.h"

// KeServiceDescriptorTable: base, counter table, limit, argument table; four of these, of which win32k's is empty here.
uptr KeServiceDescriptorTable[16], KeServiceDescriptorTableShadow[16];
static u32 KiServiceLimit;
u32 KiServiceTable[NSERVICES];
static u8 KiArgumentTable[NSERVICES];
#define SVC(nr, name, args) extern char name[];
#include "services.inc"
#undef SVC
#define SVC(nr, name, args) { name, nr, args },
static const struct { char *to; u32 nr; u8 args; } all[] = {
#include "services.inc"
};
extern char NtNoSuchService[];

// syscalls_init fills the table: addresses on x86, distances from the table with the number of stack arguments on x64.
void syscalls_init(void)
{
	for (u32 i = 0; i < NSERVICES + sizeof all / sizeof all[0]; i++) {
		int gap = i < NSERVICES; // first every number, then those with a name
		u32 nr = gap ? i : all[i - NSERVICES].nr;
		char *to = gap ? NtNoSuchService : all[i - NSERVICES].to;
		u32 args = gap ? 0 : all[i - NSERVICES].args;
#ifdef X64
		KiServiceTable[nr] = (u32)((to - (char *)KiServiceTable) << 4) | (args > 4 ? args - 4 : 0);
#else
		KiServiceTable[nr] = (u32)to;
#endif
		KiArgumentTable[nr] = (u8)(4 * args);
	}
	KiServiceLimit = NSERVICES;
	KeServiceDescriptorTable[0] = KeServiceDescriptorTableShadow[0] = (uptr)KiServiceTable;
	KeServiceDescriptorTable[2] = KeServiceDescriptorTableShadow[2] = KiServiceLimit;
	KeServiceDescriptorTable[3] = KeServiceDescriptorTableShadow[3] = (uptr)KiArgumentTable;
}
