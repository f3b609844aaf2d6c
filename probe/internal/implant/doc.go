// Package implant is the engine that plants probes which never stop the guest:
// a few hundred bytes of code, placed once in guest kernel memory, that write a
// record into a ring for each hit; the host reads the ring through its own view
// of guest RAM. Nothing is attached to the guest while it runs.
//
// The guest side is object/implant.c and object/trampoline.S, compiled by go
// generate and embedded. The host side loads it (object.go), gets memory for it
// by borrowing a thread of the guest (borrow.go), turns the ftrace nop of each
// probed function into a jump to a stub (stub.go, plant.go), reads the ring
// (ring.go), and takes everything out again (leave.go), also what a killed
// run has left (repair.go).
//
// It changes guest kernel text, so the guest can see it, and what it reads was
// written by the guest: every number in a record is checked before it is used.
package implant

//go:generate object/build.sh object/implant.o
