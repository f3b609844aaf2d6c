package implant

import (
	"encoding/binary"
	"testing"
)

func TestInterrupted(t *testing.T) {
	c := testCode(3)
	s := &stacks{c: c}
	const sp = 0xffffc90000010000
	back := uint64(c.stub(1)) - stubEntry + stubBack
	inner := uint64(c.stub(1)) + 14
	frame := func(ip, cs, flags, to uint64) []byte {
		var p []byte
		for _, v := range []uint64{7, ip, cs, flags, to, 0x18, inner, back} {
			p = binary.LittleEndian.AppendUint64(p, v)
		}
		return p
	}
	for _, tt := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"in the implant", frame(inner, 0x10, 0x246, sp+0x38), true},
		{"in a thunk that returns to it", frame(0xffffffff81000000, 0x10, 0x246, sp+0x30), true},
		{"in the kernel, about to return to a stub's end", frame(0xffffffff81000000, 0x10, 0x246, sp+0x38), false},
		{"user code segment", frame(inner, 0x33, 0x246, sp+0x38), false},
		{"a stack pointer elsewhere", frame(inner, 0x10, 0x246, sp+0x100), false},
		{"flags that cannot be", frame(inner, 0x10, 0x244, sp+0x38), false},
		{"cut short", frame(inner, 0x10, 0x246, sp+0x38)[:40], false},
	} {
		if got := s.insideAt(tt.p, 8, sp); got != tt.want {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
	if c.inner(back) || !c.inner(inner) || c.inner(0x1000) {
		t.Error("inner is wrong")
	}
}
