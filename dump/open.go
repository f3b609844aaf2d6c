package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Format is a kind of image.
type Format string

// The formats that Open reads.
const (
	ELF       Format = "ELF core"
	KDump     Format = "kdump"
	Flattened Format = "flattened kdump"
	LiME      Format = "LiME"
	AVML      Format = "AVML"
	Windows   Format = "Windows crash dump"
	Raw       Format = "raw memory"
)

// Options change how Open works. The zero value and nil mean the defaults.
type Options struct {
	// Layout, when it is not empty, makes the file raw memory and says which of
	// its bytes are which of the guest's; see ParseLayout.
	Layout Layout
	// Arch is the instruction set of a guest whose image does not tell it: raw
	// memory, LiME and AVML. The zero value means x86-64.
	Arch arch.Arch
}

// Open returns the guest of a memory image. What the file is, its content
// tells. The guest is read-only: everything but reading answers that it is not
// supported. Close it to unmap the file.
//
// The error wraps vitrine.ErrNotFound when there is no such file,
// vitrine.ErrPermission when it may not be read, and ErrFormat when it is no
// image that this package reads.
func Open(ctx context.Context, path string, opts *Options) (*vitrine.Guest, error) {
	if opts == nil {
		opts = &Options{}
	}
	im, err := open(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("open image %q: %w", path, err)
	}
	access := "mapped " + string(im.format)
	if im.detail != "" {
		access += ", " + im.detail
	}
	return vitrine.New(im, vitrine.Info{
		Name: filepath.Base(path), Backend: "dump", Arch: im.arch, CPUs: max(im.cpus, len(im.regs), 1), Access: access,
	}), nil
}

func open(ctx context.Context, path string, opts *Options) (*image, error) {
	f, err := openFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", vitrine.ErrNotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: %w", vitrine.ErrPermission, err)
	case err != nil:
		return nil, err
	}
	im := &image{file: f, arch: opts.Arch}
	if im.arch == arch.Unknown {
		im.arch = arch.AMD64
	}
	err = guarded(func() error { return im.load(ctx, f, opts) })
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	if len(im.mem.regions()) == 0 {
		f.close()
		return nil, fmt.Errorf("%s: %w", im.format, malformed("no memory is in it: the file has %d bytes", f.n))
	}
	return im, nil
}

// mark is how files of one kind start.
type mark struct {
	magic string
	load  func(im *image, ctx context.Context, b blob) error
}

// marks returns what Open knows, in the order in which it looks.
func marks() []mark {
	return []mark{
		{"\x7fELF", (*image).loadELF},
		{"KDUMP   ", (*image).loadKDump},
		{"DISKDUMP", (*image).loadKDump},
		{flatMagic, (*image).loadFlattened},
		{limeMagic, (*image).loadLiME},
		{avmlMagic, (*image).loadLiME},
		{"PAGEDU64", (*image).loadWindows},
		{"PAGEDUMP", (*image).loadWindows},
	}
}

// others are files that are mistaken for images, and what to do with them.
var others = []struct{ magic, advice string }{
	{"QEVM", "a saved state of QEMU (savevm, migrate); let QEMU load it, then dump the guest"},
	{"\xd2\xbe\xd2\xbe", "a VMware state; convert it with vmss2core"},
	{"\xd1\xbe\xd1\xbe", "a VMware state; convert it with vmss2core"},
	{"\xd0\xbe\xd2\xbe", "a VMware state; convert it with vmss2core"},
	{"MDMP", "a dump of one Windows process, not of a machine"},
	{"QFI\xfb", "a disk image"},
	{"KDMV", "a disk image"},
	{"HIBR", "a Windows hibernation file"},
	{"hibr", "a Windows hibernation file"},
	{"LibvirtQemudSave", "a guest saved by virsh save; virsh restore it, then virsh dump --memory-only"},
	{"\x1f\x8b", "compressed by gzip; unpack it first"},
	{"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"},
	{"\xfd7zXZ", "compressed by xz; unpack it first"},
	{"BZh", "compressed by bzip2; unpack it first"},
	{"\x04\x22\x4d\x18", "compressed by lz4; unpack it first"},
	{"\x89LZO", "compressed by lzop; unpack it first"},
}

func (im *image) load(ctx context.Context, b blob, opts *Options) error {
	if b.size() == 0 {
		return malformed("the file is empty")
	}
	if len(opts.Layout) > 0 {
		return im.loadRaw(b, opts.Layout)
	}
	head := make([]byte, min(b.size(), 64))
	if _, err := b.readAt(head, 0); err != nil {
		return err
	}
	for _, m := range marks() {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.load(im, ctx, b)
		}
	}
	for _, o := range others {
		if bytes.HasPrefix(head, []byte(o.magic)) {
			return malformed("it looks like %s", o.advice)
		}
	}
	return malformed("looked for %s; it starts with % x; for raw memory give the layout",
		strings.Join([]string{string(ELF), string(KDump), string(Flattened), string(LiME), string(AVML), string(Windows)}, ", "), head[:min(len(head), 8)])
}
