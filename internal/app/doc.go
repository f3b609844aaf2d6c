// Package app is the composition root: from a target string to a guest, from
// the guest to its kernel and operating system, and from these to records of
// package event. It alone knows which backends, providers and engines exist;
// the command line and the daemon are two faces of it.
//
// A Session may be used from several goroutines, but for Trace, which owns the
// guest's virtual processors while it runs.
package app
