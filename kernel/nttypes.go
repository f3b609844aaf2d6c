package kernel

import (
	"fmt"
	"strings"
	"sync"

	"github.com/vitrine-vmi/vitrine/kernel/internal/layouts"
)

// ntTypes is what is known of an NT kernel's structures. Most trusted first:
// the exact symbols, what was inferred from the kernel itself, the layout of
// its build or of the nearest one.
type ntTypes struct {
	exact   exactTypes // nil without symbols of exactly this kernel
	exactBy string
	layout  *layouts.Layout // nil when none is to be used
	by      string          // provenance of layout

	mu sync.RWMutex
	// Protected by mu; written while the kernel is being described only.
	found   map[[2]string]ntField // by inference, or checked
	refused map[[2]string]string  // why a member of the layout is not believed
}

// exactTypes are the types of a symbol file.
type exactTypes interface {
	Size(name string) (uint64, bool)
	// Member resolves one member, without a path; typeName is that of the
	// structure it holds, if it holds one.
	Member(structName, member string) (offset, size uint64, bit, bits uint32, typeName string, ok bool)
	Enum(enum, name string) (int64, bool)
}

// ntField is a member and how it is known.
type ntField struct {
	Field
	by string
}

func newNTTypes(l *layouts.Layout, by string) *ntTypes {
	return &ntTypes{layout: l, by: by, found: map[[2]string]ntField{}, refused: map[[2]string]string{}}
}

// NTLayout returns the types of a build of NT, from the layouts that the
// program carries: of the same build, or the nearest older one. It is for
// tools and tests; Describe chooses and checks by itself.
func NTLayout(build int, x64 bool) (t *Types, name string, exact bool) {
	l, exact := layouts.Find(build, -1, x64)
	t = newTypes(nil)
	t.nt = newNTTypes(l, "layout of "+l.String())
	return t, l.String(), exact
}

// embedded names the structures that members of others are. The layouts do not
// tell the types of members.
var embedded = map[string]string{
	"_EPROCESS.Pcb":                        "_KPROCESS",
	"_EPROCESS.SeAuditProcessCreationInfo": "_SE_AUDIT_PROCESS_CREATION_INFO",
	"_EPROCESS.Token":                      "_EX_FAST_REF",
	"_ETHREAD.Tcb":                         "_KTHREAD",
	"_ETHREAD.Cid":                         "_CLIENT_ID",
	"_KPROCESS.Header":                     "_DISPATCHER_HEADER",
	"_KTHREAD.Header":                      "_DISPATCHER_HEADER",
	"_KTHREAD.ApcState":                    "_KAPC_STATE",
	"_KPCR.PrcbData":                       "_KPRCB",
	"_KPCR.Prcb":                           "_KPRCB",
	"_KPCR.NtTib":                          "_NT_TIB",
	"_TEB.ClientId":                        "_CLIENT_ID",
	"_TEB.NtTib":                           "_NT_TIB",
	"_MMVAD.Core":                          "_MMVAD_SHORT",
	"_MMVAD_SHORT.VadNode":                 "_RTL_BALANCED_NODE",
	"_RTL_USER_PROCESS_PARAMETERS.CurrentDirectory": "_CURDIR",
	"_CURDIR.DosPath":               "_UNICODE_STRING",
	"_OBJECT_HEADER_NAME_INFO.Name": "_UNICODE_STRING",
	"_OBJECT_TYPE.Name":             "_UNICODE_STRING",
}

func (t *ntTypes) size(name string) (uint64, error) {
	if t.exact != nil {
		if n, ok := t.exact.Size(name); ok {
			return n, nil
		}
	}
	if t.layout != nil {
		if s := t.layout.Structs[name]; s != nil {
			return uint64(s.Size), nil
		}
	}
	return 0, fmt.Errorf("find type %s: %w", name, ErrNoType)
}

// field resolves a path such as "Cid.UniqueThread".
func (t *ntTypes) field(structName, path string) (ntField, error) {
	if f, ok := t.inferred(structName, path); ok {
		return f, nil
	}
	first, rest, more := strings.Cut(path, ".")
	f, typeName, err := t.member(structName, first)
	if err != nil || !more {
		return f, err
	}
	if typeName == "" {
		typeName = embedded[structName+"."+first]
	}
	if typeName == "" {
		return ntField{}, fmt.Errorf("find %s.%s: %w: what %s is made of is not known", structName, path, ErrNoType, first)
	}
	in, err := t.field(typeName, rest)
	if err != nil {
		return ntField{}, err
	}
	in.Offset += f.Offset
	return in, nil
}

func (t *ntTypes) inferred(structName, path string) (ntField, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	f, ok := t.found[[2]string{structName, path}]
	return f, ok
}

func (t *ntTypes) member(structName, name string) (f ntField, typeName string, err error) {
	if f, ok := t.inferred(structName, name); ok {
		return f, "", nil
	}
	if t.exact != nil {
		if off, size, bit, bits, typeName, ok := t.exact.Member(structName, name); ok {
			return ntField{Field{Offset: off, Size: size, BitOffset: bit, BitSize: bits, TypeName: typeName}, t.exactBy}, typeName, nil
		}
		if _, ok := t.exact.Size(structName); ok {
			return ntField{}, "", fmt.Errorf("find %s.%s: %w", structName, name, ErrNoType)
		}
	}
	t.mu.RLock()
	why, bad := t.refused[[2]string{structName, name}]
	t.mu.RUnlock()
	if bad {
		return ntField{}, "", fmt.Errorf("find %s.%s: %w: %s", structName, name, ErrNoType, why)
	}
	return t.fromLayout(structName, name)
}

func (t *ntTypes) fromLayout(structName, name string) (ntField, string, error) {
	if t.layout != nil {
		if s := t.layout.Structs[structName]; s != nil {
			if m, ok := s.Members[name]; ok {
				return ntField{Field{Offset: uint64(m.Offset), BitSize: uint32(m.Bits)}, t.by}, "", nil
			}
		}
	}
	return ntField{}, "", fmt.Errorf("find %s.%s: %w", structName, name, ErrNoType)
}

// learn makes a member known by inference, or tells that what was known has
// been checked.
func (t *ntTypes) learn(structName, path string, f ntField) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.found[[2]string{structName, path}] = f
	delete(t.refused, [2]string{structName, path})
}

// refuse takes a member away.
func (t *ntTypes) refuse(structName, path, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused[[2]string{structName, path}] = why
	delete(t.found, [2]string{structName, path})
}
