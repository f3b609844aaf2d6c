// Package trace calls back when functions of a guest's kernel are entered and
// when they return, for every process of the guest.
//
// Loop is for programs that do something at each call: handlers for functions
// by name, run until Quit. An entry's handler hands a value to the return's,
// may skip the function, and sees registers and memory. Calls is for programs
// that want to be told: it delivers decoded system calls as event.Call.
//
// Names of system calls are found whatever the kernel calls the functions
// behind them: "openat", "sys_openat" and "__x64_sys_openat" mean the same.
//
// Handlers run one at a time, on the goroutine that called Run, while the guest
// stands still; what takes long there holds the whole guest up. What a handler
// reads was written by the guest: strings may hold any byte, and are bounded.
//
// The package knows no hypervisor. How functions are hooked is package probe's
// affair, how arguments look package syscalls'.
package trace
