// Package hmp reads the answers of QEMU's human monitor that QMP has no
// command for: the memory layout (info mtree -f), host addresses (gpa2hva) and
// memory words (xp). Registers are decoded by package qemu, which knows arch.
//
// The human monitor's text is not a stable interface. Each parser takes what
// it knows by its label and ignores the rest, and fails when what it needs is
// not there. They are pure functions: no input makes them panic or allocate
// more than the input's own size.
package hmp
