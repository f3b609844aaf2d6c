package windows

import (
	"fmt"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Limits of the names of objects.
const (
	maxDirectories = 32
	maxRelated     = 8 // files that are opened relative to others
)

// kindOf returns the name of the type of an object, by its header.
func (s *system) kindOf(as *vitrine.AddressSpace, header arch.GVA) (string, error) {
	var at arch.GVA
	var err error
	switch l := &s.l.header; {
	case l.index.ok && s.nt.Objects.Table != 0:
		var b byte
		if b, err = as.ReadUint8(header + l.index.off); err == nil {
			at, err = s.word(as, s.nt.Objects.Table+arch.GVA(s.nt.Objects.Index(header, b))*s.w)
		}
	case l.kind.ok:
		at, err = s.word(as, header+l.kind.off)
	default:
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return s.kindName(as, at)
}

// kindName returns the name of an OBJECT_TYPE.
func (s *system) kindName(as *vitrine.AddressSpace, at arch.GVA) (string, error) {
	s.mu.Lock()
	name, known := s.kinds[at]
	s.mu.Unlock()
	if known {
		return name, nil
	}
	if !s.nt.KernelAddress(at) || !s.l.kind.name.ok {
		return "", fmt.Errorf("object type at %v: %w", at, osi.ErrCorrupt)
	}
	name, err := s.str(as, at+s.l.kind.name.off)
	if err != nil || name == "" || len(name) > 64 {
		return "", fmt.Errorf("object type at %v has the name %.64q: %w", at, name, osi.ErrCorrupt)
	}
	s.mu.Lock()
	if len(s.kinds) < 256 {
		s.kinds[at] = name
	}
	s.mu.Unlock()
	return name, nil
}

// Bits of OBJECT_HEADER.InfoMask, since 7: which structures lie before the
// header, the first one nearest to it. OBJECT_HEADER_CREATOR_INFO has 16 bytes
// on x86 and 32 on x64.
const (
	infoCreator = 1 << 0
	infoName    = 1 << 1
)

// nameInfo returns where the OBJECT_HEADER_NAME_INFO of an object lies, 0 when
// it has none.
func (s *system) nameInfo(as *vitrine.AddressSpace, header arch.GVA) arch.GVA {
	if s.l.header.info.ok {
		mask, err := as.ReadUint8(header + s.l.header.info.off)
		if err != nil || mask&infoName == 0 {
			return 0
		}
		at := header - 4*s.w // the size of the structure
		if mask&infoCreator != 0 {
			at -= 4 * s.w
		}
		return at
	}
	if !s.l.header.nameOffset.ok {
		return 0
	}
	off, err := as.ReadUint8(header + s.l.header.nameOffset.off)
	if err != nil || off == 0 {
		return 0
	}
	return header - arch.GVA(off)
}

// objectName returns the name of an object with its directories before it:
// \BaseNamedObjects\Name.
func (s *system) objectName(as *vitrine.AddressSpace, body arch.GVA) (string, error) {
	var parts []string
	for range maxDirectories {
		info := s.nameInfo(as, body-s.l.header.body.off)
		if info == 0 || !s.l.names.name.ok {
			break
		}
		name, err := s.str(as, info+s.l.names.name.off)
		if err != nil {
			return text("", err), err
		}
		if name == "" {
			break
		}
		parts = append([]string{name}, parts...)
		if body, err = s.word(as, info+s.l.names.directory.off); err != nil || !s.nt.KernelAddress(body) {
			break
		}
	}
	if len(parts) > 1 && parts[0] == `\` {
		parts = parts[1:]
	} else if len(parts) < 2 {
		return strings.Join(parts, `\`), nil // its directories are not known
	}
	return `\` + strings.Join(parts, `\`), nil
}

// filePath returns the path of a FILE_OBJECT from its device on:
// \Device\HarddiskVolume1\Windows\notepad.exe.
func (s *system) filePath(as *vitrine.AddressSpace, file arch.GVA) string {
	path := ""
	for at, n := file, 0; n < maxRelated && s.l.file.name.ok; n++ {
		name, err := s.str(as, at+s.l.file.name.off)
		if err != nil {
			return text("", err)
		}
		path = joinPath(name, path)
		if strings.HasPrefix(name, `\`) || !s.l.file.related.ok {
			break
		}
		if at, err = s.word(as, at+s.l.file.related.off); err != nil || !s.nt.KernelAddress(at) {
			break
		}
	}
	return s.deviceOf(as, file) + path
}

func joinPath(parent, name string) string {
	if parent == "" || name == "" || strings.HasSuffix(parent, `\`) || strings.HasPrefix(name, `\`) {
		return parent + name
	}
	return parent + `\` + name
}

// deviceOf returns the name of a file's device: \Device\NamedPipe.
func (s *system) deviceOf(as *vitrine.AddressSpace, file arch.GVA) string {
	if !s.l.file.device.ok {
		return ""
	}
	device, err := s.word(as, file+s.l.file.device.off)
	if err != nil || !s.nt.KernelAddress(device) {
		return ""
	}
	name, _ := s.objectName(as, device)
	if name != "" && !strings.HasPrefix(name, `\`) {
		name = `\Device\` + name
	}
	return name
}

// describe returns the name that a handle's object is shown by.
func (s *system) describe(as *vitrine.AddressSpace, kind string, body arch.GVA) string {
	switch kind {
	case "File":
		return s.filePath(as, body)
	case "Key":
		return s.keyPath(as, body)
	case "Process":
		p, err := s.readProcess(as, body)
		if err != nil {
			return ""
		}
		return fmt.Sprintf("%s(%d)", s.name(&p), p.pid)
	case "Thread":
		t, err := s.threadAt(as, body)
		if err != nil {
			return ""
		}
		return fmt.Sprintf("%s(%d): %d", t.Name, t.PID, t.TID)
	}
	name, err := s.objectName(as, body)
	return text(name, err)
}
