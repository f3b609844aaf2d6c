package implant

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/vitrine-vmi/vitrine/arch"
)

// record is one entry or return as the guest side wrote it. Everything in it
// comes from the guest; decode checks what the host relies on.
type record struct {
	index  uint64 // position in the stream of records
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
}

var errForged = errors.New("record is not what the implant writes")

// decode fills r from the bytes of a slot.
func (r *record) decode(p []byte, index uint64, nfuncs uint32) error {
	le := binary.LittleEndian
	if len(p) < slotSize {
		return errForged
	}
	kind, n := p[slotKind], le.Uint32(p[slotLen:])
	*r = record{
		index: index, tsc: le.Uint64(p[slotTSC:]), fn: le.Uint32(p[slotFunc:]), ret: kind == kindReturn, flags: p[slotFlags],
		cpu: le.Uint16(p[slotCPU:]), task: arch.GVA(le.Uint64(p[slotTask:])),
		tid: le.Uint32(p[slotTID:]), tgid: le.Uint32(p[slotTGID:]), ptgid: le.Uint32(p[slotPTGID:]), uid: le.Uint32(p[slotUID:]),
		comm: [16]byte(p[slotComm:]), call: le.Uint64(p[slotCall:]), result: le.Uint64(p[slotResult:]), root: le.Uint64(p[slotValue:]),
		regs: arch.GVA(le.Uint64(p[slotRegs:])),
	}
	if r.fn >= nfuncs || kind != kindEnter && kind != kindReturn || n > slotSize-slotData {
		return errForged
	}
	if !r.ret {
		for i := range r.args {
			r.args[i] = le.Uint64(p[slotArgs+8*i:])
		}
	}
	r.data = p[slotData : slotData+n]
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

// name returns the thread's short name.
func (r *record) name() []byte {
	if i := bytes.IndexByte(r.comm[:], 0); i >= 0 {
		return r.comm[:i]
	}
	return r.comm[:]
}

func le32(p []byte) uint32 { return binary.LittleEndian.Uint32(p) }
func le64(p []byte) uint64 { return binary.LittleEndian.Uint64(p) }
