// Package arch holds what is true of a guest's processor whatever hypervisor
// runs it: address types, register files, page-table formats as data with one
// walker over them, and breakpoint encodings.
//
// It is a leaf: it imports the standard library only, has no build tags, and
// nothing in it depends on the host's processor. The package keeps no state;
// everything in it may be called concurrently.
package arch
