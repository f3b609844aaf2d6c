// Package pdb reads what a debugger needs of a PDB file of a kernel: which
// image it belongs to, types of structures, and public symbols. The format is
// described by the LLVM project (docs/PDB) and by Microsoft's microsoft-pdb.
//
// A file is as hostile as any download: streams are bounded by the file, a
// block belongs to a stream only if the file has it, and nothing is allocated
// because the file says so. A File may be used concurrently.
package pdb

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine/internal/guestio"
)

// ErrFormat is returned for what is no PDB file, or a damaged one.
var ErrFormat = errors.New("not a valid PDB file")

// Magic is what every PDB of version 7 begins with.
const Magic = "Microsoft C/C++ MSF 7.00\r\n\x1aDS\x00\x00\x00"

// MaxSize bounds a file. Those of kernels have about 12 MB.
const MaxSize = 512 << 20

// maxStreams bounds how many streams a file may have.
const maxStreams = 1 << 16

func malformed(format string, args ...any) error {
	return fmt.Errorf("read PDB: %s: %w", fmt.Sprintf(format, args...), ErrFormat)
}

// msf is a file of streams.
type msf struct {
	b       []byte
	block   uint32 // bytes
	streams []stream
}

type stream struct {
	size   uint32
	blocks []byte // their numbers, four bytes each
}

func openMSF(b []byte) (*msf, error) {
	c := guestio.NewCursor(b)
	if string(c.Bytes(len(Magic))) != Magic {
		return nil, malformed("no magic")
	}
	m := &msf{b: b, block: c.Uint32()}
	c.Skip(8)
	size := c.Uint32()
	c.Skip(4)
	at := c.Uint32()
	if c.Err() != nil || m.block < 512 || m.block > 1<<16 || m.block&(m.block-1) != 0 {
		return nil, malformed("superblock")
	}
	n := (uint64(size) + uint64(m.block) - 1) / uint64(m.block)
	list := uint64(at) * uint64(m.block)
	if list > uint64(len(b)) || n*4 > uint64(len(b))-list {
		return nil, malformed("directory of %d bytes", size)
	}
	dir, err := m.read(stream{size, b[list : list+n*4]})
	if err != nil {
		return nil, err
	}
	return m, m.readDirectory(dir)
}

// none is the size of a stream that was deleted.
const none = 1<<32 - 1

func (m *msf) readDirectory(dir []byte) error {
	c := guestio.NewCursor(dir)
	n := c.Uint32()
	if n > maxStreams || uint64(n)*4 > uint64(c.Len()) {
		return malformed("%d streams", n)
	}
	m.streams = make([]stream, n)
	for i := range m.streams {
		if m.streams[i].size = c.Uint32(); m.streams[i].size == none {
			m.streams[i].size = 0
		}
	}
	for i := range m.streams {
		blocks := (uint64(m.streams[i].size) + uint64(m.block) - 1) / uint64(m.block)
		if blocks*4 > uint64(c.Len()) {
			return malformed("stream %d of %d bytes", i, m.streams[i].size)
		}
		m.streams[i].blocks = c.Bytes(int(blocks * 4))
	}
	return c.Err()
}

// read puts a stream together. Its size is that of blocks that the file lists,
// but a file may list one twice: what is read is no more than the file itself.
func (m *msf) read(s stream) ([]byte, error) {
	if uint64(s.size) > uint64(len(m.b)) {
		return nil, malformed("stream of %d bytes in a file of %d", s.size, len(m.b))
	}
	out := make([]byte, 0, s.size)
	for p := s.blocks; len(p) >= 4; p = p[4:] {
		at := uint64(binary.LittleEndian.Uint32(p)) * uint64(m.block)
		n := min(uint64(m.block), uint64(s.size)-uint64(len(out)))
		if at > uint64(len(m.b)) || n > uint64(len(m.b))-at {
			return nil, malformed("block %d lies outside of the file", at/uint64(m.block))
		}
		out = append(out, m.b[at:at+n]...)
	}
	if uint32(len(out)) != s.size {
		return nil, malformed("stream of %d bytes has blocks for %d", s.size, len(out))
	}
	return out, nil
}

// stream returns the content of a stream.
func (m *msf) stream(n int) ([]byte, error) {
	if n < 0 || n >= len(m.streams) {
		return nil, malformed("no stream %d of %d", n, len(m.streams))
	}
	return m.read(m.streams[n])
}
