package windows

import (
	"fmt"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Limits of the registry.
const (
	maxKeys    = 512 // levels
	maxKeyName = 512 // bytes
)

// keyRoot is the name of the key that all others are below.
const keyRoot = "REGISTRY"

// keyPath returns the path of an open key: \REGISTRY\MACHINE\SOFTWARE; "" when
// what lies there makes no path from the root.
func (s *system) keyPath(as *vitrine.AddressSpace, key arch.GVA) string {
	l := &s.l.key
	if !l.block.ok || !l.parent.ok || !l.names.ok || !l.text.ok || !l.length.ok {
		return ""
	}
	block, err := s.word(as, key+l.block.off)
	if err != nil {
		return text("", err)
	}
	shift, known := s.keyShift(as, block)
	path, err := s.keysAbove(as, block, shift)
	switch {
	case pagedOut(err) && known:
		return osi.PagedOut + path
	case pagedOut(err):
		return osi.PagedOut
	case err != nil || !known:
		return ""
	}
	return path
}

// keyShift returns how far from where the layout has them a key control block
// keeps its parent and its name: kernels that claim a build, checked ones among
// them, have words of their own before these. It is learnt of the first key by
// which the root can be reached; before that, known is false.
func (s *system) keyShift(as *vitrine.AddressSpace, block arch.GVA) (shift arch.GVA, known bool) {
	s.mu.Lock()
	learnt := s.keys
	s.mu.Unlock()
	if learnt != nil {
		return *learnt, true
	}
	for _, shift := range []arch.GVA{0, s.w, -s.w, 2 * s.w, -(2 * s.w)} {
		path, err := s.keysAbove(as, block, shift)
		if root, _, _ := strings.Cut(strings.TrimPrefix(path, `\`), `\`); err != nil || !strings.EqualFold(root, keyRoot) {
			continue
		}
		s.mu.Lock()
		s.keys = &shift
		s.mu.Unlock()
		return shift, true
	}
	return 0, false
}

// keysAbove returns the path that ends with a key control block; with an error,
// the part of it that was read.
func (s *system) keysAbove(as *vitrine.AddressSpace, block, shift arch.GVA) (string, error) {
	path := ""
	for n := 0; block != 0; n++ {
		if !s.nt.KernelAddress(block) || n == maxKeys {
			return path, fmt.Errorf("control block of a key at %v: %w", block, osi.ErrCorrupt)
		}
		name, err := s.keyName(as, block+s.l.key.names.off+shift)
		if err != nil {
			return path, err
		}
		path = `\` + name + path
		if block, err = s.word(as, block+s.l.key.parent.off+shift); err != nil {
			return path, err
		}
	}
	return path, nil
}

// keyName reads the name of a key by the pointer to it: of one byte a character
// when its lowest bit says so, else UTF-16.
func (s *system) keyName(as *vitrine.AddressSpace, pointer arch.GVA) (string, error) {
	l := &s.l.key
	at, err := s.word(as, pointer)
	if err == nil && !s.nt.KernelAddress(at) {
		err = fmt.Errorf("name of a key at %v: %w", at, osi.ErrCorrupt)
	}
	if err != nil {
		return "", err
	}
	kind, err := as.ReadUint8(at)
	if err != nil {
		return "", err
	}
	length, err := as.ReadUint16(at + l.length.off)
	if err != nil {
		return "", err
	}
	if length > maxKeyName {
		return "", fmt.Errorf("name of a key at %v of %d bytes: %w", at, length, osi.ErrCorrupt)
	}
	if kind&1 == 0 {
		return wide(as, at+l.text.off, int(length))
	}
	b := make([]byte, length)
	if _, err := as.Read(b, at+l.text.off); err != nil {
		return "", err
	}
	out := make([]rune, len(b))
	for i, c := range b {
		out[i] = rune(c)
	}
	return string(out), nil
}
