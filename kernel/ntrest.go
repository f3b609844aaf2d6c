package kernel

import (
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
)

// settleToken checks where a token has its user and its session, by the token
// of System.
func (b *ntBuilder) settleToken() {
	f, err := b.types.field("_EPROCESS", "Token")
	if err != nil {
		return
	}
	token := arch.GVA(b.sysWord(f.Offset)) &^ arch.GVA(2*b.k.PointerSize()-1)
	size := b.k.PointerSize()
	b.settle(shape{structName: "_TOKEN", member: "UserAndGroups", size: size, step: size, low: 0x40, high: 0x200, near: 0x80,
		what: "it leads to S-1-5-18 in the token of System, if that is in memory", check: func(off uint64) bool {
			return b.isSystemUser(token, off) || b.userPagedOut(token, off)
		}})
	b.settle(shape{structName: "_TOKEN", member: "SessionId", size: 4, weak: true, anchor: "UserAndGroups",
		what: "a small number in the token of System", check: func(off uint64) bool {
			v, err := b.k.space.ReadUint32(token + arch.GVA(off))
			return err == nil && v < 1<<16
		}})
}

// userPagedOut reports whether the layout has the user at off and what it leads
// to is not in memory.
func (b *ntBuilder) userPagedOut(token arch.GVA, off uint64) bool {
	f, err := b.types.field("_TOKEN", "UserAndGroups")
	if err != nil || f.Offset != off {
		return false
	}
	at, err := b.word(token + arch.GVA(off))
	for range 2 { // SID_AND_ATTRIBUTES, SID
		if err == nil && !b.nt.KernelAddress(at) {
			return false
		}
		if err == nil {
			at, err = b.word(at)
		}
	}
	return err != nil
}

// settleRest checks members that have neither an accessor nor a shape of their
// own, by what must not lie there.
func (b *ntBuilder) settleRest() {
	b.settle(shape{structName: "_EPROCESS", member: "ExitTime", size: 8, weak: true, anchor: "CreateTime",
		what: "no time in System, in others none or one of a plausible year", check: func(off uint64) bool {
			return wordAt(b.system, off, 8) == 0 && (len(b.witnesses) == 0 || b.most(func(w *witness) bool {
				v := wordAt(w.raw, off, 8)
				return v == 0 || plausibleTime(v)
			}))
		}})
	b.settle(shape{structName: "_EPROCESS", member: "ActiveThreads", size: 4, step: 4, low: 0x80, high: eprocessSize, near: 0x200, anchor: "ThreadListHead",
		what: "as many threads as are on the lists", check: b.countsThreads})
	if b.nt.X64 {
		b.settleWow64()
	}
	threads := b.systemThreads()
	all := func(check func(raw []byte) bool) bool {
		return !slices.ContainsFunc(threads, func(raw []byte) bool { return !check(raw) })
	}
	b.settle(shape{structName: "_ETHREAD", member: "CreateTime", size: 8, weak: true, anchor: "ThreadListEntry",
		what: "no times but plausible ones in threads of System", check: func(off uint64) bool {
			return all(func(raw []byte) bool {
				v := wordAt(raw, off, 8) // until 2003 above three bits of something else
				return v == 0 || plausibleTime(v) || plausibleTime(v>>3)
			})
		}})
	for _, m := range []struct {
		name string
		end  uint64 // of KTHREAD_STATE and KWAIT_REASON, with room for more
	}{{"State", 10}, {"WaitReason", 64}} {
		b.settle(shape{structName: "_KTHREAD", member: m.name, size: 1, weak: true, anchor: "Teb",
			what: "a small number in threads of System", check: func(off uint64) bool {
				return all(func(raw []byte) bool { return wordAt(raw, off, 1) < m.end })
			}})
	}
}

// countsThreads reports whether the number at off is that of the threads on the
// list of more than half of the processes, and of none more: one that has ended
// stays on its list while somebody holds it.
func (b *ntBuilder) countsThreads(off uint64) bool {
	head, err := b.types.field("_EPROCESS", "ThreadListHead")
	if err != nil {
		return false
	}
	same, other := 0, 0
	count := func(at arch.GVA, raw []byte) bool {
		nodes, err := b.ring(at + arch.GVA(head.Offset))
		if err != nil {
			return true // it changes just now
		}
		n, v := uint64(len(nodes)-1), wordAt(raw, off, 4)
		if v == n {
			same++
		} else {
			other++
		}
		return v <= n+n/4+2 // more have begun since the list was read
	}
	if !count(b.nt.System, b.system) || wordAt(b.system, off, 4) == 0 {
		return false
	}
	for _, w := range b.witnesses {
		if !count(w.at, w.raw) {
			return false
		}
	}
	return same > other
}

// systemThreads copies some threads of System.
func (b *ntBuilder) systemThreads() [][]byte {
	head, err := b.types.field("_EPROCESS", "ThreadListHead")
	link, err2 := b.types.field("_ETHREAD", "ThreadListEntry")
	if err != nil || err2 != nil {
		return nil
	}
	nodes, err := b.ring(b.nt.System + arch.GVA(head.Offset))
	if err != nil {
		return nil
	}
	var out [][]byte
	for _, n := range nodes[1:min(len(nodes), 1+maxWitnesses)] {
		raw := make([]byte, maxThread)
		readHoles(b.k.space, raw, n-arch.GVA(link.Offset))
		out = append(out, raw)
	}
	return out
}

// settleWow64 checks the member by which a 32-bit process leads to its second
// PEB, by whichever name the layout has it.
func (b *ntBuilder) settleWow64() {
	name := "WoW64Process"
	if _, err := b.types.field("_EPROCESS", name); err != nil {
		name = "Wow64Process"
	}
	b.settle(shape{structName: "_EPROCESS", member: name, size: 8, weak: true, anchor: "Peb",
		what: "nothing, or what leads to a PEB below 4 GiB", check: func(off uint64) bool {
			bad := slices.ContainsFunc(b.witnesses, func(w *witness) bool {
				v := arch.GVA(wordAt(w.raw, off, 8))
				if b.nt.KernelAddress(v) { // EWOW64PROCESS since 10, WOW64_PROCESS before 7
					v, _ = b.word(v)
				}
				return v >= 1<<32 || v%arch.PageSize != 0
			})
			return !bad && b.sysWord(off) == 0
		}})
}
