// Package osi tells what the operating system of a guest is doing: processes,
// threads, kernel modules, libraries, mappings, open files. One API, whatever
// the operating system; a provider for each of them sits beneath it and
// registers itself, so a program that wants Linux guests imports
// osi/linux for its side effect.
//
//	sys, err := osi.Open(ctx, g, k, nil)
//	for p, err := range sys.Processes(ctx) { ... }
//
// # Partial answers
//
// The guest runs while it is read. A list that changes under the reader is read
// again, a bounded number of times; an entry that still can't be read comes as
// an error in its place, and the list goes on. The record beside an error holds
// what could be read and is zero where nothing could. Only the end of the
// context and a lost guest end a list early; both come as its last error.
//
// # Trust
//
// Everything here was written by the guest. Lists are bounded and checked for
// cycles, strings are bounded and may hold any byte but NUL: quote them before
// they reach a terminal.
//
// # What it does not do
//
// Nothing here stops the guest, writes to it, or asks it anything. A page that
// the guest has swapped out is reported as not present, never fetched.
package osi
