// What the kernel hands to a user program: where ntdll's functions are, and what to do. Known to both.
#ifndef BLOCK_H
#define BLOCK_H
struct block {
	uptr NtCreateFile, NtOpenKey, NtClose, NtAllocateVirtualMemory, NtFreeVirtualMemory, NtDelayExecution, NtTerminateProcess;
	uptr NtCreateProcess, NtCreateThread, NtTerminateThread; // NtCreateUserProcess or, until 2003, NtCreateProcessEx
	u32 kind; // KindSleeper ...
	u32 rounds; // how many rounds of calls are still to be made
	u32 done; // and have been made
	u32 leave; // not 0: end, with this status and one
	u32 spins;
	u32 births; // how many processes are still to be made; the first two with a thread of the maker's own
	u32 born;
	u16 file[64], key[64], missing[64];
};
enum { KindSleeper, KindWorker, KindSpinner };
#endif
