package cli_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/dump"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Limits that each mutated image has to be listed within.
const (
	mutatedTime = 5 * time.Second
	mutatedHeap = 512 << 20
)

// mutatedImages damages the image of a guest again and again, where the kernel's
// image, its page tables and the records of processes are, and lists the
// processes: a list or an error, at once. The image is as before afterwards.
func mutatedImages(t *testing.T, path string) {
	n := 40
	if v, err := strconv.Atoi(os.Getenv("VITRINE_TEST_MUTATIONS")); err == nil && v > 0 {
		n = v
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	places := telling(t, path)
	rng := rand.New(rand.NewPCG(uint64(n), 7))
	understood, entries := 0, 0
	var slowest time.Duration
	for i := range n {
		undo := damage(t, rng, f, places)
		took := time.Hour // on a busy host one try may take long by chance
		listed := 0
		for again := 0; again < 4 && took > mutatedTime; again++ {
			began := time.Now()
			listed = listImage(t, path)
			took = min(took, time.Since(began))
		}
		if listed > 0 {
			understood++
			entries += listed
		}
		slowest = max(slowest, took)
		if took > mutatedTime {
			t.Errorf("mutation %d took %v", i, took)
		}
		undo()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.Sys > mutatedHeap {
		t.Errorf("%d MiB of memory taken", m.Sys>>20)
	}
	t.Logf("%d of %d mutated images had processes, %d in all; the slowest took %v; %d MiB of memory", understood, n, entries, slowest, m.Sys>>20)
	if understood < n/4 {
		t.Error("that is too few to have tried much")
	}
}

// piece is a part of a file where damage tells.
type piece struct{ off, size int64 }

// openImage opens an image by the library and describes its kernel.
func openImage(t *testing.T, path string) (*vitrine.Guest, *kernel.Kernel) {
	t.Helper()
	g, err := dump.Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Describe(t.Context(), g, nil)
	if err != nil {
		g.Close()
		t.Fatal(err)
	}
	return g, k
}

// telling returns pieces of an image: its headers, the kernel's image, a page
// table, and what is around the records of processes.
func telling(t *testing.T, path string) []piece {
	t.Helper()
	c := openCore(t, path)
	g, k := openImage(t, path)
	defer g.Close()
	sys, err := osi.Open(t.Context(), g, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []piece
	add := func(gpa uint64, size int64) {
		for _, r := range c.ram {
			if gpa >= r.Paddr && gpa+uint64(size) <= r.Paddr+r.Filesz {
				out = append(out, piece{int64(r.Off + gpa - r.Paddr), size})
			}
		}
	}
	tasks := 0
	for h, err := range sys.ProcessHandles(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if pa, err := k.AddressSpace().Translate(h.Task); err == nil {
			add(uint64(pa), 4096)
			tasks++
		}
	}
	base, end := k.Image()
	for range max(tasks/2, 1) { // each kind of place is hit about as often
		out = append(out, piece{0, 4096})
		add(uint64(k.PhysBase()), int64(end-base)&^4095)
		add(uint64(k.AddressSpace().Root()), 4096)
	}
	return out
}

// damage changes some bytes of f and returns what undoes it.
func damage(t *testing.T, rng *rand.Rand, f *os.File, places []piece) (undo func()) {
	t.Helper()
	where := func() int64 {
		p := places[rng.IntN(len(places))]
		return p.off + rng.Int64N(p.size)&^7
	}
	var undos []func()
	for range 1 + rng.IntN(6) {
		at := where()
		old := make([]byte, 8)
		if rng.IntN(8) == 0 {
			old = make([]byte, 4096)
			at &^= 4095
		}
		if _, err := f.ReadAt(old, at); err != nil {
			t.Fatal(err)
		}
		p := bytes.Clone(old)
		switch rng.IntN(6) {
		case 0:
			p[rng.IntN(len(p))] ^= 1 << rng.IntN(8)
		case 1:
			le.PutUint64(p, ^uint64(0))
		case 2:
			clear(p)
		case 3:
			le.PutUint64(p, uint64(1)<<rng.IntN(64))
		default: // a number that means something elsewhere: pointers lead where they should not
			if _, err := f.ReadAt(p, where()&^int64(len(p)-1)); err != nil {
				t.Fatal(err)
			}
		}
		put := func(p []byte) {
			if _, err := f.WriteAt(p, at); err != nil {
				t.Fatal(err)
			}
		}
		put(p)
		undos = append(undos, func() { put(old) })
	}
	return func() {
		for i := len(undos) - 1; i >= 0; i-- {
			undos[i]()
		}
	}
}

// listImage lists the processes of an image as ps does, and returns how many
// there were.
func listImage(t *testing.T, path string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g, err := dump.Open(ctx, path, nil)
	if err != nil {
		return 0
	}
	defer g.Close()
	k, err := kernel.Describe(ctx, g, nil)
	if err != nil {
		return 0
	}
	sys, err := osi.Open(ctx, g, k, nil)
	if err != nil {
		return 0
	}
	n := 0
	for p, err := range sys.Processes(ctx) {
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a list has no end: %v", err)
		}
		if p.ID != "" {
			n++
		}
	}
	return n
}
