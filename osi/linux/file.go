package linux

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// maxFDs bounds the descriptors of one process: the kernel's default limit
// (fs.nr_open) times sixteen.
const maxFDs = 16 << 20

// fdTable is a process's table of open files.
type fdTable struct {
	size            uint64 // entries
	files           arch.GVA
	open, closeExec arch.GVA // bitmaps
}

// fdTableOf returns the table of a process; false when it has none, as after
// its exit.
func (s *system) fdTableOf(ctx context.Context, as *vitrine.AddressSpace, h osi.Handle) (fdTable, bool, error) {
	t, err := s.leaderOf(ctx, h)
	if err != nil || t.files == 0 {
		return fdTable{}, false, err
	}
	if err := kernelPointer(t.files); err != nil {
		return fdTable{}, false, err
	}
	fdt, err := as.ReadPointer(t.files + arch.GVA(s.l.files.fdt.off))
	if err != nil {
		return fdTable{}, false, err
	}
	l := &s.l.fdtable
	r, err := load(as, &l.shape, fdt, nil)
	if err != nil {
		return fdTable{}, false, err
	}
	f := fdTable{size: r.uint(l.maxFDs), files: r.ptr(l.fd), open: r.ptr(l.openFDs), closeExec: r.ptr(l.closeOnExec)}
	if f.size > maxFDs {
		return f, false, fmt.Errorf("read fdtable: %d entries: %w", f.size, osi.ErrCorrupt)
	}
	return f, true, nil
}

// Files implements osi.System. It corresponds to task_struct->files->fdt.
func (s *system) Files(ctx context.Context, h osi.Handle) iter.Seq2[osi.File, error] {
	return func(yield func(osi.File, error) bool) {
		as := s.fresh()
		var table fdTable
		var ok bool
		err := retry(ctx, as, func() (err error) {
			table, ok, err = s.fdTableOf(ctx, as, h)
			return err
		})
		if err != nil {
			yield(osi.File{}, fmt.Errorf("list files: %w", err))
			return
		}
		if ok {
			s.eachFile(ctx, as, table, yield)
		}
	}
}

// eachFile yields the files whose bits are set in the map of open descriptors,
// a chunk of the map at a time.
func (s *system) eachFile(ctx context.Context, as *vitrine.AddressSpace, table fdTable, yield func(osi.File, error) bool) {
	names := s.newResolver(as)
	var open, exec [512]byte
	for first := uint64(0); first < table.size; first += 8 * uint64(len(open)) {
		n := min((table.size-first+63)/64*8, uint64(len(open)))
		if err := s.readBitmaps(ctx, as, table, first, open[:n], exec[:n]); err != nil {
			yield(osi.File{}, fmt.Errorf("list files: %w", err))
			return
		}
		for at := uint64(0); at < n; at += 8 {
			word, flags := binary.LittleEndian.Uint64(open[at:]), binary.LittleEndian.Uint64(exec[at:])
			for ; word != 0; word &= word - 1 {
				bit := bits.TrailingZeros64(word)
				fd := first + 8*at + uint64(bit)
				if fd >= table.size {
					break // a map of 32 bits, and what lies behind it
				}
				if ctx.Err() != nil {
					yield(osi.File{}, ctx.Err())
					return
				}
				f, there, err := s.fileAt(as, table, fd, flags>>bit&1 != 0, names)
				if (there || err != nil) && (!yield(f, err) || err != nil && fatal(err)) {
					return
				}
			}
		}
	}
}

func (s *system) readBitmaps(ctx context.Context, as *vitrine.AddressSpace, table fdTable, first uint64, open, exec []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := kernelPointer(table.open); err != nil {
		return err
	}
	if _, err := as.Read(open, table.open+arch.GVA(first/8)); err != nil {
		return err
	}
	_, err := as.Read(exec, table.closeExec+arch.GVA(first/8))
	return err
}

// FileByFD implements osi.System.
func (s *system) FileByFD(ctx context.Context, h osi.Handle, fd int) (osi.File, error) {
	as := s.fresh()
	var f osi.File
	err := retry(ctx, as, func() error {
		table, ok, err := s.fdTableOf(ctx, as, h)
		if err != nil {
			return err
		}
		if !ok || fd < 0 || uint64(fd) >= table.size {
			return osi.ErrNoFile
		}
		exec, err := as.ReadUint8(table.closeExec + arch.GVA(fd/8))
		if err != nil {
			return err
		}
		f, ok, err = s.fileAt(as, table, uint64(fd), exec>>(fd%8)&1 != 0, s.newResolver(as))
		if err == nil && !ok {
			err = osi.ErrNoFile
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("find file %d: %w", fd, err)
	}
	return f, err
}

// fileAt makes the record of an open file; false when the descriptor is free,
// or reserved for a file that is just being opened.
func (s *system) fileAt(as *vitrine.AddressSpace, table fdTable, fd uint64, closeExec bool, names *resolver) (osi.File, bool, error) {
	f := osi.File{FD: int(fd)}
	at, err := as.ReadPointer(table.files + s.words(int(fd)))
	if err != nil || at == 0 {
		return f, false, err
	}
	l := &s.l.file
	r, err := load(as, &l.shape, at, nil)
	if err != nil {
		return f, true, fmt.Errorf("read file %d: %w", fd, err)
	}
	f.Pos = int64(r.uint(l.pos))
	f.Flags = uint32(r.uint(l.flags)) &^ oCloseExec
	if closeExec {
		f.Flags |= oCloseExec
	}
	f.FlagNames = openFlags(s.arm64(), f.Flags)
	if f.Inode, err = names.inode(r.ptr(l.inode)); err == nil {
		f.Path, err = names.path(pathKey{r.ptr(l.mnt), r.ptr(l.dentry)})
	}
	if err != nil {
		err = fmt.Errorf("name file %d: %w", fd, err)
	}
	return f, true, err
}

// Cwd implements osi.System. It corresponds to task_struct->fs->pwd.
func (s *system) Cwd(ctx context.Context, h osi.Handle) (string, error) {
	as := s.fresh()
	var path string
	err := retry(ctx, as, func() error {
		t, err := s.leaderOf(ctx, h)
		if err != nil || t.fs == 0 {
			return err
		}
		r, err := load(as, &s.l.fs.shape, t.fs, nil)
		if err != nil {
			return err
		}
		path, err = s.newResolver(as).path(pathKey{r.ptr(s.l.fs.pwdMnt), r.ptr(s.l.fs.pwdDentry)})
		return err
	})
	if err != nil {
		err = fmt.Errorf("find working directory: %w", err)
	}
	return path, err
}
