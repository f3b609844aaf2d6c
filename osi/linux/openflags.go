package linux

import (
	"fmt"
	"strings"
)

// Flags of open(2) by their numbers in the generic ABI.
const (
	oAccessMode = 0o3
	oCloseExec  = 0o2000000
)

// The flags of open(2), for x86 and for arm64, which has other numbers for four
// of them (arch/arm64/include/uapi/asm/fcntl.h).
var (
	openFlagNames = flagNames(0o40000, 0o100000, 0o200000, 0o400000)
	armFlagNames  = flagNames(0o200000, 0o400000, 0o40000, 0o100000)
)

// flagNames returns the flags in the order in which strace shows them. O_SYNC and
// O_TMPFILE hold the bits of O_DSYNC and O_DIRECTORY and come before them.
func flagNames(direct, largeFile, directory, noFollow uint32) []openFlag {
	return []openFlag{
		{0o100, "O_CREAT"}, {0o200, "O_EXCL"}, {0o400, "O_NOCTTY"}, {0o1000, "O_TRUNC"},
		{0o2000, "O_APPEND"}, {0o4000, "O_NONBLOCK"}, {0o4010000, "O_SYNC"}, {0o10000, "O_DSYNC"},
		{0o20000, "O_ASYNC"}, {direct, "O_DIRECT"}, {largeFile, "O_LARGEFILE"},
		{0o20000000 | directory, "O_TMPFILE"}, {directory, "O_DIRECTORY"}, {noFollow, "O_NOFOLLOW"},
		{0o1000000, "O_NOATIME"}, {oCloseExec, "O_CLOEXEC"}, {0o10000000, "O_PATH"},
	}
}

type openFlag struct {
	bits uint32
	name string
}

// openFlags returns the flags in words; what has no word follows as a number.
func openFlags(arm64 bool, f uint32) string {
	known := openFlagNames
	if arm64 {
		known = armFlagNames
	}
	names := []string{[]string{"O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"}[f&oAccessMode]}
	f &^= oAccessMode
	for _, n := range known {
		if f&n.bits == n.bits {
			names = append(names, n.name)
			f &^= n.bits
		}
	}
	if f != 0 {
		names = append(names, fmt.Sprintf("%#x", f))
	}
	return strings.Join(names, "|")
}
