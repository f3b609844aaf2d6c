package kernel

import (
	"slices"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// findWitnesses picks processes other than System from the list.
func (b *ntBuilder) findWitnesses() {
	links, err := b.types.field("_EPROCESS", "ActiveProcessLinks")
	pid, err2 := b.types.field("_EPROCESS", "UniqueProcessId")
	if err != nil || err2 != nil {
		return
	}
	nodes, err := b.ring(b.nt.System + arch.GVA(links.Offset))
	if err != nil {
		return
	}
	for _, n := range nodes {
		at := n - arch.GVA(links.Offset)
		if at == b.nt.System || b.inImage(n) || len(b.witnesses) == maxWitnesses {
			continue
		}
		w := &witness{at: at, raw: make([]byte, eprocessSize)}
		readHoles(b.k.space, w.raw, at)
		if w.pid = wordAt(w.raw, pid.Offset, b.k.PointerSize()); w.pid != 0 && w.pid < 1<<32 {
			b.witnesses = append(b.witnesses, w)
		}
	}
}

// most reports whether a check holds on more than half of the witnesses: some
// may be ending, or be made without the part.
func (b *ntBuilder) most(check func(w *witness) bool) bool {
	n := 0
	for _, w := range b.witnesses {
		if check(w) {
			n++
		}
	}
	return 2*n > len(b.witnesses)
}

// some reports whether a check holds on the witnesses that have something
// there, but for one in four: processes without a program of their own, such as
// Registry, and those that are ending are otherwise in some ways.
func (b *ntBuilder) some(off uint64, check func(w *witness, v arch.GVA) bool) bool {
	good, bad := 0, 0
	for _, w := range b.witnesses {
		v := arch.GVA(wordAt(w.raw, off, b.k.PointerSize()))
		switch {
		case v == 0:
		case check(w, v):
			good++
		default:
			bad++
		}
	}
	return good > 3*bad
}

// settleByWitnesses checks the members that System lacks.
func (b *ntBuilder) settleByWitnesses() {
	size := b.k.PointerSize()
	b.settle(shape{structName: "_EPROCESS", member: "CreateTime", size: 8, step: 8, low: 0x40, high: 0x600, near: 0x40,
		what: "times of a plausible year", check: func(off uint64) bool {
			return b.most(func(w *witness) bool { return plausibleTime(wordAt(w.raw, off, 8)) })
		}})
	b.settle(shape{structName: "_EPROCESS", member: "InheritedFromUniqueProcessId", size: size, weak: true,
		what: "process ids", check: func(off uint64) bool {
			return b.most(func(w *witness) bool {
				v := wordAt(w.raw, off, size)
				return v < 1<<26 && v%4 == 0
			})
		}})
	b.settle(shape{structName: "_EPROCESS", member: "Peb", size: size, step: size, low: 0x80, high: eprocessSize, near: 0x100,
		what: "pages of user memory that hold a PEB", check: func(off uint64) bool { return b.some(off, b.isPEB) }})
	b.settle(shape{structName: "_EPROCESS", member: "ObjectTable", size: size, step: size, low: 0x80, high: eprocessSize,
		what: "it leads to a handle table of the same process", check: func(off uint64) bool { return b.some(off, b.isHandleTable) }})
	b.settle(shape{structName: "_EPROCESS", member: "VadRoot", size: size, step: size, low: 0x80, high: eprocessSize,
		what: "it leads to the root of a tree", check: b.isVadRoot})
	b.settle(shape{structName: "_EPROCESS", member: "SeAuditProcessCreationInfo", size: size, step: size, low: 0x80, high: eprocessSize,
		what: "it leads to a path", check: func(off uint64) bool { return b.some(off, b.isPath) }})
}

func plausibleTime(v uint64) bool {
	s := Filetime(v).Unix()
	return s > time.Date(1996, 1, 1, 0, 0, 0, 0, time.UTC).Unix() && s < time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
}

// isPEB reports whether a page of user memory can be the PEB of a process:
// when it is in memory, it tells the base of an image that begins with MZ.
func (b *ntBuilder) isPEB(w *witness, v arch.GVA) bool {
	if v%arch.PageSize != 0 || b.nt.KernelAddress(v) || v < 0x10000 {
		return false
	}
	dtb, err := b.types.field("_KPROCESS", "DirectoryTableBase")
	if err != nil {
		return true
	}
	as := b.nt.SoftPages(b.d.g.AddressSpace(b.f.root.mode, arch.Root(b.f.root.mode, wordAt(w.raw, dtb.Offset, b.k.PointerSize()))))
	base, err := b.nt.Word(as, v+arch.GVA(2*b.k.PointerSize())) // ImageBaseAddress, the same in every build
	if err != nil {
		return true // paged out
	}
	mz, err := as.ReadUint16(base)
	return base%arch.PageSize == 0 && base != 0 && !b.nt.KernelAddress(base) && (err != nil || mz == 0x5a4d)
}

// isHandleTable reports whether v is a handle table that names its process.
func (b *ntBuilder) isHandleTable(w *witness, v arch.GVA) bool {
	if !b.nt.KernelAddress(v) || v%8 != 0 {
		return false
	}
	for member, want := range map[string]arch.GVA{"UniqueProcessId": arch.GVA(w.pid), "QuotaProcess": w.at} {
		f, err := b.types.field("_HANDLE_TABLE", member)
		if err != nil {
			continue
		}
		if got, err := b.word(v + arch.GVA(f.Offset)); err == nil && got == want {
			return true
		}
	}
	return false
}

// isVadRoot reports whether what lies at off is the root of the tree of a
// process's mappings. There have been three forms: a pointer to the top node,
// with nothing above it (XP, and since 8.1 by an RTL_AVL_TREE), and a node
// within EPROCESS that the top node points back to (2003 to 8).
func (b *ntBuilder) isVadRoot(off uint64) bool {
	_, err := b.types.size("_MM_AVL_TABLE")
	inline := err == nil
	return b.most(func(w *witness) bool { return b.vadRootOf(w, off, inline) })
}

func (b *ntBuilder) vadRootOf(w *witness, off uint64, inline bool) bool {
	size := uint64(b.k.PointerSize())
	if inline {
		// MMADDRESS_NODE: parent with two bits of balance, left, right. The head is
		// its own parent, or a node whose right child is the top.
		top := arch.GVA(wordAt(w.raw, off+2*size, int(size)))
		if !b.nt.KernelAddress(top) {
			return false
		}
		up, err := b.word(top)
		return err == nil && up&^3 == w.at+arch.GVA(off)
	}
	top := arch.GVA(wordAt(w.raw, off, int(size)))
	if !b.nt.KernelAddress(top) || top%8 != 0 {
		return false
	}
	left, right, parent, err := b.vadLinks()
	if err != nil {
		return false
	}
	up, err := b.word(top + parent)
	if err != nil || up&^3 != 0 {
		return false
	}
	for _, side := range []arch.GVA{left, right} {
		child, err := b.word(top + side)
		if err != nil || child != 0 && !b.nt.KernelAddress(child) {
			return false
		}
		if child == 0 {
			continue
		}
		if up, err := b.word(child + parent); err != nil || up&^3 != top {
			return false
		}
	}
	return b.vadRange(top)
}

// vadRange reports whether a node covers a range of pages that is one.
func (b *ntBuilder) vadRange(node arch.GVA) bool {
	start, err := b.types.field("_MMVAD_SHORT", "StartingVpn")
	end, err2 := b.types.field("_MMVAD_SHORT", "EndingVpn")
	if err != nil || err2 != nil {
		return false
	}
	first, err := b.k.space.ReadUint32(node + arch.GVA(start.Offset))
	last, err2 := b.k.space.ReadUint32(node + arch.GVA(end.Offset))
	return err == nil && err2 == nil && first > 0 && last != 0 && (first <= last || b.nt.X64)
}

func (b *ntBuilder) vadLinks() (left, right, parent arch.GVA, err error) {
	if n, e := b.types.field("_RTL_BALANCED_NODE", "Left"); e == nil {
		if _, e := b.types.field("_MMVAD_SHORT", "VadNode"); e == nil {
			size := arch.GVA(b.k.PointerSize())
			return arch.GVA(n.Offset), arch.GVA(n.Offset) + size, arch.GVA(n.Offset) + 2*size, nil
		}
	}
	for member, to := range map[string]*arch.GVA{"LeftChild": &left, "RightChild": &right, "Parent": &parent} {
		f, e := b.types.field("_MMVAD_SHORT", member)
		if e != nil {
			err = e
		}
		*to = arch.GVA(f.Offset)
	}
	return left, right, parent, err
}

// isPath reports whether v is a UNICODE_STRING that holds a path of NT, which
// begins with a backslash; the string of a minimal process is empty.
func (b *ntBuilder) isPath(_ *witness, v arch.GVA) bool {
	if !b.nt.KernelAddress(v) {
		return false
	}
	s, err := b.nt.unicode(b.k.space, v, 512)
	if err != nil {
		return false
	}
	length, _ := b.k.space.ReadUint16(v)
	room, _ := b.k.space.ReadUint16(v + 2)
	if length == 0 {
		buffer, err := b.word(v + arch.GVA(b.k.PointerSize()))
		return err == nil && room == 0 && buffer == 0
	}
	return length <= room && length%2 == 0 && strings.HasPrefix(s, `\`)
}

// settleThreads finds the list of a process's threads and the link in them
// that belongs to it. A thread is known by the members that accessors tell: its
// process, and its process's id.
func (b *ntBuilder) settleThreads() {
	head, err := b.types.field("_EPROCESS", "ThreadListHead")
	link, err2 := b.types.field("_ETHREAD", "ThreadListEntry")
	if err == nil && err2 == nil && b.isThreadList(head.Offset, link.Offset) {
		const what = "; checked: the list leads to threads of System and back"
		for _, x := range []struct {
			structName, member string
			f                  ntField
		}{{"_EPROCESS", "ThreadListHead", head}, {"_ETHREAD", "ThreadListEntry", link}} {
			x.f.by += what
			b.types.learn(x.structName, x.member, x.f)
			b.k.fact(x.structName+"."+x.member, x.f.by)
		}
		return
	}
	if b.searchThreads() {
		return
	}
	const why = "no list of System leads to its threads"
	b.types.refuse("_EPROCESS", "ThreadListHead", why)
	b.types.refuse("_ETHREAD", "ThreadListEntry", why)
	b.k.lacks("_EPROCESS.ThreadListHead, _ETHREAD.ThreadListEntry: " + why)
}

// isThreadList reports whether the list at head in System goes through the
// member link of threads of System.
func (b *ntBuilder) isThreadList(head, link uint64) bool {
	nodes, err := b.ring(b.nt.System + arch.GVA(head))
	if err != nil || len(nodes) < 2 {
		return false
	}
	for _, n := range nodes[1:min(len(nodes), 4)] {
		if !b.isThread(n-arch.GVA(link), b.nt.System, 4) {
			return false
		}
	}
	return true
}

// isThread reports whether a thread of a process lies at va.
func (b *ntBuilder) isThread(va, process arch.GVA, pid uint64) bool {
	if kind, err := b.k.space.ReadUint8(va); err != nil || kind != threadObject {
		return false
	}
	known := false
	if f, err := b.threadProcess(); err == nil {
		if got, err := b.word(va + arch.GVA(f.Offset)); err != nil || got != process {
			return false
		}
		known = true
	}
	if f, err := b.types.field("_ETHREAD", "Cid.UniqueProcess"); err == nil {
		if got, err := b.word(va + arch.GVA(f.Offset)); err != nil || uint64(got) != pid {
			return false
		}
		known = true
	}
	return known
}

// threadProcess returns the member by which a thread leads to its process.
func (b *ntBuilder) threadProcess() (ntField, error) {
	f, err := b.types.field("_ETHREAD", threadsProcess)
	if err != nil {
		f, err = b.types.field("_KTHREAD", "Process")
	}
	return f, err
}

// maxThread is how far into a thread its link is looked for: the largest known
// ETHREAD has 0x900 bytes.
const maxThread = 0xa00

// searchThreads tries every list in System.
func (b *ntBuilder) searchThreads() bool {
	size := uint64(b.k.PointerSize())
	for head := uint64(0x100); head < eprocessSize; head += size { // the size that a layout tells may be another build's
		nodes, err := b.ring(b.nt.System + arch.GVA(head))
		if err != nil || len(nodes) < 2 || b.inImage(nodes[1]) {
			continue
		}
		for off := uint64(0x100); off < maxThread; off += size {
			if b.isThreadList(head, off) || b.isThreadListByShape(nodes[1:], off) {
				const by = "inferred from its shape: a list of System that leads to its threads and back"
				b.learnList(head, off, by)
				return true
			}
		}
	}
	return false
}

func (b *ntBuilder) learnList(head, link uint64, by string) {
	size := 2 * uint64(b.k.PointerSize())
	b.types.learn("_EPROCESS", "ThreadListHead", ntField{Field{Offset: head, Size: size}, by})
	b.types.learn("_ETHREAD", "ThreadListEntry", ntField{Field{Offset: link, Size: size}, by})
	b.k.fact("_EPROCESS.ThreadListHead", by)
	b.k.fact("_ETHREAD.ThreadListEntry", by)
}

// threadObject is the type in the dispatcher header of a thread (KOBJECTS).
const threadObject = 6

// isThreadListByShape reports whether a list goes through threads of System
// when no accessor tells where a thread keeps what: each begins with the header
// of a thread, leads to System, and has at one and the same place the pair of 4
// and an id of its own, CLIENT_ID. It then learns where.
func (b *ntBuilder) isThreadListByShape(nodes []arch.GVA, link uint64) bool {
	if _, ok := b.types.inferred("_ETHREAD", "Cid.UniqueThread"); ok {
		return false // an accessor has told, and it did not fit
	}
	var threads [][]byte
	for _, n := range nodes[:min(len(nodes), 4)] {
		at := n - arch.GVA(link)
		if kind, err := b.k.space.ReadUint8(at); err != nil || kind != threadObject {
			return false
		}
		raw := make([]byte, maxThread)
		readHoles(b.k.space, raw, at)
		threads = append(threads, raw)
	}
	process, ok := b.samePlace(threads, func(raw []byte, off uint64) bool {
		return wordAt(raw, off, b.k.PointerSize()) == uint64(b.nt.System)
	})
	size := uint64(b.k.PointerSize())
	cid, ok2 := b.samePlace(threads, func(raw []byte, off uint64) bool {
		tid := wordAt(raw, off+size, int(size))
		return wordAt(raw, off, int(size)) == 4 && tid != 0 && tid%4 == 0 && tid < 1<<26
	})
	if !ok || !ok2 || len(threads) < 2 || !distinct(threads, cid+size, int(size)) {
		return false
	}
	const by = "inferred from its shape: in each thread of System, "
	b.learnThread(threadsProcess, process, by+"the address of System")
	b.learnThread("Cid.UniqueProcess", cid, by+"4 with an id behind it that no other has")
	b.learnThread("Cid.UniqueThread", cid+size, by+"an id that no other has, behind 4")
	return true
}

func (b *ntBuilder) learnThread(path string, off uint64, by string) {
	b.types.learn("_ETHREAD", path, ntField{Field{Offset: off, Size: uint64(b.k.PointerSize())}, by})
	b.k.fact("_ETHREAD."+path, by)
}

// samePlace returns the first place at which a check holds in all structures.
func (b *ntBuilder) samePlace(all [][]byte, check func(raw []byte, off uint64) bool) (uint64, bool) {
	size := uint64(b.k.PointerSize())
	for off := 2 * size; off < maxThread; off += size {
		if !slices.ContainsFunc(all, func(raw []byte) bool { return !check(raw, off) }) {
			return off, true
		}
	}
	return 0, false
}

// distinct reports whether no two structures have the same value at off.
func distinct(all [][]byte, off uint64, size int) bool {
	seen := map[uint64]bool{}
	for _, raw := range all {
		v := wordAt(raw, off, size)
		if seen[v] {
			return false
		}
		seen[v] = true
	}
	return true
}
