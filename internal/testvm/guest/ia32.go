//go:build linux

package main

import (
	"unsafe"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

func init() { workloads["ia32"] = ia32 }

// ia32 makes system calls by the interface of 32-bit x86 and answers each line of input with the []wire.SeqCall. A 32-bit
// program makes them in turn by int 0x80 and by the vDSO, a 64-bit one by int 0x80. Arguments: none.
func ia32(w *work) error {
	other, err := ia32Caller()
	if err != nil {
		return err
	}
	// Where a 64-bit program's pointers fit too: MAP_32BIT, which nobody needs on 32-bit x86.
	const map32Bit = 0x40
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|map32Bit)
	if err != nil {
		return err
	}
	copy(page, ia32Path+"\x00")
	mem := uintptr(unsafe.Pointer(&page[0])) //nolint:gosec // mapped memory stays where it is
	return w.turns(func(int, string) (any, error) {
		q := &ia32Calls{other: other, tid: unix.Gettid()}
		q.run(mem)
		return q.all, nil
	})
}

const ia32Path = "/etc/hostname"

// Numbers of system calls of 32-bit x86.
const (
	nr32Close, nr32Lseek, nr32Getppid, nr32Munmap, nr32Getpgid = 6, 19, 64, 91, 132
	nr32Llseek, nr32Pread64, nr32Mmap2, nr32Getuid32           = 140, 180, 192, 199
	nr32ClockGettime, nr32Openat, nr32ClockGettime64           = 265, 295, 403
)

// ia32Calls makes and records calls.
type ia32Calls struct {
	other func(nr uintptr, a [5]uintptr) uintptr
	tid   int
	all   []wire.SeqCall
}

func (q *ia32Calls) run(mem uintptr) {
	const cwd = 1<<32 - 100 // AT_FDCWD
	buf := mem + 1024
	for range 2 { // by one way, then by the other
		fd := uintptr(q.call("openat", nr32Openat, ia32Path, cwd, mem, unix.O_RDONLY|unix.O_CLOEXEC, 0))
		q.call("_llseek", nr32Llseek, "", fd, 1, 2, buf, unix.SEEK_SET)
		q.call("lseek", nr32Lseek, "", fd, 0xffffffff, unix.SEEK_CUR)
		q.call("pread64", nr32Pread64, "", fd, buf, 4, 3, 0)
		q.call("getuid32", nr32Getuid32, "")
		q.call("getppid", nr32Getppid, "")
		q.call("clock_gettime", nr32ClockGettime, "", unix.CLOCK_MONOTONIC, buf)
		q.call("clock_gettime64", nr32ClockGettime64, "", unix.CLOCK_MONOTONIC, buf)
		at := q.call("mmap2", nr32Mmap2, "", 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, 0xffffffff)
		q.call("munmap", nr32Munmap, "", uintptr(at), 4096)
		q.call("close", nr32Close, "", fd)
		q.call("close", nr32Close, "", 0xfffffff7)
		q.call("getpgid", nr32Getpgid, "", wire.TreeMark)
	}
}

func (q *ia32Calls) call(name string, nr uintptr, path string, a ...uintptr) int64 {
	var five [5]uintptr
	copy(five[:], a)
	how := q.other
	if len(q.all)%2 == 0 {
		how = usualCaller(how)
	}
	ret := int64(uint32(how(nr, five)))
	if ret >= 1<<32-4095 {
		ret -= 1 << 32 // -errno
	}
	call := wire.SeqCall{TID: q.tid, Name: name, Path: path, Ret: ret}
	for _, v := range a {
		call.Args = append(call.Args, uint64(v))
	}
	q.all = append(q.all, call)
	return ret
}
