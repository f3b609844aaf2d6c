package implant

// The layout of what guest and host share: object/implant.h in Go. All numbers
// are little-endian.

// Offsets in the header of the data region.
const (
	hdrMagic     = 0
	hdrSlots     = 8
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
	hdrFiltered  = 208
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

// Offsets in a slot of the ring.
const (
	slotSize   = 512
	slotSeq    = 0
	slotTSC    = 8
	slotFunc   = 16
	slotKind   = 20
	slotFlags  = 21
	slotCPU    = 22
	slotTask   = 24
	slotTID    = 32
	slotTGID   = 36
	slotPTGID  = 40
	slotUID    = 44
	slotComm   = 48
	slotCall   = 64
	slotResult = 72
	slotArgs   = 80
	slotRegs   = 128
	slotAnswer = 136
	slotValue  = 144
	slotLen    = 152
	slotData   = 160

	kindEnter  = 1
	kindReturn = 2

	slotSync   = 1
	slotNoWait = 2
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
	maxSlots       = 1 << 20
	pageSize       = 4096
	codeHeaderSize = 64
)

// layout says where things lie in the data region.
type layout struct {
	slots  uint64 // power of two
	bitmap uint64 // offset
	ring   uint64 // offset
	size   uint64 // of the whole region, a multiple of the page size
}

// newLayout returns the layout for nfuncs functions and a ring of the given
// number of slots, which is rounded up to a power of two.
func newLayout(nfuncs int, slots int) layout {
	n := uint64(64)
	for n < uint64(min(max(slots, 1), maxSlots)) {
		n *= 2
	}
	l := layout{slots: n}
	l.bitmap = pageUp(funcsOffset + uint64(nfuncs)*funcSize)
	l.ring = l.bitmap + bitmapBytes
	l.size = l.ring + n*slotSize
	return l
}

func pageUp(n uint64) uint64 { return (n + pageSize - 1) &^ (pageSize - 1) }
