package host

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mapping is a file range mapped shared into this process.
type Mapping struct {
	Bytes    []byte   // the range, valid until Close
	File     *os.File // the file, for reads that must not fault pages in
	Offset   int64    // of Bytes[0] in the file
	Writable bool     // Bytes may be written
	whole    []byte   // what was mapped, with the start rounded down
}

// Close unmaps the range. No slice of Bytes may be used after it.
func (m *Mapping) Close() error {
	return errors.Join(unix.Munmap(m.whole), m.File.Close())
}

// NextData returns the first place of Bytes from off on that is in no hole of the
// file, the end of Bytes where there is none. It allocates no page.
func (m *Mapping) NextData(off uint64) uint64 {
	at, err := unix.Seek(int(m.File.Fd()), m.Offset+int64(off), unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // nothing but a hole from here
		return uint64(len(m.Bytes))
	case err != nil: // a file system that does not tell
		return off
	}
	return min(max(off, uint64(at-m.Offset)), uint64(len(m.Bytes)))
}

// hugeAlign is the largest page size that a mapping is aligned to: an offset
// into a hugetlbfs file must be a multiple of its page size, 1 GiB at most.
const hugeAlign = 1 << 30

// ErrNotShared is returned by MapShared for memory that is no shared mapping of
// a file: a file that is mapped privately does not hold what the process wrote.
var ErrNotShared = errors.New("not a shared mapping of a file")

// MapShared maps into this process the file range that the process has mapped
// shared at [addr, addr+size), writable where that is permitted. vmas are its
// mappings, which may cover the range by several neighbours of one file.
func (p Process) MapShared(vmas []VMA, addr, size uint64) (*Mapping, error) {
	v, err := covering(vmas, addr, size)
	if err != nil {
		return nil, err
	}
	f, writable, err := p.openMapped(v)
	if err != nil {
		return nil, err
	}
	m, err := mapFile(f, v.Offset+(addr-v.Start), size, writable)
	if err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

// covering returns the mapping that holds addr after checking that it and its
// neighbours show [addr, addr+size) of one file, shared and without a gap.
func covering(vmas []VMA, addr, size uint64) (VMA, error) {
	var first VMA
	next := addr
	for _, v := range vmas {
		if v.End <= next || v.Start > next {
			continue
		}
		if !v.Shared() || v.Inode == 0 {
			return VMA{}, ErrNotShared
		}
		if first.End == 0 {
			first = v
		}
		if v.Inode != first.Inode || v.Dev != first.Dev || v.Offset-first.Offset != v.Start-first.Start {
			return VMA{}, fmt.Errorf("%w: several files", ErrNotShared)
		}
		if next = v.End; next >= addr+size {
			return first, nil
		}
	}
	return VMA{}, fmt.Errorf("%w: %#x is not mapped", ErrNotShared, next)
}

// openMapped opens the file of a mapping: by the kernel's own link, which needs
// CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN; by a descriptor that the process has
// open on it; by its path, when that still leads to the same file.
func (p Process) openMapped(v VMA) (*os.File, bool, error) {
	var last error = os.ErrNotExist
	for _, path := range p.candidates(v) {
		// Opening anything but a regular file may block or have effects.
		st, err := os.Stat(path)
		if errors.Is(err, os.ErrPermission) {
			last = err
		}
		if err != nil || !st.Mode().IsRegular() || !sameFile(st, path, v) {
			continue
		}
		if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
			return f, true, nil
		}
		f, err := os.Open(path)
		if err == nil {
			return f, false, nil
		}
		last = err
	}
	return nil, false, fmt.Errorf("open the file behind %#x: %w", v.Start, last)
}

// candidates returns the paths under which the file of a mapping may be found.
func (p Process) candidates(v VMA) []string {
	paths := []string{p.Path("map_files", fmt.Sprintf("%x-%x", v.Start, v.End))}
	if fds, err := os.ReadDir(p.Path("fd")); err == nil {
		for _, fd := range fds {
			paths = append(paths, p.Path("fd", fd.Name()))
		}
	}
	if strings.HasPrefix(v.Path, "/") && !strings.HasSuffix(v.Path, " (deleted)") {
		paths = append(paths, p.Path("root")+v.Path, v.Path)
	}
	return paths
}

// sameFile reports whether st, found at path, is the file of the mapping. Some
// file systems (btrfs, overlay) print another device in maps than stat tells;
// there the inode and the path have to agree.
func sameFile(st os.FileInfo, path string, v VMA) bool {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok || s.Ino != v.Inode {
		return false
	}
	if v.Dev == fmt.Sprintf("%02x:%02x", unix.Major(s.Dev), unix.Minor(s.Dev)) {
		return true
	}
	if link, err := os.Readlink(path); err == nil {
		path = link
	}
	return strings.HasSuffix(path, v.Path)
}

func mapFile(f *os.File, offset, size uint64, writable bool) (*Mapping, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Memory behind the end of a file is a SIGBUS when it is touched.
	if uint64(st.Size()) < offset+size {
		return nil, fmt.Errorf("map %s: the file ends at %#x, before %#x", f.Name(), st.Size(), offset+size)
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	for align := uint64(unix.Getpagesize()); align <= hugeAlign; align <<= 9 {
		skew := offset % align
		b, err := unix.Mmap(int(f.Fd()), int64(offset-skew), int(size+skew), prot, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err == nil {
			return &Mapping{Bytes: b[skew:][:size:size], File: f, Offset: int64(offset), Writable: writable, whole: b}, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("map %s: %w", f.Name(), err)
		}
	}
	return nil, fmt.Errorf("map %s: no page size fits offset %#x", f.Name(), offset)
}
