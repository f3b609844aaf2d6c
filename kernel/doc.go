// Package kernel learns what the kernel of a running guest says of itself:
// where it is, its symbols, its types, and how each fact became known.
//
// Describe needs nothing but the guest's memory and, where there are any, its
// registers: no profile, no map file, no agent. It starts from the page table
// that a virtual processor uses, because nobody but the kernel can have put
// that there; text that looks like a kernel's, and leftovers of earlier boots,
// do not mislead it. Every fact is compared with others before it is believed.
//
// It knows Linux on x86-64, with 4- and 5-level paging, from 5.10 to 7.2 by
// measurement. It knows no processes or files: that is package osi.
//
// A *Kernel is immutable and may be used concurrently. It holds no connection;
// after a reboot of the guest it is worthless and Describe must be called anew.
package kernel
