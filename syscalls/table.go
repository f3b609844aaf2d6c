package syscalls

import (
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Signature is a function's name and arguments.
type Signature struct {
	Name   string // "openat"
	Params []Param
}

// Param is one argument: its name and its C type, as "const char *".
type Param struct{ Name, Type string }

// Definition is a system call as a guest's kernel describes it. NR is its
// number, or -1 for a kernel function that is no system call.
type Definition struct {
	NR int
	Signature
}

// Bounds on what a guest may put into a table.
const (
	maxNumber   = 1 << 12
	maxNameLen  = 64
	maxTypeLen  = 128
	maxArgs     = 6
	maxEntities = 1 << 14
)

// Table holds the signatures of one guest's calls. It does not change once
// made and may be used concurrently.
type Table struct {
	arch   arch.Arch
	byNR   []*entry // nil: unknown
	byName map[string]*entry
}

// entry is a call with the way to show each argument.
type entry struct {
	name   string
	params []Param
	kinds  []kind
	ret    retKind
}

// NewTable makes a table for calls by one interface. Definitions come from the
// guest and win over the generated signatures, which fill in the rest.
// Definitions that can't be right are left out: more than six arguments, names
// or types with strange characters, numbers that no kernel has.
func NewTable(a arch.Arch, defs []Definition) *Table {
	t := Fallback(a)
	for _, d := range defs {
		if len(t.byName) >= maxEntities {
			break
		}
		t.define(d)
	}
	return t
}

// Fallback makes a table of the generated signatures alone.
func Fallback(a arch.Arch) *Table {
	t := &Table{arch: a, byName: map[string]*entry{}}
	sigs := map[string][]Param{}
	for _, list := range [][]Signature{commonSignatures[:], ownSignatures(a)} {
		for _, s := range list {
			sigs[s.Name] = s.Params
		}
	}
	for nr, name := range numbers(a) {
		if name == "" {
			continue
		}
		if params, ok := sigs[name]; ok {
			t.set(nr, newEntry(a, name, params))
		}
	}
	return t
}

func ownSignatures(a arch.Arch) []Signature {
	switch a {
	case arch.AMD64:
		return signaturesAMD64[:]
	case arch.I386:
		return signatures386[:]
	case arch.ARM64:
		return signaturesARM64[:]
	}
	return nil
}

func (t *Table) set(nr int, e *entry) {
	for nr >= len(t.byNR) {
		t.byNR = append(t.byNR, nil)
	}
	t.byNR[nr], t.byName[e.name] = e, e
}

func (t *Table) define(d Definition) {
	name := strings.TrimPrefix(d.Name, "sys_")
	if !plausible(d.Signature) || d.NR < -1 || d.NR >= maxNumber {
		return
	}
	if d.NR < 0 {
		t.byName[name] = newEntry(t.arch, name, slices.Clone(d.Params))
		return
	}
	if own, ok := Name(t.arch, d.NR); ok {
		name = own // the guest says newstat where the call is stat
	}
	t.set(d.NR, newEntry(t.arch, name, slices.Clone(d.Params)))
}

func plausible(s Signature) bool {
	if len(s.Params) > maxArgs || !identifier(s.Name) {
		return false
	}
	for _, p := range s.Params {
		if !identifier(p.Name) || len(p.Type) > maxTypeLen || strings.ContainsFunc(p.Type, func(r rune) bool {
			return !strings.ContainsRune(" *_", r) && !alphanumeric(r)
		}) {
			return false
		}
	}
	return true
}

func identifier(s string) bool {
	return s != "" && len(s) <= maxNameLen &&
		!strings.ContainsFunc(s, func(r rune) bool { return r != '_' && !alphanumeric(r) })
}

func alphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// Arch returns the interface that the table is for.
func (t *Table) Arch() arch.Arch { return t.arch }

// Names returns the names of the system calls in the table, and those that
// only the generated list of numbers has, sorted.
func (t *Table) Names() []string {
	out := Names(t.arch)
	for nr, e := range t.byNR {
		if _, ok := Name(t.arch, nr); e != nil && !ok {
			out = append(out, e.name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Signature returns a call's arguments by its name without prefix, and false
// if they are unknown. The result must not be changed.
func (t *Table) Signature(name string) (Signature, bool) {
	e, ok := t.byName[name]
	if !ok {
		return Signature{}, false
	}
	return Signature{e.name, e.params}, true
}

// lookup returns what is known of a call, never nil, and notes it in the call.
func (t *Table) lookup(c *Call) *entry {
	if c.of != t {
		c.of, c.entry = t, t.find(c)
	}
	return c.entry
}

func (t *Table) find(c *Call) *entry {
	if c.Name != "" {
		if e := t.byName[c.Name]; e != nil {
			return e
		}
	} else if c.NR >= 0 && c.NR < len(t.byNR) && t.byNR[c.NR] != nil {
		return t.byNR[c.NR]
	}
	return unknownCall
}

// unknownCall shows six raw arguments, as strace does for numbers it does not
// know.
var unknownCall = &entry{
	params: []Param{
		{"arg0", "unsigned long"}, {"arg1", "unsigned long"}, {"arg2", "unsigned long"},
		{"arg3", "unsigned long"}, {"arg4", "unsigned long"}, {"arg5", "unsigned long"},
	},
	kinds: make([]kind, maxArgs), // kindHex
}

func newEntry(a arch.Arch, name string, params []Param) *entry {
	e := &entry{name: name, params: params, ret: resultKind(a, name)}
	words := specFor(a, name)
	for i, p := range params {
		k, ok := kind{}, false
		if i < len(words) {
			k, ok = parseKind(words[i])
		}
		if !ok || int(k.ref) >= len(params) { // a guest may state fewer arguments
			k = kindOf(p)
		}
		e.kinds = append(e.kinds, k)
	}
	return e
}
