package probe

import (
	"bytes"
	"encoding/binary"

	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// StringsEnd says how a list of captured strings ends; the zero value is that
// of a whole list.
type StringsEnd struct {
	More  bool // there are more
	Fault bool // what follows could not be read
	Cut   bool // the last one goes on
}

// SplitStrings appends the strings of a capture made with Capture.Strings to
// dst. They are parts of b. Bytes that are no such capture have no strings, and
// an end with Fault.
func SplitStrings(dst [][]byte, b []byte) ([][]byte, StringsEnd) {
	if len(b) < 2 {
		return dst, StringsEnd{Fault: true}
	}
	bits := binary.LittleEndian.Uint16(b)
	end := StringsEnd{More: bits&engine.VectorMore != 0, Fault: bits&engine.VectorFault != 0, Cut: bits&engine.VectorCut != 0}
	for b = b[2:]; len(b) > 0; {
		s, rest, ended := bytes.Cut(b, []byte{0})
		if !ended {
			end.Fault = true // each comes with a NUL, also one that is cut
		}
		dst, b = append(dst, s), rest
	}
	return dst, end
}
