package implant

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// ending is what the kernel's own text gives to do the rest of a stub: `add
// $frame, %rsp` and a return. A thread that is blocked in a wrapped function
// when the implant leaves returns there.
type ending struct {
	gadget arch.GVA
	frame  uint32
	thunk  arch.GVA // where returns go through, 0 where they are plain
}

// frames are the sizes to look for, the best first: a frame that keeps the
// stack's alignment.
var frames = []uint32{40, 56, 72, 48, 64, 80, 88, 104}

var errNoEnding = errors.New("the kernel's text has no ending for a stub")

// maxText bounds the search.
const maxText = 64 << 20

// findEnding searches the kernel's text.
func findEnding(f Facts) (ending, error) {
	start, ok := f.Symbol("_stext")
	end, okEnd := f.Symbol("_etext")
	if !ok || !okEnd || end <= start || end-start > maxText {
		return ending{}, fmt.Errorf("the bounds of the kernel's text are not known: %w", errNoEnding)
	}
	for _, frame := range frames {
		if e, err := searchEnding(f, start, end, frame); err == nil || !errors.Is(err, errNoEnding) {
			return e, err
		}
	}
	return ending{}, errNoEnding
}

// endingSize is the length of the longest form: add, and a jump to a thunk.
const endingSize = 9

func searchEnding(f Facts, start, end arch.GVA, frame uint32) (ending, error) {
	want := []byte{0x48, 0x83, 0xc4, byte(frame)}
	buf := make([]byte, 1<<16)
	for at := start; at < end; at += arch.GVA(len(buf) - endingSize) {
		n, err := f.Space().Read(buf[:min(arch.GVA(len(buf)), end-at)], at)
		if err != nil && n == 0 {
			return ending{}, err
		}
		for off := 0; ; off++ {
			i := bytes.Index(buf[off:n], want)
			if i < 0 || off+i+endingSize > n {
				break
			}
			off += i
			e := ending{gadget: at + arch.GVA(off), frame: frame}
			if e.thunk, err = returnForm(f, e.gadget+4, buf[off+4:off+endingSize]); err == nil {
				return e, nil
			}
		}
	}
	return ending{}, errNoEnding
}

// returnForm reports how the code b at a returns: 0 for a plain return, else
// the thunk that it jumps to. Kernels with the 2022 mitigations of return
// prediction write the latter into their own text where the processor needs it.
func returnForm(f Facts, a arch.GVA, b []byte) (arch.GVA, error) {
	if b[0] == 0xc3 {
		return 0, nil
	}
	if b[0] == 0xe9 {
		to := a + 5 + arch.GVA(int64(int32(binary.LittleEndian.Uint32(b[1:]))))
		if name, at, ok := f.SymbolAt(to); ok && at == to && strings.Contains(name, "return_thunk") {
			return to, nil
		}
	}
	return 0, errNoEnding
}
