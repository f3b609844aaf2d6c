// Package probe hooks kernel functions of a running guest from outside: a
// Session plants Probes and delivers a Hit each time such a function is
// entered and each time it returns, for every thread of the guest.
//
// How a probe is planted is the engine's affair. The trap engine holds a
// breakpoint by the hypervisor and delivers in step with the guest (Sync): the
// guest stands still while a callback runs, and the callback may change it.
// The implant engine puts code into the guest's kernel that writes records, which
// are taken out while the guest runs on (Stream), or for which the thread that
// made them waits (Sync). All deliver the same Hits; what a Hit cannot do under
// its engine and delivery says so with errors.ErrUnsupported. Auto uses implants,
// and breakpoints for what takes none.
//
// Entries and returns are paired per thread, whatever a thread does in
// between: call other probed functions, recurse, block, move to another vCPU.
// A call that never returns (exit, a thread killed inside it) has no return
// hit; Stats counts it. Nothing in the guest's stacks is replaced for this.
//
// Callbacks run one at a time, on the goroutine that called Session.Run or one
// that it has started. A
// panic in one ends Run with a *PanicError after everything has been taken out
// of the guest. A Hit is valid only during its callback.
//
// Guest memory is hostile: what a Hit reads is bounded, and a guest that forges
// its stacks or its code can hide calls from the return side or invent some; it
// cannot make the host hang, crash or allocate without bound.
//
// The package knows no system calls and no operating system beyond the facts
// that identify a thread; see packages trace and osi for those.
package probe
