package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// WriteOptions change how Write works. The zero value and nil mean the defaults.
type WriteOptions struct {
	// Info is the kernel's VMCOREINFO text, which goes into a note of its own;
	// nil for none.
	Info []byte
	// Mappings say where the kernel maps physical memory: the core gets a
	// segment with that virtual address for each. Tools that look for the kernel
	// by virtual addresses need them; nothing is stored twice.
	Mappings []Mapping
	// Resume goes on with what a failed Write has left. All memory is read
	// again, and compared: what is in the file and still right is not written.
	Resume bool
	// Progress, when not nil, is told now and then how far it is, in bytes.
	Progress func(done, total uint64)
	// Written, when not nil, is called once all memory has been read and
	// written, before the file is brought to disk and gets its name: a guest
	// that was paused may go on then. An error of it is Write's.
	Written func() error
}

// Mapping is physical memory that the kernel maps in one piece.
type Mapping struct {
	Virtual  arch.GVA
	Physical arch.GPA
	Size     uint64 // bytes
}

// Report says what Write has written.
type Report struct {
	Memory  uint64 // bytes of the guest's memory
	Stored  uint64 // bytes of it that take disk: the rest are zeros, left out as holes
	Kept    uint64 // bytes of Stored that were in the file already (WriteOptions.Resume)
	Missing uint64 // bytes of Memory that could not be read: zeros in the file
}

// ErrExists is returned by Write when it would have to overwrite a file.
var ErrExists = errors.New("file exists")

// partSuffix is behind the name of a file that is not whole.
const partSuffix = ".part"

// chunk is how much memory is read at a time.
const chunk = 1 << 20

// Write makes an ELF core of a guest: its memory, the registers of its
// processors where the backend tells them, and the notes of WriteOptions. Open
// reads it, and so do tools that read QEMU's. It does not pause the guest: for
// memory of one moment do that around it.
//
// Until it is whole the file is called path.part, and a Write that fails leaves
// it so. Write overwrites neither file: the error then wraps ErrExists.
func Write(ctx context.Context, g *vitrine.Guest, path string, opts *WriteOptions) (*Report, error) {
	if opts == nil {
		opts = &WriteOptions{}
	}
	r, err := writeCore(ctx, g, path, opts)
	if err != nil {
		return r, fmt.Errorf("write core %q: %w", path, err)
	}
	return r, nil
}

func writeCore(ctx context.Context, g *vitrine.Guest, path string, opts *WriteOptions) (*Report, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%w; give another name, or remove it", ErrExists)
	}
	f, err := openPart(path+partSuffix, opts.Resume)
	if err != nil {
		return nil, err
	}
	w := &coreWriter{ctx: ctx, g: g, f: f, opts: opts}
	err = w.write()
	if err == nil && opts.Written != nil {
		err = opts.Written()
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return &w.report, err
	}
	return &w.report, giveName(path)
}

// openPart opens the file that is to become the core.
func openPart(path string, resume bool) (*os.File, error) {
	flags := os.O_RDWR | os.O_CREATE
	if !resume {
		flags |= os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0o600) // it holds all the guest's secrets
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: %s, of a write that failed; resume it, or remove it", ErrExists, path)
	}
	return f, err
}

// giveName gives the finished file its name, unless one of that name has come
// to be meanwhile.
func giveName(path string) error {
	err := os.Link(path+partSuffix, path)
	switch {
	case err == nil:
		return os.Remove(path + partSuffix)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: it has come to be meanwhile; the core is %s", ErrExists, path+partSuffix)
	}
	return os.Rename(path+partSuffix, path) // a file system without links
}

// coreWriter is one call of Write.
type coreWriter struct {
	ctx    context.Context
	g      *vitrine.Guest
	f      *os.File
	opts   *WriteOptions
	report Report
	had    int64 // bytes that the file had before
}

func (w *coreWriter) write() error {
	st, err := w.f.Stat()
	if err != nil {
		return err
	}
	w.had = st.Size()
	regions := w.g.Regions()
	if len(regions) == 0 {
		return errors.New("the guest has no memory")
	}
	head := w.header(regions)
	total := w.g.MemoryBytes()
	off := int64(len(head))
	for _, r := range regions {
		if err := w.region(r, off, total); err != nil {
			return err
		}
		off += int64(r.Size)
	}
	// The header comes last: what is not whole does not look like a core.
	if err := w.f.Truncate(off); err != nil {
		return err
	}
	_, err = w.f.WriteAt(head, 0)
	return err
}

// region writes a region to where its bytes begin in the file.
func (w *coreWriter) region(r vitrine.Region, off int64, total uint64) error {
	buf, old := make([]byte, chunk), []byte(nil)
	if w.had > 0 {
		old = make([]byte, chunk)
	}
	for at := uint64(0); at < r.Size; at += chunk {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(chunk, r.Size-at)]
		if err := w.read(p, r.Start+arch.GPA(at)); err != nil {
			return err
		}
		if err := w.store(p, old, off+int64(at)); err != nil {
			return err
		}
		w.report.Memory += uint64(len(p))
		if w.opts.Progress != nil {
			w.opts.Progress(w.report.Memory, total)
		}
	}
	return nil
}

// read fills p from a. Pages that an image lacks, or that the host cannot read,
// are zero and counted; a guest that is gone is an error.
func (w *coreWriter) read(p []byte, a arch.GPA) error {
	for done := 0; done < len(p); {
		n, err := w.g.ReadPhysical(p[done:], a+arch.GPA(done))
		if done += n; err == nil {
			return nil
		}
		if errors.Is(err, vitrine.ErrGone) || errors.Is(err, vitrine.ErrClosed) || errors.Is(err, vitrine.ErrPermission) {
			return err
		}
		next := min(done-done%arch.PageSize+arch.PageSize, len(p))
		clear(p[done:next])
		w.report.Missing += uint64(next - done)
		done = next
	}
	return nil
}

// store writes the pages of p that are not zero to off; where the file has
// something already, those that differ from it.
func (w *coreWriter) store(p, old []byte, off int64) error {
	if old != nil {
		n, err := w.f.ReadAt(old[:len(p)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		clear(old[n:])
	}
	start := -1 // of the run of pages to write
	flush := func(end int) error {
		if start < 0 {
			return nil
		}
		_, err := w.f.WriteAt(p[start:end], off+int64(start))
		start = -1
		return err
	}
	for at := 0; at < len(p); at += arch.PageSize {
		end := min(at+arch.PageSize, len(p))
		var same bool
		if old != nil {
			same = bytes.Equal(p[at:end], old[at:end])
		} else {
			same = isZero(p[at:end])
		}
		if !isZero(p[at:end]) {
			w.report.Stored += uint64(end - at)
			if same {
				w.report.Kept += uint64(end - at)
			}
		}
		if !same && start < 0 {
			start = at
		}
		if same {
			if err := flush(at); err != nil {
				return err
			}
		}
	}
	return flush(len(p))
}

var zeroPage [arch.PageSize]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroPage[:len(p)]) }
