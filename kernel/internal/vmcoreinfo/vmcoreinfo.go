// Package vmcoreinfo reads the VMCOREINFO note, the text in which a Linux
// kernel describes itself to crash-dump tools.
//
// It works on bytes only and believes nothing: whoever finds a note checks what
// it says against the guest's page tables. Format: the kernel's
// Documentation/admin-guide/kdump/vmcoreinfo.rst. Everything here may be called
// concurrently.
package vmcoreinfo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxSize is the most bytes of a note that are read: a page on x86-64, and
// larger on machines with larger pages.
const MaxSize = 64 << 10

// ErrFormat is returned when bytes are not a VMCOREINFO text.
var ErrFormat = errors.New("not a vmcoreinfo text")

// Info is the content of a note. Maps have no entry for what the note lacks.
type Info struct {
	Text         []byte            // all of it, as the kernel wrote it
	Release      string            // OSRELEASE, as uname -r prints it
	BuildID      string            // BUILD-ID in lower-case hexadecimal, since 5.9; "" without
	KernelOffset uint64            // KERNELOFFSET: the distance that KASLR moved the kernel, bytes
	HasOffset    bool              // the note has a KERNELOFFSET
	PAE          bool              // CONFIG_X86_PAE: a 32-bit x86 kernel's page tables have three levels
	Symbols      map[string]uint64 // SYMBOL(name): address, after KASLR
	Numbers      map[string]int64  // NUMBER(name)
	Offsets      map[string]int64  // OFFSET(struct.member), bytes
}

var magic = []byte("OSRELEASE=")

// Places where the text may start within a page: the kernel keeps it on a page
// of its own (vmcoreinfo_data) and a copy as an ELF note behind a header and
// the padded name "VMCOREINFO" (vmcoreinfo_note).
var places = [...]int{0, 24}

// InPage returns the text that starts in the page p, nil when there is none.
// The text is not copied, and ends at its NUL or at the end of p.
func InPage(p []byte) []byte {
	for _, at := range places {
		if len(p) < at+len(magic) || p[at] != magic[0] || !bytes.Equal(p[at:at+len(magic)], magic) {
			continue
		}
		if at != 0 && !noteHeader(p[:at]) {
			continue
		}
		text := p[at:]
		if i := bytes.IndexByte(text, 0); i >= 0 {
			text = text[:i]
		}
		return text
	}
	return nil
}

// noteHeader reports whether p is an ELF note header of the name VMCOREINFO.
func noteHeader(p []byte) bool {
	return binary.LittleEndian.Uint32(p) == 11 && bytes.Equal(p[12:23], []byte("VMCOREINFO\x00"))
}

// Parse reads a text. Lines that it does not know it leaves out. It returns
// ErrFormat when there is no release in it.
func Parse(text []byte) (*Info, error) {
	text = text[:min(len(text), MaxSize)]
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	in := &Info{Text: bytes.Clone(text), Symbols: map[string]uint64{}, Numbers: map[string]int64{}, Offsets: map[string]int64{}}
	for line := range bytes.Lines(text) {
		key, value, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("="))
		if ok {
			in.set(string(key), string(value))
		}
	}
	if !validRelease(in.Release) {
		return nil, fmt.Errorf("parse vmcoreinfo: release %.80q: %w", in.Release, ErrFormat)
	}
	return in, nil
}

func (in *Info) set(key, value string) {
	switch key {
	case "OSRELEASE":
		in.Release = value
		return
	case "BUILD-ID":
		if validBuildID(value) {
			in.BuildID = value
		}
		return
	case "CONFIG_X86_PAE":
		in.PAE = value == "y"
		return
	case "KERNELOFFSET":
		v, err := strconv.ParseUint(value, 16, 64)
		in.KernelOffset, in.HasOffset = v, err == nil
		return
	}
	kind, name, ok := member(key)
	if !ok {
		return
	}
	switch kind {
	case "SYMBOL":
		if v, err := strconv.ParseUint(value, 16, 64); err == nil {
			in.Symbols[name] = v
		}
	case "NUMBER":
		if v, err := number(value); err == nil {
			in.Numbers[name] = v
		}
	case "OFFSET":
		if v, err := number(value); err == nil {
			in.Offsets[name] = v
		}
	}
}

// member splits "KIND(name)".
func member(key string) (kind, name string, ok bool) {
	open := strings.IndexByte(key, '(')
	if open <= 0 || key[len(key)-1] != ')' {
		return "", "", false
	}
	return key[:open], key[open+1 : len(key)-1], true
}

// number reads a decimal number, or a hexadecimal one behind 0x, as the kernel
// writes addresses since 6.10.
func number(s string) (int64, error) {
	v, err := strconv.ParseInt(s, 0, 64)
	if err == nil {
		return v, nil
	}
	u, err := strconv.ParseUint(s, 0, 64)
	return int64(u), err
}

// validRelease reports whether s can be what uname -r prints: __NEW_UTS_LEN is 64.
func validRelease(s string) bool {
	if len(s) == 0 || len(s) > 64 || s[0] < '0' || s[0] > '9' {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// validBuildID reports whether s is the hexadecimal form of a build id: the
// linker makes 8, 16 or 20 bytes, and the kernel has room for 20.
func validBuildID(s string) bool {
	if len(s) < 16 || len(s) > 40 || len(s)%2 != 0 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
