// Package rsp speaks the GDB remote serial protocol to QEMU's gdbstub: framing,
// replies in the order of the requests, stop replies, the register layout of
// target.xml.
//
// Specification: the GDB manual, appendix E. Terms: a packet is
// $PAYLOAD#CHECKSUM; an acknowledgement is a single + or -.
//
// Deviations, all because of how QEMU reads its side (gdbstub.c, gdb_read_byte):
//
//   - No + is ever sent. The start of the next packet acknowledges the last
//     reply as well, and a + that comes after the guest was resumed would be
//     taken for a request to stop it.
//   - k and vKill are never sent: they end QEMU.
//   - Requests may be sent before the replies to earlier ones were read. That
//     is safe on a stream that loses nothing; where an acknowledgement says
//     that something was lost anyway, only a single request can be repeated.
package rsp
