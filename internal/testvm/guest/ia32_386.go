//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// vsyscall makes a system call by the vDSO: by sysenter or syscall, whichever the processor has.
//
//go:noescape
func vsyscall(entry, nr, a1, a2, a3, a4, a5 uintptr) uintptr

// atSysinfo is the entry of the auxiliary vector that has the address of the vDSO's function (AT_SYSINFO).
const atSysinfo = 32

// ia32Caller returns what makes a system call of 32-bit programs in the other way than the Go runtime, which makes all
// of its own by int 0x80.
func ia32Caller() (func(nr uintptr, a [5]uintptr) uintptr, error) {
	v, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return nil, err
	}
	for ; len(v) >= 8; v = v[8:] {
		if binary.LittleEndian.Uint32(v) == atSysinfo {
			entry := uintptr(binary.LittleEndian.Uint32(v[4:]))
			return func(nr uintptr, a [5]uintptr) uintptr { return vsyscall(entry, nr, a[0], a[1], a[2], a[3], a[4]) }, nil
		}
	}
	return nil, errors.New("the kernel offers no vDSO to 32-bit programs")
}

// usualCaller makes calls as the Go runtime does.
func usualCaller(func(uintptr, [5]uintptr) uintptr) func(uintptr, [5]uintptr) uintptr {
	return func(nr uintptr, a [5]uintptr) uintptr {
		r, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], 0)
		if errno != 0 {
			return -uintptr(errno)
		}
		return r
	}
}
