package xz

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// packed is "hello, hello, hello\n" as xz 5.4 packs it (xz --check=crc64).
var packed = mustHex("fd377a585a000004e6d6b4460200210116000000742fe5a3e00013000e5d00341949ee8def8c8731f52f640000000000b0488559d7a9ae4b00012a147ead37551fb6f37d010000000004595a")

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func TestUnpack(t *testing.T) {
	if got, err := Unpack(packed, 1<<20); err != nil || string(got) != "hello, hello, hello\n" {
		t.Errorf("Unpack = %q, %v", got, err)
	}
	if got, err := Unpack(packed, 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Unpack of more than allowed = %q, %v", got, err)
	}
}

// Against the original, where there is one: text, noise, and long runs, with
// every check and several settings.
func TestUnpackWhatXZPacks(t *testing.T) {
	tool, err := exec.LookPath("xz")
	if err != nil {
		t.Skip("skipped: no xz on this machine; the packed constant is unpacked all the same")
	}
	noise := make([]byte, 300_000)
	for i, v := 0, uint32(1); i < len(noise); i++ {
		v = v*1664525 + 1013904223
		noise[i] = byte(v >> 24)
	}
	for name, plain := range map[string][]byte{
		"empty": nil, "text": []byte(strings.Repeat(`{"name": "_EPROCESS", "offset": 1088},`, 20_000)), "noise": noise,
		"run": make([]byte, 3<<20), "mixed": append(append([]byte(strings.Repeat("abcd", 50_000)), noise...), make([]byte, 100_000)...),
	} {
		for _, args := range [][]string{{"--check=none"}, {"--check=crc32"}, {"--check=sha256", "-9e"}, {"--lzma2=preset=1,lc=0,lp=3,pb=0"}, {"--block-size=65536"}} {
			c := exec.Command(tool, append(args, "-c")...)
			c.Stdin = bytes.NewReader(plain)
			b, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Unpack(b, 8<<20); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s, xz %v: %d bytes, %v", name, args, len(got), err)
			}
		}
	}
}

// Every damage is noticed: all bytes but the index behind the blocks are
// covered by a check.
func TestDamage(t *testing.T) {
	for i := range packed[:len(packed)-32] {
		b := bytes.Clone(packed)
		b[i] ^= 0x10
		if got, err := Unpack(b, 1<<20); err == nil && string(got) != "hello, hello, hello\n" {
			t.Errorf("byte %d changed: %q", i, got)
		}
		if got, err := Unpack(packed[:i], 1<<20); err == nil {
			t.Errorf("cut off at %d: %q", i, got)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(packed)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := Unpack(b, 1<<20); err != nil && got != nil || len(got) > 1<<20 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// FuzzLZMA2 goes past the checks of the container.
func FuzzLZMA2(f *testing.F) {
	f.Add(packed[24:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, used, err := lzma2(b, nil, 1<<20); err != nil && got != nil || used > len(b) {
			t.Errorf("%d bytes of %d used, %v", used, len(b), err)
		}
	})
}
