// Package kdbg reads KDDEBUGGER_DATA64, the block in which an NT kernel tells
// a debugger where things are (wdbgexts.h of the Windows SDK). From Windows 8
// for x64 on the kernel keeps it encoded while no debugger is attached.
//
// The bytes are the guest's: what Parse returns is only as good as the caller's
// comparison of Base with where the kernel is.
package kdbg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// ErrFormat is returned for what is no such block.
var ErrFormat = errors.New("no KDBG block")

// Tag is the block's mark, 16 bytes from its start.
const Tag = "KDBG"

// MinSize is the length of the part that Parse needs: what XP had, in bytes.
const MinSize = 0x220

const (
	tagAt  = 0x10
	sizeAt = 0x14
	// maxSize is above what any build had (0x388 in 2023).
	maxSize = 0x1000
)

// Block is what the block tells, as far as it is used here. Addresses of a
// 32-bit kernel are cut to 32 bits.
type Block struct {
	Size                                                 uint32
	Base                                                 uint64 // of the kernel
	PsLoadedModuleList, PsActiveProcessHead, PspCidTable uint64
	KiProcessorBlock                                     uint64 // array of pointers to the KPRCBs
}

// Find returns the offsets in b at which a block may begin.
func Find(b []byte) []int {
	var out []int
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte(Tag))
		if i < 0 {
			return out
		}
		if start := at + i - tagAt; start >= 0 && start%4 == 0 {
			out = append(out, start)
		}
		at += i + len(Tag)
	}
}

// Parse reads a block that is not encoded.
func Parse(b []byte, x64 bool) (*Block, error) {
	if len(b) < MinSize || string(b[tagAt:tagAt+4]) != Tag {
		return nil, fmt.Errorf("read tag: %w", ErrFormat)
	}
	size := binary.LittleEndian.Uint32(b[sizeAt:])
	if size < MinSize || size > maxSize {
		return nil, fmt.Errorf("block of %#x bytes: %w", size, ErrFormat)
	}
	word := func(at int) uint64 {
		v := binary.LittleEndian.Uint64(b[at:])
		if !x64 {
			v &= 1<<32 - 1
		}
		return v
	}
	return &Block{Size: size, Base: word(0x18), PsLoadedModuleList: word(0x48), PsActiveProcessHead: word(0x50),
		PspCidTable: word(0x58), KiProcessorBlock: word(0x218)}, nil
}

// Key is what the kernel encodes the block with, each the value of a symbol
// that is not exported; Address is that of KdpDataBlockEncoded.
type Key struct {
	Never, Always, Address uint64 // KiWaitNever, KiWaitAlways
}

// Decode returns the plain form of an encoded block.
func Decode(b []byte, k Key) []byte {
	out := make([]byte, 0, len(b))
	for ; len(b) >= 8; b = b[8:] {
		v := binary.LittleEndian.Uint64(b) ^ k.Never
		v = bits.RotateLeft64(v, int(k.Never&0xff))
		v ^= k.Address
		v = bits.ReverseBytes64(v) ^ k.Always
		out = binary.LittleEndian.AppendUint64(out, v)
	}
	return out
}
