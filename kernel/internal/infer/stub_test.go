package infer

import "testing"

func TestStub(t *testing.T) {
	for _, c := range []struct {
		name, code string
		x64        bool
		want       uint32
		ok         bool
	}{
		{"ntdll x64", "\x4c\x8b\xd1\xb8\x55\x00\x00\x00\xf6\x04\x25\x08\x03\xfe\x7f\x01\x75\x03\x0f\x05\xc3", true, 0x55, true},
		{"Zw x64", "\x48\x8b\xc4\xfa\x48\x83\xec\x10\x50\x9c\x6a\x10\x48\x8d\x05\x01\x02\x03\x00\x50\xb8\x0f\x00\x00\x00\xe9\x00\x00\x00\x00", true, 0xf, true},
		{"ntdll x86", "\xb8\x42\x00\x00\x00\xba\x00\x03\xfe\x7f\xff\x12\xc2\x2c\x00", false, 0x42, true},
		{"Zw x86", "\xb8\x19\x00\x00\x00\x8d\x54\x24\x04\x9c\x6a\x08\xe8\x00\x00\x00\x00\xc2\x04\x00", false, 0x19, true},
		{"hooked", "\xe9\x00\x10\x00\x00\xb8\x42\x00\x00\x00", true, 0, false},
		{"a function", "\x48\x89\x5c\x24\x08\xe8\x00\x00\x00\x00\xb8\x01\x00\x00\x00", true, 0, false},
		{"cut", "\x4c\x8b\xd1\xb8\x55", true, 0, false},
		{"nothing", "", false, 0, false},
	} {
		if got, ok := Stub([]byte(c.code), c.x64); got != c.want || ok != c.ok {
			t.Errorf("%s: %#x, %v, want %#x, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

func FuzzStub(f *testing.F) {
	f.Add([]byte("\x4c\x8b\xd1\xb8\x55\x00\x00\x00\x0f\x05\xc3"), true)
	f.Add([]byte("\xb8\x42\x00\x00\x00\xba\x00\x03\xfe\x7f\xff\x12"), false)
	f.Fuzz(func(t *testing.T, code []byte, x64 bool) {
		if n, ok := Stub(code, x64); !ok && n != 0 {
			t.Errorf("a number, %#x, of what is no stub", n)
		}
	})
}
