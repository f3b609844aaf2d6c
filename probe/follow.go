package probe

import (
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Bounds of following a family.
const (
	maxAncestors = 64
	maxFamily    = 1 << 16 // processes remembered
)

// wants applies the probe's filter.
//
// A hit that an engine has recorded in the guest comes from a process that the
// engine has already judged, where the session trusts it to.
func (p *Planted) wants(t *Thread, recorded bool) bool {
	f := p.probe.Filter
	if f.empty() {
		return true
	}
	return (p.family == nil || recorded && p.s.trusted.Load() == f || p.family.has(t)) && f.passes(t) && (f.Match == nil || f.Match(t))
}

// family is the processes of a filter, with their descendants if it follows
// them, for engines that do not find that out in the guest. It belongs to the
// goroutine that runs.
type family struct {
	facts  *facts
	roots  []int
	follow bool
	// known holds descendants by process id, with the start time of each, by
	// which a reused id is told from the process that had it.
	known map[int]uint64
}

func newFamily(facts *facts, f *Filter) *family {
	return &family{facts: facts, roots: slices.Clone(f.PIDs), follow: f.Follow, known: map[int]uint64{}}
}

// has reports whether the thread's process is in the family. A descendant is
// remembered, so that it stays in when its parents end.
func (f *family) has(t *Thread) bool {
	if slices.Contains(f.roots, t.PID) {
		return true
	}
	if !f.follow || t.Task == 0 {
		return false
	}
	if f.isKnown(t.Task, t.PID) {
		return true
	}
	if f.facts.nt != nil {
		return f.hasNT(t)
	}
	task := t.Task
	for range maxAncestors {
		task = f.facts.pointer(task, f.facts.parent)
		pid := f.facts.int32(task, f.facts.tgid)
		if task == 0 || pid <= 0 {
			return false
		}
		if slices.Contains(f.roots, pid) || f.isKnown(task, pid) {
			f.learn(t)
			return true
		}
		if pid == 1 {
			return false
		}
	}
	return false
}

func (f *family) isKnown(task arch.GVA, pid int) bool {
	start, ok := f.known[pid]
	return ok && start == f.started(task)
}

func (f *family) learn(t *Thread) {
	if len(f.known) >= maxFamily {
		clear(f.known) // those whose parents live are learnt anew
	}
	f.known[t.PID] = f.started(t.Task)
}

// hasNT goes by the parent's id that a process keeps: of one whose parent is in
// the family and has been seen, or is a root.
func (f *family) hasNT(t *Thread) bool {
	_, known := f.known[t.PPID]
	if !known && !slices.Contains(f.roots, t.PPID) {
		return false
	}
	f.learn(t)
	return true
}

// started returns when the task's process started, by the guest's clock.
func (f *family) started(task arch.GVA) uint64 {
	if f.facts.nt != nil {
		return f.facts.nt.created(task)
	}
	v, _ := f.facts.kernel.ReadUint64(f.facts.pointer(task, f.facts.leader) + arch.GVA(f.facts.start))
	return v
}
