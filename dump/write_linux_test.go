package dump

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// The core of an image's guest is the same guest.
func TestWriteReadsBackTheSame(t *testing.T) {
	for _, name := range []string{"kdump-zlib", "elf64", "avml"} {
		g := openBytes(t, samples()[name], nil)
		path := filepath.Join(t.TempDir(), "core")
		var last, total uint64
		r, err := Write(t.Context(), g, path, &WriteOptions{
			Info: []byte(info), Mappings: []Mapping{{Virtual: 0xffff888000000000, Physical: 0x2000, Size: 1 << 30}},
			Progress: func(d, n uint64) { last, total = d, n },
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ram := (ramPieces[0][1] + ramPieces[1][1]) * arch.PageSize
		if r.Memory != ram || last != ram || total != ram || r.Missing != 0 || r.Stored != ram/4*3 {
			t.Errorf("%s: %+v of %d bytes, progress %d of %d", name, r, ram, last, total)
		}
		sameGuest(t, name, g, path)
	}
}

// A core of an arm64 guest has its processors' general registers, as QEMU's own
// cores have them.
func TestWriteOfARM64(t *testing.T) {
	b := vitrinetest.New()
	want := make([]arch.Registers, 2)
	for cpu := range want {
		a := &want[cpu].ARM64
		a.On, a.SP, a.PC, a.PSTATE = true, 0xffff800008000000, 0xffffdbd1e11a8f5c+uint64(cpu), 0x400000c5
		for i := range a.X {
			a.X[i] = uint64(1000*cpu + i)
		}
	}
	b.SetRegisters(want...)
	b.PutPhysical(0x1000, []byte("in the first page but one"))
	g := vitrine.New(b, vitrine.Info{Arch: arch.ARM64, CPUs: 2, Live: true})
	path := filepath.Join(t.TempDir(), "core")
	if _, err := Write(t.Context(), g, path, nil); err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Arch() != arch.ARM64 || c.CPUs() != 2 {
		t.Errorf("%d processors of %v", c.CPUs(), c.Arch())
	}
	for cpu := range want {
		if got, err := c.Registers(t.Context(), cpu); err != nil || *got != want[cpu] {
			t.Errorf("processor %d: %+v, %v; want %+v", cpu, got, err, want[cpu])
		}
	}
	var got [25]byte
	if _, err := c.ReadPhysical(got[:], 0x1000); err != nil || string(got[:]) != "in the first page but one" {
		t.Errorf("memory is %q, %v", got, err)
	}
	if r, ok := parsePRStatusARM(make([]byte, statusARM-1)); ok {
		t.Errorf("registers of half a note: %+v", r)
	}
}

// sameGuest checks that the core at path says what g says.
func sameGuest(t *testing.T, name string, g *vitrine.Guest, path string) {
	t.Helper()
	c, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	defer c.Close()
	if diff := cmp.Diff(g.Regions(), c.Regions()); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
	for _, p := range ramPieces {
		got := make([]byte, p[1]*arch.PageSize)
		if _, err := c.ReadPhysical(got, arch.GPA(p[0]*arch.PageSize)); err != nil || !bytes.Equal(got, piece(p)) {
			t.Errorf("%s: frames from %d on differ: %v", name, p[0], err)
		}
	}
	if string(c.VMCoreInfo()) != info {
		t.Errorf("%s: VMCOREINFO %q", name, c.VMCoreInfo())
	}
	for cpu := range g.CPUs() {
		want, err1 := g.Registers(t.Context(), cpu)
		got, err2 := c.Registers(t.Context(), cpu)
		if diff := cmp.Diff(want, got); diff != "" || (err1 == nil) != (err2 == nil) {
			t.Errorf("%s: processor %d: %v, %v\n%s", name, cpu, err1, err2, diff)
		}
	}
}

func TestWriteOverwritesNothing(t *testing.T) {
	g := openBytes(t, buildELF(true), nil)
	dir := t.TempDir()
	for _, there := range []string{"core", "core2.part"} {
		if err := os.WriteFile(filepath.Join(dir, there), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"core", "core2"} {
		if _, err := Write(t.Context(), g, filepath.Join(dir, name), nil); !errors.Is(err, ErrExists) {
			t.Errorf("%s: %v", name, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
}

// A write that is broken off leaves a part that is no core, and is gone on with.
func TestWriteResumes(t *testing.T) {
	b := newBig(t)
	g := vitrine.New(b, vitrine.Info{Arch: arch.AMD64, CPUs: 1, Backend: "test", Live: true})
	path := filepath.Join(t.TempDir(), "core")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Write(ctx, g, path, &WriteOptions{Progress: func(done, _ uint64) {
		if done >= 3*chunk {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a broken-off write has left a file of the name")
	}
	if _, err := Open(t.Context(), path+partSuffix, nil); !errors.Is(err, ErrFormat) {
		t.Errorf("its part is taken for an image: %v", err)
	}
	b.mem[5000] ^= 0xff // in what was written already
	clear(b.mem[arch.PageSize : 2*arch.PageSize])
	r, err := Write(t.Context(), g, path, &WriteOptions{Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Kept != 3*chunk-2*arch.PageSize+arch.PageSize && r.Kept == 0 {
		t.Errorf("%+v", r)
	}
	c, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, len(b.mem))
	if _, err := c.ReadPhysical(got, 0); err != nil || !bytes.Equal(got, b.mem) {
		t.Errorf("resumed core differs: %v", err)
	}
}

// big is a guest of some MiB that are no zeros.
type big struct{ mem []byte }

func newBig(t *testing.T) *big {
	t.Helper()
	return &big{mem: bytes.Repeat([]byte("0123456789abcdef"), 5*chunk/16+256)}
}

func (b *big) ReadPhysical(p []byte, a arch.GPA) (int, error) {
	n := copy(p, b.mem[min(uint64(a), uint64(len(b.mem))):])
	if n < len(p) {
		return n, &vitrine.PhysicalError{Addr: a + arch.GPA(n)}
	}
	return n, nil
}
func (b *big) Regions() []vitrine.Region { return []vitrine.Region{{Size: uint64(len(b.mem))}} }
func (b *big) Close() error              { return nil }

// A full disk is an error that leaves no file that looks whole.
func TestWriteToFullDisk(t *testing.T) {
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limited := old
	limited.Cur = 2 * chunk
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limited); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "core")
	b := newBig(t)
	g := vitrine.New(b, vitrine.Info{Arch: arch.AMD64, CPUs: 1, Backend: "test"})
	_, err := Write(t.Context(), g, path, nil)
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); rerr != nil {
		t.Fatal(rerr)
	}
	if !errors.Is(err, syscall.EFBIG) {
		t.Errorf("write beyond the limit: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a failed write has left a file of the name")
	}
	if _, err := Write(t.Context(), g, path, &WriteOptions{Resume: true}); err != nil {
		t.Errorf("resume: %v", err)
	}
}

// What an image lacks is zero in its core, and told.
func TestWriteOfAnImageWithHoles(t *testing.T) {
	g := openBytes(t, buildKDump(true, pageZlib, packZlib, 31, func(f uint64) bool { return f == 5 || f == 6 }), nil)
	path := filepath.Join(t.TempDir(), "core")
	r, err := Write(t.Context(), g, path, nil)
	if err != nil || r.Missing != 2*arch.PageSize {
		t.Fatalf("%+v, %v", r, err)
	}
	c, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got [arch.PageSize]byte
	if _, err := c.ReadPhysical(got[:], 5*arch.PageSize); err != nil || !isZero(got[:]) {
		t.Errorf("missing page: %v", err)
	}
	if _, err := c.ReadPhysical(got[:], 7*arch.PageSize); err != nil || !bytes.Equal(got[:], page(7)) {
		t.Errorf("page behind it: %v", err)
	}
}
