package linux

import (
	"encoding/binary"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// The maple tree, since 6.1, holds the mappings of a process by address. As
// documented in the kernel's Documentation/core-api/maple_tree.rst and seen in
// guests:
//
//   - A node is 256 bytes, aligned to its size, so the low 8 bits of a pointer
//     to a node are free: bits 3 to 6 tell the type of the node pointed to; in
//     the root, which may be a value instead, bit 1 tells that it is a node.
//   - A node covers the range of indices that its parent gives it and divides
//     it: slot i ends, inclusive, at pivot i; the last slot ends where the node
//     ends. A pivot of zero behind the first means that the rest is unused.
//   - Leaves hold values, other nodes hold pointers to nodes.
//   - The first word of a node points back to its parent, in its high bits; to
//     the node itself once it has been taken out of the tree.
const (
	mapleNodeSize = 256
	mapleNodeMask = ^arch.GVA(mapleNodeSize - 1)

	mapleLeaf64   = 1
	mapleRange64  = 2
	mapleARange64 = 3

	// Every level but the root is at least a third full with 10 to 16 slots,
	// so this depth holds more mappings than any kernel allows.
	mapleMaxDepth = 16
)

// maxVMAs bounds the mappings of one process: the largest vm.max_map_count
// that distributions ship (Fedora, Arch Linux).
const maxVMAs = 1 << 20

// mapleEntry is one value of the tree with its range, both ends inclusive.
type mapleEntry struct {
	first, last uint64
	value       arch.GVA
}

// mapleTree reads one tree of the guest.
type mapleTree struct {
	as    *vitrine.AddressSpace
	l     *layout
	word  int // bytes of a pointer and of an index
	nodes int // left to read, so that a hostile tree ends
}

func newMapleTree(as *vitrine.AddressSpace, l *layout) *mapleTree {
	return &mapleTree{as: as, l: l, word: as.Mode().PointerSize(), nodes: maxVMAs}
}

// highest is the highest index.
func (t *mapleTree) highest() uint64 { return ^uint64(0) >> (64 - 8*t.word) }

// mapleNode is a copy of one node.
type mapleNode struct {
	addr          arch.GVA
	leaf          bool
	word          int
	pivots, slots []byte
	min, max      uint64
	buf           [mapleNodeSize]byte
}

// isMapleRoot tells a root that is a node from one that is a value, by the
// rules of the kernel's xarray: values have bit 0 set or both clear, small
// numbers with bit 1 are marks.
func isMapleRoot(e arch.GVA) bool { return e&3 == 2 && e > 4096 }

// isMapleValue reports whether a slot of a leaf holds a pointer.
func isMapleValue(e arch.GVA) bool { return e&3 == 0 && e != 0 }

// walk calls f with every entry in ascending order until f returns false.
func (t *mapleTree) walk(root arch.GVA, f func(mapleEntry) bool) error {
	if root == 0 {
		return nil
	}
	if !isMapleRoot(root) {
		return fmt.Errorf("walk maple tree: root %v is no node: %w", root, osi.ErrCorrupt)
	}
	_, err := t.visit(root, 0, 0, t.highest(), 0, f)
	return err
}

// visit walks the node that e points to; parent is 0 for the root.
func (t *mapleTree) visit(e, parent arch.GVA, lo, hi uint64, depth int, f func(mapleEntry) bool) (bool, error) {
	var n mapleNode
	if err := t.read(&n, e, parent, lo, hi, depth); err != nil {
		return false, err
	}
	for i, at := 0, lo; ; i++ {
		slot, last, err := n.slot(i, at)
		if err != nil {
			return false, err
		}
		more := true
		switch {
		case n.leaf && isMapleValue(slot):
			more = f(mapleEntry{at, last, slot})
		case !n.leaf && slot != 0:
			more, err = t.visit(slot, n.addr, at, last, depth+1, f)
		}
		if err != nil || !more || last == hi {
			return more, err
		}
		at = last + 1
	}
}

// find returns the entry that holds index, and false when there is none.
func (t *mapleTree) find(root arch.GVA, index uint64) (mapleEntry, bool, error) {
	if !isMapleRoot(root) {
		return mapleEntry{}, false, nil
	}
	var n mapleNode
	e, parent, lo, hi := root, arch.GVA(0), uint64(0), t.highest()
	for depth := 0; ; depth++ {
		if err := t.read(&n, e, parent, lo, hi, depth); err != nil {
			return mapleEntry{}, false, err
		}
		slot, first, last, err := n.holding(index)
		if err != nil {
			return mapleEntry{}, false, err
		}
		if n.leaf {
			return mapleEntry{first, last, slot}, isMapleValue(slot), nil
		}
		if slot == 0 {
			return mapleEntry{}, false, nil
		}
		e, parent, lo, hi = slot, n.addr, first, last
	}
}

// read copies the node that e points to and checks that it belongs there.
func (t *mapleTree) read(n *mapleNode, e, parent arch.GVA, lo, hi uint64, depth int) error {
	if t.nodes--; t.nodes < 0 || depth >= mapleMaxDepth {
		return fmt.Errorf("walk maple tree: node %v at depth %d: %w", e, depth, osi.ErrCorrupt)
	}
	n.addr, n.word, n.min, n.max = e&mapleNodeMask, t.word, lo, hi
	if err := kernelPointer(n.addr); err != nil {
		return fmt.Errorf("walk maple tree: %w", err)
	}
	if _, err := t.as.Read(n.buf[:], n.addr); err != nil {
		return fmt.Errorf("walk maple tree: %w", err)
	}
	l := &t.l.maple
	var pivots, slots member
	switch kind := e >> 3 & 0xf; kind {
	case mapleLeaf64, mapleRange64:
		n.leaf, pivots, slots = kind == mapleLeaf64, l.pivots64, l.slots64
	case mapleARange64:
		n.leaf, pivots, slots = false, l.pivotsA, l.slotsA
	default:
		return fmt.Errorf("walk maple tree: node of type %d: %w", kind, osi.ErrCorrupt)
	}
	if pivots.end() > mapleNodeSize || slots.end() > mapleNodeSize {
		return fmt.Errorf("walk maple tree: node larger than %d bytes: %w", mapleNodeSize, osi.ErrCorrupt)
	}
	n.pivots, n.slots = n.buf[pivots.off:pivots.end()], n.buf[slots.off:slots.end()]
	up := arch.GVA(n.number(n.buf[:]))
	if up&mapleNodeMask == n.addr || parent != 0 && up&mapleNodeMask != parent {
		return fmt.Errorf("walk maple tree: node %v has left the tree: %w", n.addr, osi.ErrTorn)
	}
	return nil
}

// number reads a number of the kernel's width.
func (n *mapleNode) number(b []byte) uint64 {
	if n.word == 4 {
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return binary.LittleEndian.Uint64(b)
}

// slot returns slot i, which begins at index at, and the last index it covers.
func (n *mapleNode) slot(i int, at uint64) (arch.GVA, uint64, error) {
	w := n.word
	if w*i+w > len(n.slots) {
		return 0, 0, fmt.Errorf("walk maple tree: node %v ends before its range: %w", n.addr, osi.ErrTorn)
	}
	last := n.max
	if w*i+w <= len(n.pivots) {
		if p := n.number(n.pivots[w*i:]); p != 0 || i == 0 {
			last = p
		}
	}
	if last < at || last > n.max {
		return 0, 0, fmt.Errorf("walk maple tree: node %v: pivot %d out of order: %w", n.addr, i, osi.ErrTorn)
	}
	return arch.GVA(n.number(n.slots[w*i:])), last, nil
}

// holding returns the slot that covers index, with its range.
func (n *mapleNode) holding(index uint64) (slot arch.GVA, first, last uint64, err error) {
	first = n.min
	for i := 0; ; i++ {
		if slot, last, err = n.slot(i, first); err != nil || index <= last {
			return slot, first, last, err
		}
		if last == n.max {
			return 0, 0, 0, fmt.Errorf("walk maple tree: node %v does not hold %#x: %w", n.addr, index, osi.ErrCorrupt)
		}
		first = last + 1
	}
}
