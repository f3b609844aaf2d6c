//go:build linux

package main

// int80 makes a system call of 32-bit programs from 64-bit code.
//
//go:noescape
func int80(nr, a1, a2, a3, a4, a5 uintptr) uintptr

func ia32Caller() (func(nr uintptr, a [5]uintptr) uintptr, error) {
	return func(nr uintptr, a [5]uintptr) uintptr { return int80(nr, a[0], a[1], a[2], a[3], a[4]) }, nil
}

// usualCaller returns what it is given: there is no other way.
func usualCaller(c func(uintptr, [5]uintptr) uintptr) func(uintptr, [5]uintptr) uintptr { return c }
