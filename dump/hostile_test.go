package dump

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// mutations returns how many mutated images of each format are tried.
func mutations(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("VITRINE_TEST_MUTATIONS")); err == nil && n > 0 {
		return n
	}
	if testing.Short() {
		return 20
	}
	return 200
}

// Limits that every image has to be opened and read within.
const (
	hostileTime = 5 * time.Second
	hostileHeap = 512 << 20
)

// tryInTime tries an image, and again if that took long: on a busy host it may by
// chance. It returns the shortest time that it took.
func tryInTime(t *testing.T, path, name string) (ok bool, took time.Duration) {
	t.Helper()
	took = time.Hour
	for n := 0; n < 4 && took > hostileTime; n++ {
		began := time.Now()
		ok = try(t, path, name)
		took = min(took, time.Since(began))
	}
	return ok, took
}

func TestMutatedImages(t *testing.T) {
	n := mutations(t)
	for name, p := range samples() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			rng := rand.New(rand.NewPCG(uint64(n), uint64(len(name))))
			opened := 0
			for i := range n {
				q := mutate(rng, p)
				if err := os.WriteFile(path, q, 0o600); err != nil {
					t.Fatal(err)
				}
				ok, took := tryInTime(t, path, name)
				if ok {
					opened++
				}
				if took > hostileTime {
					t.Errorf("mutation %d took %v", i, took)
				}
			}
			t.Logf("%d of %d mutated images could be opened", opened, n)
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if m.Sys > hostileHeap {
				t.Errorf("%d MiB of memory taken", m.Sys>>20)
			}
		})
	}
}

// try opens and reads an image, and reports whether it could be opened.
func try(t testing.TB, path, name string) bool {
	g, err := Open(context.Background(), path, optionsFor(name))
	if (err == nil) != (g != nil) {
		t.Fatalf("guest %v and error %v", g, err)
	}
	if err != nil {
		return false
	}
	touch(g)
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	return true
}

// mutate damages an image: flipped bits, numbers made huge, pieces overwritten,
// moved, cut off. Headers are hit more often than the rest.
func mutate(rng *rand.Rand, p []byte) []byte {
	q := append([]byte(nil), p...)
	for range 1 + rng.IntN(6) {
		if len(q) == 0 {
			break
		}
		at := rng.IntN(len(q))
		switch rng.IntN(3) {
		case 0:
			at = rng.IntN(min(len(q), 1200))
		case 1:
			at = min(at, rng.IntN(min(len(q), 20000)))
		}
		rest := q[at:]
		switch rng.IntN(8) {
		case 0, 1:
			rest[0] ^= 1 << rng.IntN(8)
		case 2:
			rest[0] = byte(rng.Uint32())
		case 3:
			for i := range min(8, len(rest)) {
				rest[i] = 0xff
			}
		case 4:
			clear(rest[:min(len(rest), 1+rng.IntN(64))])
		case 5:
			if len(rest) >= 8 {
				le.PutUint64(rest, uint64(1)<<rng.IntN(64))
			}
		case 6:
			copy(rest[:min(len(rest), rng.IntN(4096))], q[rng.IntN(len(q)):])
		case 7:
			if rng.IntN(3) == 0 {
				q = q[:at]
			}
		}
	}
	return q
}

// A file that claims much and is long enough for it, without taking any disk.
func TestSparseImages(t *testing.T) {
	for name, p := range samples() {
		path := write(t, p)
		if err := os.Truncate(path, 1<<40); err != nil {
			t.Skipf("skipped: %v; it runs on a file system with sparse files", err)
		}
		if _, took := tryInTime(t, path, name); took > hostileTime {
			t.Errorf("%s: a sparse image of a terabyte took %v", name, took)
		}
	}
}

// Holes of a file are skipped by who looks through all memory.
func TestHoles(t *testing.T) {
	path := write(t, nil)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size, data = 1 << 40, 1 << 39
	if _, err := f.WriteAt([]byte("data"), data); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Skipf("skipped: %v; it runs on a file system with sparse files", err)
	}
	g, err := Open(t.Context(), path, &Options{Layout: Layout{{Start: 0x1000}}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if at := g.NextData(0x1000); at > data+0x1000 || at < 0x1000 {
		t.Errorf("first data at %v, want at most %#x", at, uint64(data+0x1000))
	}
	if at := g.NextData(data + 0x1000); at != data+0x1000 {
		t.Errorf("data at %v", at)
	}
	if at := g.NextData(1 << 50); at != 1<<50 {
		t.Errorf("where there is no memory: %v", at)
	}
}

// A file that shrinks while it is open is an error, not the end of the process.
func TestShrinkingImage(t *testing.T) {
	path := write(t, buildELF(true))
	g, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	n, err := g.ReadPhysical(make([]byte, 64), wantRegions[1].Start)
	if err == nil || n != 0 || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("read of what is gone: %d, %v", n, err)
	}
}

// fuzz opens whatever comes, as the named format.
func fuzz(f *testing.F, prefix string) {
	for name, p := range samples() {
		if strings.HasPrefix(name, prefix) {
			f.Add(p)
		}
	}
	path := filepath.Join(f.TempDir(), "image")
	f.Fuzz(func(t *testing.T, p []byte) {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		try(t, path, prefix)
	})
}

func FuzzELF(f *testing.F)     { fuzz(f, "elf") }
func FuzzKDump(f *testing.F)   { fuzz(f, "kdump") }
func FuzzLiME(f *testing.F)    { fuzz(f, "lime") }
func FuzzAVML(f *testing.F)    { fuzz(f, "avml") }
func FuzzRaw(f *testing.F)     { fuzz(f, "raw") }
func FuzzWindows(f *testing.F) { fuzz(f, "windows") }
