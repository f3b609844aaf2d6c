package infer

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The first is the code of XP SP3; the others are what compilers make of the
// same accessors, by hand from the Intel manual.
var accessors = []struct {
	name, code string
	x64        bool
	want       Value
}{
	{"XP PsGetProcessId", "8bff 55 8bec 8b4508 8b8084000000 5d c20400", false, Value{Base: Param, Loads: []Load{{0x84, 4}}}},
	{"name by add", "8bff 55 8bec 8b4508 0574010000 5d c20400", false, Value{Base: Param, Add: 0x174}},
	{"frame given back early", "55 89e5 8b4508 5d 8b8094000000 c20400", false, Value{Base: Param, Loads: []Load{{0x94, 4}}}},
	{"no frame", "8b442404 8b80b4000000 c20400", false, Value{Base: Param, Loads: []Load{{0xb4, 4}}}},
	{"room and leave", "55 89e5 83ec08 8b4508 8b4018 c9 c20400", false, Value{Base: Param, Loads: []Load{{0x18, 4}}}},
	{"64 bits in two halves", "8b442404 8b90a4000000 8b80a0000000 c20400", false, Value{Base: Param, Loads: []Load{{0xa0, 4}}}},
	{"current thread's process", "64a124010000 8b8050010000 c3", false, Value{Base: PCR, Loads: []Load{{0x124, 4}, {0x150, 4}}}},
	{"x64 load", "488b8140040000 c3", true, Value{Base: Param, Loads: []Load{{0x440, 8}}}},
	{"x64 lea", "488d81a8050000 c3", true, Value{Base: Param, Add: 0x5a8}},
	{"x64 endbr64", "f30f1efa 8b81d4070000 c3", true, Value{Base: Param, Loads: []Load{{0x7d4, 4}}}},
	{"x64 current", "65488b042588010000 488b8020020000 c3", true, Value{Base: PCR, Loads: []Load{{0x188, 8}, {0x220, 8}}}},
	{"x64 byte", "0fb68132020000 c3", true, Value{Base: Param, Loads: []Load{{0x232, 1}}}},
	{"x64 by way of another register", "4889ca 488b8240040000 c3", true, Value{Base: Param, Loads: []Load{{0x440, 8}}}},
}

func code(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRead(t *testing.T) {
	for _, tt := range accessors {
		got, err := Read(code(t, tt.code), tt.x64)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", tt.name, err, diff)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		code string
		x64  bool
	}{
		"comparison":            {"488b8180050000 4885c0 7403 488b00 c3", true},
		"call":                  {"e800000000 488b8140040000 c3", true},
		"index":                 {"488b84c140040000 c3", true},
		"half of the parameter": {"8b8940040000 89c8 488b4010 c3", true},
		"second parameter":      {"8b442408 8b4010 c20800", false},
		"nothing":               {"c3", true},
		"the parameter itself":  {"8b442404 c20400", false},
		"a number":              {"b801000000 c3", true},
		"unbalanced":            {"5d c3", false},
		"no end":                {strings.Repeat("90", 64), true},
		"truncated":             {"488b81", true},
		"empty":                 {"", true},
	} {
		if got, err := Read(code(t, c.code), c.x64); !errors.Is(err, ErrNotPlain) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, a := range accessors {
		f.Add(code(f, a.code), a.x64)
	}
	f.Fuzz(func(t *testing.T, b []byte, x64 bool) {
		v, err := Read(b, x64)
		if (err == nil) == (v.Base == None) || len(v.Loads) > maxSteps {
			t.Errorf("Read = %+v, %v", v, err)
		}
	})
}
