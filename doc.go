// Package vitrine looks into a running virtual machine, or a memory image of
// one, from the outside.
//
// The package owns the nouns that everything else is built on: Guest, its
// physical memory, AddressSpace, the small interfaces by which a backend says
// what it can do, and the errors that all packages share. It knows no
// hypervisor and no operating system: a *Guest comes from package qemu (a
// running QEMU) or from package dump, and package kernel learns what runs in it.
//
// Reading never stops the guest. Reads may be made from any number of
// goroutines; control of the virtual processors (Guest.Control) belongs to one
// at a time.
//
// Guest memory is hostile: readers here bound what they read, and nothing is
// allocated because the guest says so.
package vitrine
