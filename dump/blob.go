package dump

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime/debug"
	"sync"
)

// blob is the bytes of an image: those of a file, or those that a flattened
// file stands for. Its methods may be called concurrently.
type blob interface {
	// size returns how many bytes there are.
	size() uint64
	// readAt fills p from off. It returns how many bytes it filled; fewer than
	// len(p) comes with an error.
	readAt(p []byte, off uint64) (int, error)
	// slice returns n bytes at off without copying, nil when it cannot. The
	// slice is valid until the file is closed.
	slice(off, n uint64) []byte
}

// file is an image file, mapped where the host can.
type file struct {
	f     *os.File
	n     uint64
	data  []byte // nil where it is not mapped
	pages pageCache
}

// openFile opens and maps a regular file or a block device.
func openFile(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b := &file{f: f}
	if err := b.stat(); err != nil {
		f.Close()
		return nil, err
	}
	if b.n > 0 && b.n <= math.MaxInt {
		b.data = mapFile(f, int(b.n)) // nil: reads serve as well, only slower
	}
	return b, nil
}

func (b *file) stat() error {
	st, err := b.f.Stat()
	if err != nil {
		return err
	}
	switch mode := st.Mode(); {
	case mode.IsDir():
		return fmt.Errorf("it is a folder: %w", ErrFormat)
	case mode.IsRegular():
		b.n = uint64(st.Size())
		return nil
	case mode&os.ModeDevice == 0:
		return fmt.Errorf("it is neither a file nor a block device (%v): %w", mode.Type(), ErrFormat)
	}
	end, err := b.f.Seek(0, io.SeekEnd) // of a block device, which has no size
	b.n = uint64(max(end, 0))
	return err
}

func (b *file) size() uint64 { return b.n }

func (b *file) readAt(p []byte, off uint64) (int, error) {
	if off > b.n || uint64(len(p)) > b.n-off {
		return 0, io.ErrUnexpectedEOF
	}
	if len(p) >= filePage {
		return b.f.ReadAt(p, int64(off))
	}
	done := 0
	for done < len(p) {
		at := off + uint64(done)
		n, err := b.pages.read(b, p[done:min(len(p), done+int(filePage-at%filePage))], at)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Small reads go by a cache of pages, not through the mapping: a look through
// it at one page brings 15 of its neighbours with it into this process's
// memory, and a list of processes looks everywhere.
const (
	filePage  = 4096
	filePages = 512 // a power of two
)

// pageCache keeps pages of a file that were read last, by their numbers.
type pageCache struct {
	mu    sync.Mutex
	slots [filePages]*filePageSlot // guarded by mu
}

type filePageSlot struct {
	off uint64
	n   int // bytes that the file has of it
	p   [filePage]byte
}

// read fills p, which lies in one page, from off.
func (c *pageCache) read(b *file, p []byte, off uint64) (int, error) {
	page, skip := off&^(filePage-1), int(off%filePage)
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := c.slots[page/filePage%filePages]
	if slot == nil || slot.off != page {
		if slot == nil {
			slot = &filePageSlot{}
			c.slots[page/filePage%filePages] = slot
		}
		slot.off = ^uint64(0)
		n, err := b.f.ReadAt(slot.p[:], int64(page))
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		slot.off, slot.n = page, n
	}
	if skip+len(p) > slot.n {
		return 0, errShrunk
	}
	return copy(p, slot.p[skip:]), nil
}

// errShrunk is returned where a file has become shorter than it was.
var errShrunk = errors.New("the file was cut off while it was read")

func (b *file) slice(off, n uint64) []byte {
	if b.data == nil || off > b.n || n > b.n-off {
		return nil
	}
	return b.data[off : off+n : off+n]
}

func (b *file) close() error {
	if b.data != nil {
		unmapFile(b.data)
		b.data = nil
	}
	return b.f.Close()
}

// bytesOf returns n bytes at off, copied only where they are not in one piece.
// limit bounds the copy: what is larger does not belong into memory.
func bytesOf(b blob, off, n, limit uint64) ([]byte, error) {
	if off > b.size() || n > b.size()-off {
		return nil, malformed("bytes %#x to %#x are wanted and the file ends at %#x", off, off+n, b.size())
	}
	if p := b.slice(off, n); p != nil {
		return p, nil
	}
	if n > limit {
		return nil, malformed("a table of %d bytes, more than %d", n, limit)
	}
	p := make([]byte, n)
	_, err := b.readAt(p, off)
	return p, err
}

// guarded calls f, and turns a memory fault into an error: a page of a mapped
// file that has gone, because the file was truncated or its disk failed, would
// otherwise end this process.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r)
			}
			err = fmt.Errorf("%w: the file was cut off while it was read, or its disk failed", ErrMissing)
		}
	}()
	return f()
}
