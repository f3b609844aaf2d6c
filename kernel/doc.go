// Package kernel learns what the kernel of a running guest says of itself:
// where it is, its symbols, its types, and how each fact became known.
//
// Describe needs nothing but the guest's memory and, where there are any, its
// registers: no map file, no agent, and no profile where the kernel has BTF. It starts from the page table
// that a virtual processor uses, because nobody but the kernel can have put
// that there; text that looks like a kernel's, and leftovers of earlier boots,
// do not mislead it. Every fact is compared with others before it is believed.
//
// It knows Linux on x86-64, with 4- and 5-level paging, from 5.10 to 7.2 by
// measurement, on arm64 and on 32-bit x86 6.1, and kernels of NT on x86 and x64, from XP on, by the layouts of
// 51 builds that it carries. It knows no processes or files: that is package osi.
//
// An NT kernel is found from the processors (KPCR, interrupt handlers) or by a
// scan, and believed by its own PE header. It has no type information; where
// a member lies is taken from the exact symbols if the user has given them,
// from the code of exported accessors, from the layout of the kernel's build
// or of the nearest one, in this order; but only if what lies there is what
// should. A member that fails is searched for near its place by its shape, and
// one that is not found is refused: Types.Source and Facts tell what each rests
// on, Missing what could not be told.
//
// A *Kernel is immutable and may be used concurrently. It holds no connection;
// after a reboot of the guest it is worthless and Describe must be called anew.
package kernel
