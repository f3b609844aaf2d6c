package app

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/qemu"
)

func TestNoGuestInAProcess(t *testing.T) {
	// Not this process: tests put kernels' notes into its memory.
	other := exec.Command("sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	if _, err := attachVMM(t.Context(), other.Process.Pid); !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("a process without a guest: %v", err)
	}
	if _, err := attachVMM(t.Context(), 1<<22+1); !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("no process: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := attachVMM(ctx, os.Getpid()); err == nil {
		t.Error("an ended context is no error")
	}
}

// The kernel's list of RAM makes the layout exact, whatever was guessed.
func TestFitOfLayouts(t *testing.T) {
	const g = 1 << 30
	ram := func(pairs ...uint64) (m ramMap) {
		for i := 0; i < len(pairs); i += 2 {
			m = append(m, vitrine.Region{Start: arch.GPA(pairs[i]), Size: pairs[i+1] - pairs[i]})
		}
		return m
	}
	for name, tt := range map[string]struct {
		blocks []uint64
		ram    ramMap
		want   layout
	}{
		"all below 4 GiB":  {[]uint64{g}, ram(0, 0x9fc00, 0x100000, g-0x20000), layout{{Size: g}}},
		"one block, split": {[]uint64{5 * g}, ram(0, 0x9fc00, 0x100000, 3*g-0x20000, 4*g, 6*g), layout{{Size: 3 * g}, {Start: 4 * g, Size: 2 * g, Offset: 3 * g}}},
		"two blocks": {[]uint64{3 * g, 2 * g}, ram(0, 0x9fc00, 0x100000, 3*g, 4*g, 6*g),
			layout{{Size: 3 * g}, {Start: 4 * g, Size: 2 * g, Block: 1}}},
		"more RAM than there is": {[]uint64{g}, ram(0, 2*g), nil},
	} {
		v := &vmm{}
		for _, size := range tt.blocks {
			v.blocks = append(v.blocks, qemu.Block{Size: size})
		}
		got := v.fit(layout{{Size: tt.blocks[0]}}, tt.ram)
		if len(got) == 0 && tt.want == nil {
			continue
		}
		if len(got) == 0 || !cmp.Equal(tt.want, got[0]) {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestLayoutsTryEverySplit(t *testing.T) {
	v := &vmm{blocks: []qemu.Block{{Size: 5 << 30}, {Size: 1 << 30}}}
	all := v.layouts()
	seen := map[uint64]bool{}
	for _, l := range all {
		end := arch.GPA(0)
		for _, p := range l {
			if p.Start < end || p.Size == 0 || p.Offset+p.Size > v.blocks[p.Block].Size {
				t.Errorf("layout %+v overlaps or leaves its block", l)
			}
			end = p.Start + arch.GPA(p.Size)
		}
		seen[l[0].Size] = true
	}
	for _, s := range splits {
		if !seen[s] {
			t.Errorf("split at %#x is not tried", s)
		}
	}
}
