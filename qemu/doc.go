// Package qemu reaches a guest of an unmodified, running QEMU.
//
// A QMP socket is all that QEMU must have been started with. Over it come the
// memory layout, the registers and the run state; guest RAM itself is read in
// the host, by mapping the file behind it where the guest's RAM is shared and
// by process_vm_readv where it is not. None of that stops the guest. Only
// OpenControl does: it opens QEMU's gdbstub, and closes it again at the end.
//
// QEMU serves one client on a monitor socket. A guest holds its connection
// until Close, and Attach returns vitrine.ErrBusy where another client does.
//
// What QEMU says is believed; what the guest's memory holds is not looked at.
package qemu
