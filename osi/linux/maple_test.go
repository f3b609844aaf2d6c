package linux

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// mapleWorld builds maple trees as the kernel does: leaves of up to 16 slots
// below nodes of up to 10.
type mapleWorld struct{ *world }

// child is a finished subtree or value of the tree under construction.
type child struct {
	last  uint64
	value arch.GVA // of a slot
	node  arch.GVA // address of the node, 0 for a value
}

func (w mapleWorld) node(kind arch.GVA, children []child, pivotOff, slotOff, pivots int, max uint64) child {
	at := w.alloc()
	for i, c := range children {
		if i < pivots && (i == 0 || c.last != max) { // as the kernel: zero means the rest, but not in the first slot
			w.s.PutUint64(at+arch.GVA(pivotOff+8*i), c.last)
		}
		w.s.PutUint64(at+arch.GVA(slotOff+8*i), uint64(c.value))
		if c.node != 0 {
			w.s.PutUint64(c.node, uint64(at)|uint64(i)<<3|6) // parent, with its slot
		}
	}
	return child{last: children[len(children)-1].last, value: at | kind<<3 | 4, node: at}
}

// tree builds a tree of entries, which must be in order and may leave gaps, and
// returns its root as the kernel stores it. Every node gets width children.
func (w mapleWorld) tree(entries []mapleEntry, width int) arch.GVA {
	var level []child
	next := uint64(0)
	for _, e := range entries {
		if e.first > next {
			level = append(level, child{last: e.first - 1})
		}
		level = append(level, child{last: e.last, value: e.value})
		next = e.last + 1
	}
	level = append(level, child{last: ^uint64(0)})
	for depth := 0; depth == 0 || len(level) > 1; depth++ {
		var up []child
		for len(level) > 0 {
			n := min(width, len(level))
			part := level[:n]
			level = level[n:]
			max := part[n-1].last
			if depth == 0 {
				up = append(up, w.node(mapleLeaf64, part, 8, 128, 15, max))
			} else {
				up = append(up, w.node(mapleARange64, part, 8, 80, 9, max))
			}
		}
		level = up
	}
	root := level[0]
	w.s.PutUint64(root.node, uint64(slab)|1) // a root points to its tree
	return root.value | 2
}

func someEntries(n int) []mapleEntry {
	var out []mapleEntry
	at := uint64(0x400000)
	for i := range n {
		size := uint64(i%3+1) * 0x1000
		out = append(out, mapleEntry{at, at + size - 1, slab + arch.GVA(0x10000+i*256)})
		at += size
		if i%4 == 0 {
			at += 0x5000
		}
	}
	return out
}

func (w mapleWorld) reader() *mapleTree {
	s := w.open()
	return newMapleTree(s.kernel, s.l)
}

func TestMapleTreeListsAndFinds(t *testing.T) {
	for _, n := range []int{0, 1, 5, 14, 200} {
		for _, width := range []int{3, 10} {
			w := mapleWorld{newWorld(t, false)}
			want := someEntries(n)
			root := w.tree(want, width)
			var got []mapleEntry
			if err := w.reader().walk(root, func(e mapleEntry) bool { got = append(got, e); return true }); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(mapleEntry{})); diff != "" {
				t.Errorf("%d entries in nodes of %d: -want +got\n%s", n, width, diff)
			}
			for _, e := range want {
				for _, at := range []uint64{e.first, e.last} {
					if got, ok, err := w.reader().find(root, at); !ok || err != nil || got != e {
						t.Errorf("find(%#x) = %+v, %v, %v, want %+v", at, got, ok, err, e)
					}
				}
			}
			for _, hole := range []uint64{0, 0x3fffff, ^uint64(0)} {
				if got, ok, err := w.reader().find(root, hole); ok || err != nil {
					t.Errorf("find(%#x) = %+v, %v, want none", hole, got, err)
				}
			}
		}
	}
}

func TestMapleFullLeaf(t *testing.T) {
	w := mapleWorld{newWorld(t, false)}
	var want []mapleEntry
	for i := range uint64(16) { // sixteen slots and no gap: no pivot for the last
		want = append(want, mapleEntry{i * 10, i*10 + 9, slab + arch.GVA(i*8+8)})
	}
	want[15].last = ^uint64(0)
	var leaf []child
	for _, e := range want {
		leaf = append(leaf, child{last: e.last, value: e.value})
	}
	root := w.node(mapleLeaf64, leaf, 8, 128, 15, 0)
	w.s.PutUint64(root.node, uint64(slab)|1)
	var got []mapleEntry
	err := w.reader().walk(root.value|2, func(e mapleEntry) bool { got = append(got, e); return true })
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mapleEntry{})); err != nil || diff != "" {
		t.Errorf("%v -want +got\n%s", err, diff)
	}
}

func TestMapleStopsEarly(t *testing.T) {
	w := mapleWorld{newWorld(t, false)}
	root := w.tree(someEntries(100), 5)
	n := 0
	if err := w.reader().walk(root, func(mapleEntry) bool { n++; return n < 7 }); err != nil || n != 7 {
		t.Errorf("%d entries, %v, want 7", n, err)
	}
}

func TestMapleRefusesDamage(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(w mapleWorld, root arch.GVA) arch.GVA
		want   error
	}{
		"a dead node points to itself": {func(w mapleWorld, root arch.GVA) arch.GVA {
			w.s.PutUint64(root&mapleNodeMask, uint64(root&mapleNodeMask))
			return root
		}, osi.ErrTorn},
		"a child of another parent": {func(w mapleWorld, root arch.GVA) arch.GVA {
			kid := arch.GVA(w.s.Uint64(root&mapleNodeMask + 80))
			w.s.PutUint64(kid&mapleNodeMask, uint64(slab)|6)
			return root
		}, osi.ErrTorn},
		"pivots out of order": {func(w mapleWorld, root arch.GVA) arch.GVA {
			w.s.PutUint64(root&mapleNodeMask+16, 1)
			return root
		}, osi.ErrTorn},
		"a node of an unknown type": {func(w mapleWorld, root arch.GVA) arch.GVA {
			return root | 0x78
		}, osi.ErrCorrupt},
		"a root that is a number": {func(mapleWorld, arch.GVA) arch.GVA { return 0x406 }, osi.ErrCorrupt},
		"a root in user memory":   {func(mapleWorld, arch.GVA) arch.GVA { return 0x70000000001a }, osi.ErrCorrupt},
		"a node that is its own child": {func(w mapleWorld, root arch.GVA) arch.GVA {
			node := root & mapleNodeMask
			w.s.PutUint64(node+80, uint64(root))
			return root
		}, osi.ErrTorn},
	} {
		t.Run(name, func(t *testing.T) {
			w := mapleWorld{newWorld(t, false)}
			root := tt.damage(w, w.tree(someEntries(60), 5))
			err := w.reader().walk(root, func(mapleEntry) bool { return true })
			if !errors.Is(err, tt.want) {
				t.Errorf("walk: %v, want %v", err, tt.want)
			}
		})
	}
}

func TestMapleIsBounded(t *testing.T) {
	w := mapleWorld{newWorld(t, false)}
	root := w.tree(someEntries(60), 3)
	r := w.reader()
	r.nodes = 4
	if err := r.walk(root, func(mapleEntry) bool { return true }); !errors.Is(err, osi.ErrCorrupt) {
		t.Errorf("walk of more nodes than allowed: %v, want ErrCorrupt", err)
	}
}

// FuzzMaple fills memory with nodes that the fuzzer made: a walk must end, and
// what it yields must be in order.
func FuzzMaple(f *testing.F) {
	w := mapleWorld{newWorld(f, false)}
	root := w.tree(someEntries(60), 4)
	first, n := slab, int(w.next-slab)
	image := make([]byte, n)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(image[i:], w.s.Uint64(first+arch.GVA(i)))
	}
	f.Add([]byte{}, uint64(root))
	f.Add([]byte{0, 80, 1, 0, 0, 0, 0, 0, 0, 0, 0xff}, uint64(root))
	s := w.open()
	f.Fuzz(func(t *testing.T, patch []byte, root uint64) {
		w.s.Put(first, image)
		for ; len(patch) >= 11; patch = patch[11:] { // three bytes of place, eight of content
			at := (uint64(patch[0])<<16 | uint64(patch[1])<<8 | uint64(patch[2])) % uint64(n-8)
			w.s.Put(first+arch.GVA(at), patch[3:11])
		}
		tree := newMapleTree(s.kernel, s.l)
		tree.nodes = 5000
		last, any := uint64(0), false
		err := tree.walk(arch.GVA(root), func(e mapleEntry) bool {
			if e.last < e.first || any && e.first <= last {
				t.Fatalf("entry %+v behind %#x", e, last)
			}
			last, any = e.last, true
			return true
		})
		if err != nil && !transient(err) {
			t.Fatalf("walk: %v is neither torn nor corrupt", err)
		}
		if e, ok, err := tree.find(arch.GVA(root), 0x402000); ok && (err != nil || e.first > 0x402000 || e.last < 0x402000) {
			t.Fatalf("find = %+v, %v", e, err)
		}
	})
}

var _ = vitrinetest.Page4K
