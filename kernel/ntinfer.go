package kernel

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/infer"
)

// eprocessSize is how much of an EPROCESS is looked at: the largest known has
// 0xb80 bytes.
const eprocessSize = 0xe00

// maxWitnesses bounds how many processes members are checked on.
const maxWitnesses = 8

// witness is a process other than System, with memory of its own: some members
// of System are empty.
type witness struct {
	at  arch.GVA
	pid uint64
	raw []byte // copy of the EPROCESS
}

// findSystem finds the process System and the kernel's own page table.
func (b *ntBuilder) findSystem(ctx context.Context) error {
	at, err := b.variable("PsInitialSystemProcess")
	if err != nil {
		return fmt.Errorf("describe guest: %w: NT %s at %v: PsInitialSystemProcess: %w", vitrine.ErrNotUnderstood, b.k.release, b.k.base, err)
	}
	if !b.nt.KernelAddress(at) || at%8 != 0 {
		return notBooted(ctx, b.d.g, nil, fmt.Errorf("NT %s found at %v, which has not made the process System yet (PsInitialSystemProcess is %v)", b.k.release, b.k.base, at))
	}
	b.nt.System = at
	b.k.fact("PsInitialSystemProcess", "export")
	b.system = make([]byte, eprocessSize)
	readHoles(b.k.space, b.system, at)
	b.settle(shape{structName: "_KPROCESS", member: "DirectoryTableBase", size: b.k.PointerSize(), step: b.k.PointerSize(), low: 0x10, high: 0x80,
		what: "it maps the kernel where the page table in use does", check: b.isOwnTable})
	b.useOwnTable()
	return nil
}

// isOwnTable reports whether what lies at off in System is a page table that
// maps the kernel.
func (b *ntBuilder) isOwnTable(off uint64) bool {
	root := arch.Root(b.f.root.mode, b.sysWord(off))
	if root == 0 || !inRAM(b.d.g.Regions(), root.Page(), arch.PageSize) {
		return false
	}
	as := b.d.g.AddressSpace(b.f.root.mode, root)
	for _, va := range []arch.GVA{b.k.base, b.nt.System} {
		want, err := b.f.space.Translate(va)
		if got, err2 := as.Translate(va); err != nil || err2 != nil || got != want {
			return false
		}
	}
	return true
}

func (b *ntBuilder) sysWord(off uint64) uint64 { return wordAt(b.system, off, b.k.PointerSize()) }

func wordAt(p []byte, off uint64, size int) uint64 {
	if off+uint64(size) > uint64(len(p)) {
		return 0
	}
	return leUint(p[off : off+uint64(size)])
}

// useOwnTable goes over to the page table of System: the one in use may be a
// program's and end with it, or lack most of the kernel.
func (b *ntBuilder) useOwnTable() {
	f, err := b.types.field("_KPROCESS", "DirectoryTableBase")
	if err != nil {
		b.k.fact("page_table", b.f.root.from)
		b.k.lacks("page table of System: not found; one that was in use serves, which may end with its process")
		return
	}
	own := b.d.g.AddressSpace(b.f.root.mode, arch.Root(b.f.root.mode, b.sysWord(f.Offset)))
	b.k.space = b.nt.SoftPages(own)
	b.k.fact("page_table", "EPROCESS of System")
	b.f.space = b.k.space
}

// shape is a member that can be told by what lies there.
type shape struct {
	structName, member string
	size               int    // bytes of the member
	step               int    // of the search
	low, high          uint64 // where it is searched for
	near               uint64 // when not 0, only about as far from where a layout has it
	what               string // what was checked, in words
	check              func(off uint64) bool
	weak               bool // the check shows what is wrong, not what is right: never search by it
	// anchor is a member of the same structure that was settled before. Where it
	// does not lie where the layout has it, this one is taken to be moved with it.
	anchor string
}

// settle decides where a member lies: where the exact symbols say, else where
// an accessor does, the layout does, or a search finds it, whichever passes the
// check first. A member that no place is believed for is refused.
func (b *ntBuilder) settle(s shape) {
	told, by := b.believe(s)
	if told != nil {
		f := *told
		f.by = by
		b.types.learn(s.structName, s.member, f)
		b.k.fact(s.structName+"."+s.member, by)
		return
	}
	why := fmt.Sprintf("%s does not lie where it was expected (%s), nor near there", s.member, s.what)
	b.types.refuse(s.structName, s.member, why)
	b.k.lacks(fmt.Sprintf("%s.%s: %s", s.structName, s.member, why))
}

func (b *ntBuilder) believe(s shape) (*ntField, string) {
	if off, ok := b.besideAnchor(s); ok && s.check(off) {
		return &ntField{Field: Field{Offset: off, Size: uint64(s.size)}}, fmt.Sprintf("inferred: as far from %s as in the %s; checked: %s", s.anchor, b.types.by, s.what)
	}
	at, err := b.types.field(s.structName, s.member)
	if err == nil && s.check(at.Offset) {
		return &at, at.by + "; checked: " + s.what
	}
	if s.weak {
		return nil, ""
	}
	hit, ok := b.search(s, at.Offset, err == nil)
	if !ok {
		return nil, ""
	}
	f := at
	f.Field = Field{Offset: hit, Size: uint64(s.size)}
	by := "inferred from its shape: " + s.what
	if err == nil {
		by += fmt.Sprintf("; the %s says %#x, where that is not so", at.by, at.Offset)
	}
	return &f, by
}

// besideAnchor returns where a member lies if it was moved with its anchor,
// which lies elsewhere than the layout has it; ok is false when nothing says so.
func (b *ntBuilder) besideAnchor(s shape) (off uint64, ok bool) {
	if s.anchor == "" || b.types.exact != nil {
		return 0, false
	}
	if _, told := b.types.inferred(s.structName, s.member); told {
		return 0, false
	}
	own, _, err := b.types.fromLayout(s.structName, s.member)
	anchor, _, err2 := b.types.fromLayout(s.structName, s.anchor)
	now, known := b.types.inferred(s.structName, s.anchor)
	if err != nil || err2 != nil || !known || now.Offset == anchor.Offset || own.Offset+now.Offset < anchor.Offset {
		return 0, false
	}
	off = own.Offset + now.Offset - anchor.Offset
	return off, off+uint64(s.size) <= eprocessSize
}

// search looks for the one place that passes the check: near where a layout
// has it first, then farther and farther away. Two at the same distance are none.
func (b *ntBuilder) search(s shape, near uint64, known bool) (uint64, bool) {
	end := min(s.high, b.sizeOf(s.structName))
	for radius := uint64(0x20); ; radius *= 2 {
		low, high := s.low, end
		if known {
			low, high = max(low, near-min(near, radius)), min(high, near+radius+1)
		}
		low = (low + uint64(s.step) - 1) / uint64(s.step) * uint64(s.step)
		var hits []uint64
		for off := low; off < high && off+uint64(s.size) <= eprocessSize; off += uint64(s.step) {
			if s.check(off) {
				hits = append(hits, off)
			}
		}
		switch {
		case len(hits) == 1:
			return hits[0], true
		case len(hits) > 1, !known, radius >= eprocessSize, s.near != 0 && radius >= s.near:
			return 0, false
		}
	}
}

// sizeOf returns how far into a structure a member may lie: a bit more than
// its layout has, as others may be larger.
func (b *ntBuilder) sizeOf(structName string) uint64 {
	n, err := b.types.size("_EPROCESS")
	if structName != "_EPROCESS" || err != nil {
		return eprocessSize
	}
	return min(n+0x100, eprocessSize)
}

// accessor is an exported function that returns a member.
type accessor struct {
	export             string
	structName, member string
	address            bool // it returns the member's address
}

// accessors are in the exports of every build that the facts speak of, or of
// some; a member that several tell must be the same by all.
var accessors = []accessor{
	{"PsGetProcessId", "_EPROCESS", "UniqueProcessId", false},
	{"PsGetProcessImageFileName", "_EPROCESS", "ImageFileName", true},
	{"PsGetProcessPeb", "_EPROCESS", "Peb", false},
	{"PsGetProcessInheritedFromUniqueProcessId", "_EPROCESS", "InheritedFromUniqueProcessId", false},
	{"PsGetProcessSectionBaseAddress", "_EPROCESS", "SectionBaseAddress", false},
	{"PsGetProcessCreateTimeQuadPart", "_EPROCESS", "CreateTime", false},
	{"PsGetProcessExitStatus", "_EPROCESS", "ExitStatus", false},
	{"PsGetProcessJob", "_EPROCESS", "Job", false},
	{"PsGetProcessWin32Process", "_EPROCESS", "Win32Process", false},
	{"PsGetProcessDebugPort", "_EPROCESS", "DebugPort", false},
	{"PsGetProcessWow64Process", "_EPROCESS", "Wow64Process", false},
	{"PsGetProcessWow64Process", "_EPROCESS", "WoW64Process", false}, // its name since 10 1511
	{"PsGetThreadId", "_ETHREAD", "Cid.UniqueThread", false},
	{"PsGetThreadProcessId", "_ETHREAD", "Cid.UniqueProcess", false},
	{"PsGetThreadProcess", "_ETHREAD", threadsProcess, false},
	{"IoThreadToProcess", "_ETHREAD", threadsProcess, false},
	{"PsGetThreadTeb", "_KTHREAD", "Teb", false},
	{"PsGetThreadWin32Thread", "_KTHREAD", "Win32Thread", false},
}

// threadsProcess is the member by which a thread leads to its process: of its
// own in ETHREAD until 2003, in KTHREAD since Vista. Both are counted from the
// start of the same structure.
const threadsProcess = "ThreadsProcess"

// readAccessor decodes an exported function.
func (b *ntBuilder) readAccessor(export string) (infer.Value, error) {
	at, err := b.k.address(export)
	if err != nil {
		return infer.Value{}, err
	}
	code := make([]byte, infer.MaxCode)
	n, err := b.k.space.Read(code, at)
	if n == 0 {
		return infer.Value{}, err
	}
	return infer.Read(code[:n], b.nt.X64)
}

// maxMember bounds what an accessor may say: larger than any structure here.
const maxMember = 0x2000

// field returns the member that an accessor's code tells of.
func (a *accessor) field(v infer.Value) (Field, bool) {
	switch {
	case a.address && len(v.Loads) == 0 && v.Add > 0 && v.Add < maxMember:
		return Field{Offset: uint64(v.Add)}, true
	case !a.address && len(v.Loads) == 1 && v.Add == 0 && v.Loads[0].Offset > 0 && v.Loads[0].Offset < maxMember:
		return Field{Offset: uint64(v.Loads[0].Offset), Size: uint64(v.Loads[0].Size)}, true
	}
	return Field{}, false
}

// learnAccessors decodes all accessors and puts what they say over the layout,
// never over exact symbols: of those a difference is told.
func (b *ntBuilder) learnAccessors() {
	for _, a := range accessors {
		v, err := b.readAccessor(a.export)
		if err != nil || v.Base != infer.Param {
			continue
		}
		f, ok := a.field(v)
		if !ok {
			continue
		}
		b.tell(a.structName, a.member, f, a.export)
	}
	b.learnCurrent()
}

// tell takes what an accessor says.
func (b *ntBuilder) tell(structName, member string, f Field, export string) {
	have, err := b.types.field(structName, member)
	if structName == "_ETHREAD" && member == threadsProcess && err != nil {
		have, err = b.types.field("_KTHREAD", "Process")
	}
	by := "accessor " + export
	switch {
	case err == nil && have.Offset == f.Offset:
		if b.types.exact == nil {
			have.by += ", " + by + " agrees"
		}
		b.types.learn(structName, member, have)
	case err == nil && b.types.exact != nil:
		b.k.lacks(fmt.Sprintf("%s.%s: %s says %#x, the %s %#x, which is believed", structName, member, by, f.Offset, have.by, have.Offset))
	default:
		if err == nil {
			by += fmt.Sprintf("; the %s says %#x", have.by, have.Offset)
		}
		b.types.learn(structName, member, ntField{f, by})
	}
	if got, err := b.types.field(structName, member); err == nil {
		b.k.fact(structName+"."+member, got.by)
	}
}

// learnCurrent reads the accessors that begin at the processor's block.
func (b *ntBuilder) learnCurrent() {
	for _, export := range []string{"PsGetCurrentThread", "KeGetCurrentThread"} {
		v, err := b.readAccessor(export)
		if err == nil && v.Base == infer.PCR && len(v.Loads) == 1 && v.Add == 0 && v.Loads[0].Offset > 0 && v.Loads[0].Offset < maxMember {
			b.types.learn("_KPCR", "CurrentThread", ntField{Field{Offset: uint64(v.Loads[0].Offset), Size: uint64(v.Loads[0].Size)}, "accessor " + export})
			b.k.fact("_KPCR.CurrentThread", "accessor "+export)
			break
		}
	}
	for _, a := range []accessor{
		{"PsGetCurrentProcess", "_KTHREAD", "ApcState.Process", false},
		{"IoGetCurrentProcess", "_KTHREAD", "ApcState.Process", false},
		{"PsGetCurrentThreadId", "_ETHREAD", "Cid.UniqueThread", false},
		{"PsGetCurrentProcessId", "_ETHREAD", "Cid.UniqueProcess", false},
		{"ExGetPreviousMode", "_KTHREAD", "PreviousMode", false},
		{"PsGetCurrentThreadPreviousMode", "_KTHREAD", "PreviousMode", false},
	} {
		v, err := b.readAccessor(a.export)
		if err == nil && v.Base == infer.PCR && len(v.Loads) == 2 && v.Add == 0 && v.Loads[1].Offset > 0 && v.Loads[1].Offset < maxMember {
			b.tell(a.structName, a.member, Field{Offset: uint64(v.Loads[1].Offset), Size: uint64(v.Loads[1].Size)}, a.export)
		}
	}
}

// inferFields checks the members that everything else rests on, by what lies
// there, and finds those that lie elsewhere.
func (b *ntBuilder) inferFields(context.Context) {
	b.learnAccessors()
	b.settlePID()
	b.settle(shape{structName: "_EPROCESS", member: "ImageFileName", size: 15, step: 1, high: eprocessSize,
		what: `"System" stands there in System`, check: func(off uint64) bool {
			return off+15 <= eprocessSize && bytes.HasPrefix(b.system[off:], []byte("System\x00"))
		}})
	b.settle(shape{structName: "_EPROCESS", member: "Token", size: b.k.PointerSize(), step: b.k.PointerSize(), high: eprocessSize,
		what: "it leads to the token of the system", check: b.isSystemToken})
	b.settleToken()
	b.findWitnesses()
	b.settleThreads()
	if len(b.witnesses) > 0 {
		b.settleByWitnesses()
	}
	b.settleRest()
}

// settlePID finds the process id of System, which is 4, and the list link
// behind it. In every build they are neighbours.
func (b *ntBuilder) settlePID() {
	size := b.k.PointerSize()
	pid := shape{structName: "_EPROCESS", member: "UniqueProcessId", size: size, step: size, low: 0x40, high: eprocessSize,
		what: "it is 4 in System, with a list behind it that leads to the kernel and back", check: func(off uint64) bool {
			return b.sysWord(off) == 4 && b.isProcessLink(off+uint64(size))
		}}
	links := shape{structName: "_EPROCESS", member: "ActiveProcessLinks", size: 2 * size, step: size, low: 0x40, high: eprocessSize,
		what: "a list that leads to the kernel and back", check: func(off uint64) bool {
			return b.sysWord(off-uint64(size)) == 4 && b.isProcessLink(off)
		}}
	b.settle(pid)
	b.settle(links)
}

func (b *ntBuilder) isProcessLink(off uint64) bool {
	return b.nt.KernelAddress(arch.GVA(b.sysWord(off))) && b.processHead(off) != 0
}

// systemLUID is the logon session of the system (ntifs.h).
const systemLUID = 0x3e7

// isSystemToken reports whether the pointer at off in System leads to a token
// whose source is *SYSTEM*, or whose logon is the system's. Its lowest bits
// count references (EX_FAST_REF).
func (b *ntBuilder) isSystemToken(off uint64) bool {
	at := arch.GVA(b.sysWord(off)) &^ arch.GVA(2*b.k.PointerSize()-1)
	if !b.nt.KernelAddress(at) {
		return false
	}
	var t [0x20]byte // TokenSource, TokenId, AuthenticationId, the same in every build
	if _, err := b.k.space.Read(t[:], at); err != nil {
		return false
	}
	return string(t[:8]) == "*SYSTEM*" || leUint64(t[0x18:]) == systemLUID && printable8(t[:8]) || b.isUserOfSystem(at)
}

// isUserOfSystem reports whether the user of a token is S-1-5-18 if it lies
// where the layout has it.
func (b *ntBuilder) isUserOfSystem(token arch.GVA) bool {
	f, err := b.types.field("_TOKEN", "UserAndGroups")
	return err == nil && b.isSystemUser(token, f.Offset)
}

// isSystemUser reports whether the first user on the list at off in a token is
// S-1-5-18.
func (b *ntBuilder) isSystemUser(token arch.GVA, off uint64) bool {
	groups, err := b.word(token + arch.GVA(off))
	if err != nil || !b.nt.KernelAddress(groups) {
		return false
	}
	at, err := b.word(groups)
	var sid [12]byte
	if err != nil || !b.nt.KernelAddress(at) {
		return false
	}
	_, err = b.k.space.Read(sid[:], at)
	return err == nil && sid == [12]byte{1, 1, 0, 0, 0, 0, 0, 5, 18, 0, 0, 0}
}

func printable8(p []byte) bool {
	return p[0] != 0 && !slices.ContainsFunc(p, func(c byte) bool { return c != 0 && (c < ' ' || c > '~') })
}
