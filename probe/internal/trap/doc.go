// Package trap is the engine that plants probes as breakpoints held by the
// hypervisor. It works for any kernel function, delivers in step with the
// guest, and changes nothing in the guest but what the hypervisor's own
// breakpoints change.
//
// Entry: the breakpoint is on the function's ftrace nop where it has one, so
// that going on means moving the program counter, without a step; the plain
// instructions that functions begin with otherwise are done here too.
//
// Return: no return address is replaced. The function's body is disassembled
// and breakpoints go on all its ways out: returns, and the returns of functions
// that it tail-calls. A return instruction pops the very stack slot that the
// entry saw its return address in, so thread and stack pointer tell which call
// it ends, exactly, whatever the thread did meanwhile. A body that cannot be
// followed has its calls watched at the return address instead.
//
// Ways out are planted at a function's first call, and taken out again when
// others come by there while no call is under way: breakpoints that nobody
// needs slow the guest down.
//
// One goroutine runs an Engine; see package engine for the exceptions.
package trap
