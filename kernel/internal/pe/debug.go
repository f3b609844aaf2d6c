package pe

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// CodeView names the file that holds the image's symbols.
type CodeView struct {
	Path string // as the linker was told: "ntkrnlmp.pdb"
	GUID string // 32 upper-case hexadecimal digits, in the order in which symbol stores have them
	Age  uint32
}

// File returns the last element of Path.
func (c CodeView) File() string {
	return c.Path[strings.LastIndexAny(c.Path, `\/`)+1:]
}

// FormatGUID returns 16 bytes of a GUID as symbol stores write it: the first
// three parts are little-endian numbers.
func FormatGUID(b [16]byte) string {
	return fmt.Sprintf("%08X%04X%04X%X", binary.LittleEndian.Uint32(b[0:]), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:])
}

const (
	debugCodeView = 2
	maxDebug      = 32
)

// CodeView reads the RSDS record of the debug directory.
func (im *Image) CodeView() (CodeView, error) {
	rva, size, err := im.dir(dirDebug)
	if err != nil {
		return CodeView{}, fmt.Errorf("read debug directory: %w", err)
	}
	b := make([]byte, 28*min(size/28, maxDebug))
	if im.read(b, rva) > 0 {
		err = fmt.Errorf("read debug directory: %w", ErrPagedOut)
	} else {
		err = fmt.Errorf("read debug directory: no CodeView record: %w", ErrAbsent)
	}
	for ; len(b) > 0; b = b[28:] {
		if binary.LittleEndian.Uint32(b[12:]) != debugCodeView {
			continue
		}
		var c CodeView
		if c, err = im.rsds(binary.LittleEndian.Uint32(b[20:])); err == nil {
			return c, nil
		}
	}
	return CodeView{}, err
}

func (im *Image) rsds(rva uint32) (CodeView, error) {
	var h [24]byte
	if rva == 0 || rva >= im.Size || im.read(h[:], rva) > 0 {
		return CodeView{}, fmt.Errorf("read CodeView record at %#x: %w", rva, ErrPagedOut)
	}
	if string(h[:4]) != "RSDS" {
		return CodeView{}, fmt.Errorf("read CodeView record %q: %w", h[:4], ErrFormat)
	}
	path, ok := im.text(rva+24, maxName)
	if !ok {
		return CodeView{}, fmt.Errorf("read CodeView record: %w", ErrPagedOut)
	}
	return CodeView{Path: path, GUID: FormatGUID([16]byte(h[4:20])), Age: binary.LittleEndian.Uint32(h[20:])}, nil
}

// Version reads the file version of the version resource: 10, 0, 19041, 1288.
func (im *Image) Version() ([4]int, error) {
	rva, size, err := im.dir(dirResource)
	if err != nil {
		return [4]int{}, fmt.Errorf("read version resource: %w", err)
	}
	at := uint32(0)
	for level := range 3 { // type, name, language
		id := uint32(0)
		if level == 0 {
			id = 16 // RT_VERSION
		}
		if at, err = im.resource(rva, size, at, id); err != nil {
			return [4]int{}, fmt.Errorf("read version resource: %w", err)
		}
	}
	var data [8]byte
	im.read(data[:], rva+at)
	return im.fixedVersion(binary.LittleEndian.Uint32(data[:]))
}

// resource returns the offset that the first entry with an id, or any entry
// for id 0, of the resource directory at offset at leads to.
func (im *Image) resource(rva, size, at, id uint32) (uint32, error) {
	var h [16]byte
	if at > size || size-at < 16 || im.read(h[:], rva+at) > 0 {
		return 0, ErrPagedOut
	}
	n := uint32(binary.LittleEndian.Uint16(h[12:])) + uint32(binary.LittleEndian.Uint16(h[14:]))
	for i := range min(n, 256) {
		var e [8]byte
		if im.read(e[:], rva+at+16+8*i) > 0 {
			return 0, ErrPagedOut
		}
		if id == 0 || binary.LittleEndian.Uint32(e[:]) == id {
			return binary.LittleEndian.Uint32(e[4:]) &^ (1 << 31), nil
		}
	}
	return 0, ErrAbsent
}

// fixedVersion reads VS_FIXEDFILEINFO, which begins on a multiple of 4 behind
// the UTF-16 key "VS_VERSION_INFO".
func (im *Image) fixedVersion(rva uint32) ([4]int, error) {
	const header, key = 6, 32 // three words; 15 characters and NUL
	var b [16]byte
	at := (rva + header + key + 3) &^ 3
	if rva == 0 || at >= im.Size || im.read(b[:], at) > 0 {
		return [4]int{}, fmt.Errorf("read version resource: %w", ErrPagedOut)
	}
	if binary.LittleEndian.Uint32(b[:]) != 0xfeef04bd {
		return [4]int{}, fmt.Errorf("read version resource: %w", ErrFormat)
	}
	ms, ls := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	return [4]int{int(ms >> 16), int(ms & 0xffff), int(ls >> 16), int(ls & 0xffff)}, nil
}
