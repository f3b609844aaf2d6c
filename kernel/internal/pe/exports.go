package pe

import (
	"encoding/binary"
	"fmt"
)

// Export is one exported name.
type Export struct {
	Name    string
	RVA     uint32
	Forward string // "NTDLL.RtlAllocateHeap" when it stands for another image's; RVA is then 0
}

// Exports is the export directory.
type Exports struct {
	Image   string // the name that the image was linked by: "ntoskrnl.exe"
	Exports []Export
	Missing int // how many names or addresses lie in pages that are not in memory
}

// ImageName returns the name in the export directory, "ntoskrnl.exe" of every
// kernel whatever the file is called.
func (im *Image) ImageName() (string, error) {
	rva, size, err := im.dir(dirExport)
	var b [40]byte
	if err != nil || size < uint32(len(b)) {
		return "", fmt.Errorf("read export directory: %w", orFormat(err))
	}
	if im.read(b[:], rva) > 0 {
		return "", fmt.Errorf("read export directory: %w", ErrPagedOut)
	}
	name, ok := im.text(binary.LittleEndian.Uint32(b[12:]), maxName)
	if !ok {
		return "", fmt.Errorf("read the image's name: %w", ErrPagedOut)
	}
	return name, nil
}

func orFormat(err error) error {
	if err == nil {
		return ErrFormat
	}
	return err
}

// Exports reads the export directory.
func (im *Image) Exports() (*Exports, error) {
	name, err := im.ImageName()
	if err != nil {
		return nil, err
	}
	rva, size, _ := im.dir(dirExport)
	var b [40]byte
	im.read(b[:], rva)
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	functions, names := word(20), word(24)
	if functions > maxExports || names > maxExports {
		return nil, fmt.Errorf("read export directory: %d functions, %d names: %w", functions, names, ErrFormat)
	}
	addresses, strings, ordinals := make([]byte, 4*functions), make([]byte, 4*names), make([]byte, 2*names)
	im.read(addresses, word(28))
	im.read(strings, word(32))
	im.read(ordinals, word(36))
	out := &Exports{Image: name, Exports: make([]Export, 0, names)}
	for i := range int(names) {
		n := int(binary.LittleEndian.Uint16(ordinals[2*i:]))
		text, ok := im.text(binary.LittleEndian.Uint32(strings[4*i:]), maxName)
		if !ok || text == "" || n >= int(functions) {
			out.Missing++
			continue
		}
		e := Export{Name: text, RVA: binary.LittleEndian.Uint32(addresses[4*n:])}
		if e.RVA >= rva && e.RVA-rva < size {
			e.Forward, _ = im.text(e.RVA, maxForward)
			e.RVA = 0
		} else if e.RVA == 0 || e.RVA >= im.Size {
			out.Missing++
			continue
		}
		out.Exports = append(out.Exports, e)
	}
	return out, nil
}
