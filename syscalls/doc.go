// Package syscalls knows the system calls of Linux guests: their numbers and
// names, the functions that the kernel implements them by, and how to show
// their arguments and results as strace does.
//
// It knows no guest and no kernel. A Decoder works from the six argument
// values, a Memory to read the calling process's memory and a Resolver for
// what only the guest's operating system knows (the path behind a file
// descriptor). Argument names and types come from a Table: those that the
// guest's own kernel states, or else the generated Fallback.
//
// # Trust
//
// The guest chooses every byte that is decoded here. Nothing is allocated in
// the size that a guest asks for, all lists and strings are cut at the limits
// of Options, and guest bytes appear in texts only quoted and escaped. An
// argument that can't be decoded is shown as its raw value with the reason; a
// call never fails as a whole.
//
// # Concurrency
//
// Tables and Decoders don't change once made and may be used concurrently.
//
// The architecture given to functions of this package is that of the system
// call interface, not of the kernel: a 32-bit process on an x86-64 kernel calls
// by arch.I386.
package syscalls
