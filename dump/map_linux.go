package dump

import (
	"errors"
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

// nextData returns the first place from off on that is in no hole of the file.
func (b *file) nextData(off uint64) uint64 {
	at, err := unix.Seek(int(b.f.Fd()), int64(off), unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // nothing but a hole from here
		return b.n
	case err != nil: // a file system that does not tell
		return off
	}
	return max(off, uint64(at))
}

func unmapFile(p []byte) {
	_ = unix.Munmap(p) // it can only fail for what was not mapped
}
