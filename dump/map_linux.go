package dump

import (
	"os"

	"golang.org/x/sys/unix"
)

// mapFile maps the first n bytes of f for reading, nil when it cannot.
func mapFile(f *os.File, n int) []byte {
	p, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil
	}
	return p
}

func unmapFile(p []byte) {
	_ = unix.Munmap(p) // it can only fail for what was not mapped
}
