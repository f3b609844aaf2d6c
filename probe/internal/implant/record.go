package implant

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/vitrine-vmi/vitrine/arch"
)

// record is one entry or return as the guest side wrote it. Everything in it
// comes from the guest; decode checks what the host relies on. A slim one has
// neither the thread's identity, nor root, nor regs.
type record struct {
	index  uint64 // position in the stream of records, in units
	tsc    uint64
	fn     uint32 // less than the number of functions
	ret    bool
	flags  uint8
	cpu    uint16
	task   arch.GVA
	tid    uint32
	tgid   uint32
	ptgid  uint32
	uid    uint32
	comm   [16]byte
	call   uint64 // index of the entry's record
	result uint64 // at entry: argument 0 itself
	root   uint64 // CR3
	args   [6]uint64
	regs   arch.GVA
	data   []byte // captures; valid until the next record
	buf    [slotSize - slotData]byte
}

var errForged = errors.New("record is not what the implant writes")

// word is the number in a slot that says what the record is: function,
// processor, kind, flags, and the size of its data.
type word uint64

func (w word) kind() uint8   { return uint8(w >> 32) }
func (w word) flags() uint8  { return uint8(w >> 40) }
func (w word) dataLen() int  { return int(w >> 48) }
func (w word) function() int { return int(w & 0xffff) }

// size returns how many bytes of the record count, 0 for what cannot be one.
func (w word) size() int {
	switch {
	case w.flags()&slotSlim != 0 && w.kind() == kindReturn && w.dataLen() == 0:
		return slotSlimEnd
	case w.dataLen() > slotSize-slotData || w.flags()&slotSlim != 0:
		return 0
	}
	return slotData + w.dataLen()
}

// units returns how many units the record takes.
func (w word) units() int { return (w.size() + unitSize - 1) / unitSize }

// decode fills r from the w.size() bytes of a record. They may be memory that the
// guest could change, so each is read once.
func (r *record) decode(p []byte, w word, index uint64, nfuncs uint32) error {
	le := binary.LittleEndian
	if len(p) < slotSlimEnd || len(p) != w.size() || uint32(w.function()) >= nfuncs || w.kind() != kindEnter && w.kind() != kindReturn {
		return errForged
	}
	r.index, r.tsc, r.fn, r.ret, r.flags, r.cpu = index, le.Uint64(p[slotTSC:]), uint32(w.function()), w.kind() == kindReturn, w.flags(), uint16(w>>16)
	r.task, r.call, r.result = arch.GVA(le.Uint64(p[slotTask:])), le.Uint64(p[slotCall:]), le.Uint64(p[slotResult:])
	r.data = nil
	if len(p) < slotData {
		return nil
	}
	p = p[:slotData+w.dataLen()]
	r.comm = [16]byte(p[slotComm:])
	r.regs, r.root = arch.GVA(le.Uint64(p[slotRegs:])), le.Uint64(p[slotValue:])
	r.tid, r.tgid, r.ptgid, r.uid = le.Uint32(p[slotTID:]), le.Uint32(p[slotTGID:]), le.Uint32(p[slotPTGID:]), le.Uint32(p[slotUID:])
	for i := range r.args {
		r.args[i] = le.Uint64(p[slotArgs+8*i:])
	}
	r.data = r.buf[:copy(r.buf[:], p[slotData:])]
	return nil
}

// captures splits the captured data into to[:n] and returns it: nil where the
// guest could not read the memory.
func (r *record) captures(to [][]byte, n int) [][]byte {
	to = to[:0]
	p := r.data
	for range n {
		if len(p) < 2 {
			to = append(to, nil)
			continue
		}
		size := int(binary.LittleEndian.Uint16(p))
		p = p[2:]
		if size >= capNotNow || size > len(p) {
			to = append(to, nil)
			continue
		}
		to = append(to, p[:size:size])
		p = p[min(size+size&1, len(p)):]
	}
	return to
}

// nameOf returns a thread's short name.
func nameOf(comm *[16]byte) string {
	if i := bytes.IndexByte(comm[:], 0); i >= 0 {
		return string(comm[:i])
	}
	return string(comm[:])
}

func le32(p []byte) uint32 { return binary.LittleEndian.Uint32(p) }
func le64(p []byte) uint64 { return binary.LittleEndian.Uint64(p) }
