// Package qmp speaks the QEMU Machine Protocol over a connection that it owns:
// greeting, capabilities, commands matched to replies by id, and events.
//
// QEMU serves one client at a time on a monitor socket. A second one is
// connected by the host's kernel and then hears nothing, so Open waits for the
// greeting only so long and then says that the monitor is busy.
//
// Specification: docs/interop/qmp-spec.rst of QEMU. Deviation: out-of-band
// execution is not used.
package qmp
