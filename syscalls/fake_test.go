package syscalls

import (
	"bytes"
	"encoding/binary"

	"github.com/vitrine-vmi/vitrine/arch"
)

// fakeMemory has the pages that were put there; all others fault.
type fakeMemory map[arch.GVA][]byte

func (m fakeMemory) Read(p []byte, a arch.GVA) (int, error) {
	done := 0
	for done < len(p) {
		at := a + arch.GVA(done)
		page, ok := m[at.Page()]
		if !ok {
			return done, &arch.FaultError{Addr: at}
		}
		done += copy(p[done:], page[at-at.Page():])
	}
	return done, nil
}

// put writes at a and makes the pages if need be.
func (m fakeMemory) put(a arch.GVA, b []byte) {
	for len(b) > 0 {
		if m[a.Page()] == nil {
			m[a.Page()] = make([]byte, arch.PageSize)
		}
		n := copy(m[a.Page()][a-a.Page():], b)
		b, a = b[n:], a+arch.GVA(n)
	}
}

func (m fakeMemory) str(a arch.GVA, s string) { m.put(a, append([]byte(s), 0)) }

func (m fakeMemory) words(a arch.GVA, w ...uint64) {
	for i, v := range w {
		m.put(a+arch.GVA(8*i), pack(v))
	}
}

// pack lays integers one behind the other, each in its size.
func pack(w ...any) []byte {
	var b bytes.Buffer
	for _, v := range w {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// fakeFiles resolves descriptors.
type fakeFiles map[int]string

func (f fakeFiles) Path(fd int) (string, bool) {
	s, ok := f[fd]
	return s, ok
}

// line is a whole call as a trace shows it.
func line(d *Decoder, c *Call, m Memory, r Resolver) string {
	args := d.Enter(nil, c, m, r)
	d.Return(args, c, m, r)
	var b bytes.Buffer
	b.WriteString(d.Name(c) + "(")
	for i, a := range args {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.Text)
	}
	b.WriteString(") = " + d.Result(c, r).Text)
	return b.String()
}
