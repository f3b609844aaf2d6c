package implant

import (
	"crypto/rand"
	"encoding/binary"
)

// The layout of what guest and host share: object/implant.h in Go. All numbers
// are little-endian.

// Offsets in the header of the data region.
const (
	hdrMagic     = 0
	hdrUnits     = 8
	hdrSize      = 16
	hdrCode      = 24
	hdrHead      = 64
	hdrTail      = 128
	hdrHeartbeat = 136
	hdrStop      = 144
	hdrStale     = 152
	hdrClockDue  = 160
	hdrLost      = 192
	hdrSilent    = 200
	hdrInside    = 216
	hdrMode      = 256
	hdrNComms    = 260
	hdrNUIDs     = 264
	hdrUIDs      = 272
	hdrComms     = 320
	hdrClockSeq  = 448
	hdrClockTSC  = 456
	hdrClockWall = 464
	hdrEvery     = 472
	hdrMost      = 480
	hdrEnd       = 512

	headerMagic = 0x31746e616c706d69 // "implant1"
	maxUIDs     = 12
	maxComms    = 8
)

// Bits of the header's mode.
const (
	modeLossless = 1 << iota
	modeTGID
	_
	modeComm
	modeUID
)

// The function table in the data region.
const (
	funcsOffset  = 4096
	funcSize     = 64
	funcAbout    = 8
	funcCaptures = 16
	captureSize  = 8
	maxCaptures  = 6
	maxFuncs     = 1024
)

// Bits of a function's flags.
const (
	funcEnter = 1 << iota
	funcReturn
	funcSyscall
	funcCompat
	funcSync
	funcFork
	_
	funcReturnData
	funcWhole
)

// Kinds of captures.
const (
	capString = 1
	capBuffer = 2
	capVector = 3
	capCount  = 4
	capVia    = 5
	capFailed = 0xffff
	capNotNow = 0xfffe
	lenMax    = 255
	lenResult = 254
	lenNext   = 253
	lenBoth   = 252

	phaseEnter  = 1
	phaseReturn = 2
)

// Records in the ring: units, of which a record takes as many as it needs.
const (
	unitSize = 64
	slotSize = 512 // of the largest record
)

// Offsets in a slot, with which a record begins.
const (
	slotMark    = 0
	slotTSC     = 8
	slotFunc    = 16
	slotCPU     = 18
	slotKind    = 20
	slotFlags   = 21
	slotLen     = 22
	slotTask    = 24
	slotCall    = 32
	slotResult  = 40
	slotComm    = 48
	slotSlimEnd = 64
	slotArgs    = 64
	slotRegs    = 112
	slotValue   = 120
	slotTID     = 128
	slotTGID    = 132
	slotPTGID   = 136
	slotUID     = 140
	slotAnswer  = 144
	slotData    = 160

	kindEnter  = 1
	kindReturn = 2

	slotSync   = 1
	slotNoWait = 2
	slotSlim   = 4
)

// Answers to a waiting thread.
const (
	answerGo   = 1
	answerSkip = 2
	answerDrop = 3
)

// The stub's frame, and what lies on the stack when a record is posted.
const (
	frameMin       = 40 // sizeof(struct frame)
	entryArgs      = 0  // rdi rsi rdx rcx r8 r9
	entryFrame     = 56
	leaveFrame     = 16
	bitmapBits     = 1 << 22 // PID_MAX_LIMIT of 64-bit kernels
	bitmapBytes    = bitmapBits / 8
	defaultSlots   = 1 << 15
	maxSlots       = 1 << 20 // of the largest size
	pageSize       = 4096
	codeHeaderSize = 64
)

// layout says where things lie in the data region.
type layout struct {
	units  uint64 // of the ring; power of two
	bitmap uint64 // offset
	ring   uint64 // offset
	size   uint64 // of the whole region, a multiple of the page size
	key    uint64 // a complete record's mark is its index plus this
}

// newLayout returns the layout for nfuncs functions and a ring of the given
// number of slots, which is rounded up to a power of two. The key is secret:
// user space decides what lies in the ring, and must not be able to make marks.
func newLayout(nfuncs int, slots int) layout {
	n := uint64(64)
	for n < uint64(min(max(slots, 1), maxSlots)) {
		n *= 2
	}
	l := layout{units: n * (slotSize / unitSize)}
	l.bitmap = pageUp(funcsOffset + uint64(nfuncs)*funcSize)
	l.ring = l.bitmap + bitmapBytes
	l.size = pageUp(l.ring + n*slotSize + slotSize) // a record may begin in the last unit
	var key [8]byte
	_, _ = rand.Read(key[:]) // never fails
	l.key = binary.LittleEndian.Uint64(key[:])
	return l
}

func pageUp(n uint64) uint64 { return (n + pageSize - 1) &^ (pageSize - 1) }
