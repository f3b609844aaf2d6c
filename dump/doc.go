// Package dump opens memory images of virtual machines as read-only guests.
//
// Open tells by the content what a file is: an ELF core (of QEMU, virsh,
// kexec or this package's own Write), a kdump file of makedumpfile or QEMU,
// flattened or not, LiME, AVML, or a Windows crash dump. Raw memory has no
// mark of its own and needs a layout. Files are mapped, not read in, so that
// opening one costs the same whatever its size.
//
// An image is as hostile as the guest that it was taken of, and it may be
// damaged besides: everything read of it is bounded and checked. What a
// damaged image lacks is an error where it is asked for (ErrMissing); the rest
// can be read.
//
// The package knows no operating system. The guest of an image is paused for
// good; its methods may be called concurrently.
package dump
