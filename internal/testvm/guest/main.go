//go:build linux

// Command guest is the first process of a test guest: it mounts what a Linux system needs, loads the modules that the
// initramfs carries, starts workloads on request and tells the harness the truth about the machine as the kernel's own
// /proc and /sys show it. It talks frames of package wire over the second serial port. Started under another name or
// with the argument "workload" it is one of its own workloads.
//
// It trusts the host, runs as root and is meant for throw-away guests alone.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
)

func main() {
	if len(os.Args) > 3 && os.Args[1] == "workload" {
		debug.SetGCPercent(-1) // a collector's threads would be noise in what the workload does
		workloadMain(os.Args[2], os.Args[3], os.Args[4:])
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintf(os.Stderr, "%s: runs only as the first process of a test guest\n", filepath.Base(os.Args[0]))
		os.Exit(2)
	}
	runtime.LockOSThread() // pid 1 keeps its thread 1
	fmt.Fprintln(os.Stderr, "guest: serve:", serve())
	powerOff()
}
