package qemu

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/host"
)

func TestBlocksOf(t *testing.T) {
	const m = 1 << 20
	got := blocksOf([]host.VMA{
		{Start: 0x1000, End: 0x1000 + 64*m, Perms: "r--p", Path: "/bin/vmm", Inode: 1},      // not written
		{Start: 0x10000000, End: 0x10000000 + 8*m, Perms: "rw-p"},                           // too small
		{Start: 0x20000000, End: 0x20000000 + 16*m, Perms: "rw-p"},                          // with the next one
		{Start: 0x20000000 + 16*m, End: 0x20000000 + 48*m, Perms: "rw-p", Path: "[anon:x]"}, // without a file
		{Start: 0x40000000, End: 0x40000000 + 32*m, Perms: "rw-s", Offset: 32 * m, Dev: "00:01", Inode: 7, Path: "/memfd:ram (deleted)"},
		{Start: 0x50000000, End: 0x50000000 + 32*m, Perms: "rw-s", Dev: "00:01", Inode: 7, Path: "/memfd:ram (deleted)"},
		{Start: 0x60000000, End: 0x60000000 + 40*m, Perms: "rw-s", Dev: "00:01", Inode: 7, Path: "/memfd:ram (deleted)"}, // once more
		{Start: 0x70000000, End: 0x70000000 + 99*m, Perms: "rw-p", Path: "[heap]"},
	})
	want := []Block{
		{Name: "memfd:ram (deleted)", Size: 64 * m, pieces: []blockPiece{{0, 40 * m, 0x60000000}, {40 * m, 24 * m, 0x40000000 + 8*m}}},
		{Name: "0x20000000", Size: 48 * m, pieces: []blockPiece{{0, 16 * m, 0x20000000}, {16 * m, 32 * m, 0x20000000 + 16*m}}},
		{Name: "0x21000000", Size: 32 * m, pieces: []blockPiece{{0, 32 * m, 0x20000000 + 16*m}}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Block{}, blockPiece{})); diff != "" {
		t.Error(diff)
	}
}

// RAM between a thread's stack and other memory is also a block by itself, and
// one with what follows.
func TestBlocksWithinBlocks(t *testing.T) {
	const m = 1 << 20
	got := blocksOf([]host.VMA{
		{Start: 0x10000000, End: 0x10000000 + 8*m, Perms: "rw-p"},
		{Start: 0x10000000 + 8*m, End: 0x10000000 + 72*m, Perms: "rw-p"},
		{Start: 0x10000000 + 72*m, End: 0x10000000 + 80*m, Perms: "rw-p"},
	})
	stack, ram, rest := uint64(0x10000000), uint64(0x10800000), uint64(0x14800000)
	want := []Block{
		{Name: "0x10000000", Size: 80 * m, pieces: []blockPiece{{0, 8 * m, stack}, {8 * m, 64 * m, ram}, {72 * m, 8 * m, rest}}},
		{Name: "0x10800000", Size: 72 * m, pieces: []blockPiece{{0, 64 * m, ram}, {64 * m, 8 * m, rest}}},
		{Name: "0x10800000", Size: 64 * m, pieces: []blockPiece{{0, 64 * m, ram}}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Block{}, blockPiece{})); diff != "" {
		t.Error(diff)
	}
}

func TestProcessBlocks(t *testing.T) {
	if _, err := ProcessBlocks(1<<22 + 1); !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("no process: %v", err)
	}
	if _, err := ProcessBlocks(-1); !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("process -1: %v", err)
	}
	if _, err := ProcessBlocks(os.Getpid()); err != nil {
		t.Error(err)
	}
}

// What a process has of a guest is read at the places that the layout says.
func TestOpenProcess(t *testing.T) {
	e := startQEMU(t, "-m", "64")
	blocks, err := ProcessBlocks(e.cmd.Process.Pid)
	if err != nil || len(blocks) == 0 {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	const half = 32 << 20
	live := e.attach(t, nil)
	found := false
	for i, b := range blocks {
		if b.Size < 2*half {
			continue
		}
		g, err := OpenProcess(e.cmd.Process.Pid, blocks, []Placement{{Start: 0, Size: half, Block: i}, {Start: 4 << 30, Size: half, Block: i, Offset: half}}, &ProcessOptions{CPUs: 3})
		if err != nil {
			t.Fatal(err)
		}
		var low, high, a, z [4096]byte
		_, err1 := g.ReadPhysical(low[:], 0x200000)
		_, err2 := g.ReadPhysical(high[:], 4<<30+0x100000)
		_, err3 := live.ReadPhysical(a[:], 0x200000)
		_, err4 := live.ReadPhysical(z[:], half+0x100000)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Error(err)
		}
		found = found || low == a && high == z
		if g.CPUs() != 3 || g.MemoryBytes() != 2*half {
			t.Errorf("%d processors, %v", g.CPUs(), g.Regions())
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
	if !found {
		t.Error("no block is the guest's RAM")
	}
}
