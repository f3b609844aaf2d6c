package cli_test

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
)

// Makers of images that QEMU does not make, of the memory in one of its cores.

var le = binary.LittleEndian

// core is a core of QEMU's.
type core struct {
	ram   []*elf.Prog // without what lies above 4 GiB: firmware
	notes []byte
}

func openCore(t *testing.T, path string) *core {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	c := &core{}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Paddr+p.Filesz <= 4<<30 {
			c.ram = append(c.ram, p)
		}
		if p.Type == elf.PT_NOTE {
			if c.notes, err = io.ReadAll(p.Open()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

const kdumpBlock = 4096

// pages calls f for each page that is not zero.
func (c *core) pages(t *testing.T, f func(frame uint64, p []byte)) {
	t.Helper()
	p, zero := make([]byte, kdumpBlock), make([]byte, kdumpBlock)
	for _, r := range c.ram {
		in := bufio.NewReaderSize(r.Open(), 1<<20)
		for at := uint64(0); at+kdumpBlock <= r.Filesz; at += kdumpBlock {
			if _, err := io.ReadFull(in, p); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, zero) {
				f((r.Paddr+at)/kdumpBlock, p)
			}
		}
	}
}

// writeKDump writes a kdump file as makedumpfile does (its IMPLEMENTATION
// document; struct disk_dump_header), each page compressed by pack, which is
// known by flag. Pages of zeros are left out, as by level 1.
func writeKDump(t *testing.T, c *core, path string, flag uint32, pack func([]byte) []byte) {
	t.Helper()
	var frames, count uint64
	for _, r := range c.ram {
		frames = max(frames, (r.Paddr+r.Filesz)/kdumpBlock)
	}
	maps := make([]byte, (frames/8+kdumpBlock)/kdumpBlock*kdumpBlock*2)
	for _, r := range c.ram {
		for f := r.Paddr / kdumpBlock; f < (r.Paddr+r.Filesz)/kdumpBlock; f++ {
			maps[f/8] |= 1 << (f % 8)
		}
	}
	stored := maps[len(maps)/2:]
	c.pages(t, func(f uint64, _ []byte) {
		stored[f/8] |= 1 << (f % 8)
		count++
	})
	head := kdumpHead(frames, uint32(len(maps)/kdumpBlock), c.notes)
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	const desc = 24
	at := uint64(len(head)+len(maps)) + desc*count
	descs := bytes.NewBuffer(append(head, maps...))
	if _, err := out.Seek(int64(at), io.SeekStart); err != nil {
		t.Fatal(err)
	}
	data := bufio.NewWriterSize(out, 1<<20)
	c.pages(t, func(_ uint64, p []byte) {
		q := pack(p)
		d := le.AppendUint32(le.AppendUint64(nil, at), uint32(len(q)))
		descs.Write(le.AppendUint64(le.AppendUint32(d, flag), 0))
		if _, err := data.Write(q); err != nil {
			t.Fatal(err)
		}
		at += uint64(len(q))
	})
	if err := data.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.WriteAt(descs.Bytes(), 0); err != nil {
		t.Fatal(err)
	}
}

// kdumpHead makes the header of a file of 64-bit kernels, in blocks.
func kdumpHead(frames uint64, mapBlocks uint32, notes []byte) []byte {
	head := make([]byte, kdumpBlock)
	copy(head, "KDUMP   ")
	le.PutUint32(head[8:], 6)
	copy(head[12+4*65:], "x86_64")
	subBlocks := (512+len(notes))/kdumpBlock + 1
	for i, v := range []uint32{0, kdumpBlock, uint32(subBlocks), mapBlocks, uint32(frames), 0, 0, 0, 0, 2} {
		le.PutUint32(head[424+4*i:], v)
	}
	sub := make([]byte, subBlocks*kdumpBlock)
	le.PutUint32(sub[8:], 1)               // level: no zeros
	le.PutUint64(sub[48:], kdumpBlock+512) // where notes are
	le.PutUint64(sub[56:], uint64(len(notes)))
	le.PutUint64(sub[96:], frames)
	copy(sub[512:], notes)
	return append(head, sub...)
}

// packLZO makes a valid LZO1X stream that compresses nothing: one run of
// literals and the end mark. Its compressor is under the GPL.
func packLZO(p []byte) []byte {
	out, n := []byte{0}, len(p)-3-15
	for ; n > 255; n -= 255 {
		out = append(out, 0)
	}
	out = append(append(out, byte(n)), p...)
	return append(out, 0x11, 0, 0)
}

// packZstd returns a compressor.
func packZstd(t *testing.T) func([]byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return func(p []byte) []byte { return z.EncodeAll(p, nil) }
}

// writeAVML writes memory as AVML does: LiME's header of version 2, a stream of
// Snappy's frames and its length, for each range.
func writeAVML(t *testing.T, c *core, path string) {
	t.Helper()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, r := range c.ram {
		head := append([]byte("AVML"), 2, 0, 0, 0)
		for _, v := range []uint64{r.Paddr, r.Paddr + r.Filesz - 1, 0} {
			head = le.AppendUint64(head, v)
		}
		start, err := out.Seek(0, io.SeekCurrent)
		if err == nil {
			_, err = out.Write(head)
		}
		z := snappy.NewBufferedWriter(out)
		if err == nil {
			_, err = io.Copy(z, r.Open())
		}
		if err == nil {
			err = z.Close()
		}
		end, err2 := out.Seek(0, io.SeekCurrent)
		if err == nil {
			_, err = out.Write(le.AppendUint64(nil, uint64(end-start)-32))
		}
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
	}
}

// testOtherFormats asks images in the formats that QEMU 7.2 does not write.
func testOtherFormats(t *testing.T, elf string, same func(t *testing.T, image string, more ...string)) {
	c := openCore(t, elf)
	dir := t.TempDir()
	try := func(name string, write func(t *testing.T, path string)) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			write(t, path)
			same(t, path)
			os.Remove(path)
		})
	}
	for name, f := range map[string]struct {
		flag uint32
		pack func([]byte) []byte
	}{"kdump-lzo": {2, packLZO}, "kdump-snappy": {4, func(p []byte) []byte { return snappy.Encode(nil, p) }}, "kdump-zstd": {0x20, packZstd(t)}} {
		try(name, func(t *testing.T, path string) { writeKDump(t, c, path, f.flag, f.pack) })
	}
	try("avml", func(t *testing.T, path string) { writeAVML(t, c, path) })
	if _, err := exec.LookPath("makedumpfile"); err != nil {
		t.Log("not compared with makedumpfile, which is not installed")
		return
	}
	own := filepath.Join(dir, "own") // it wants the kernel's notes
	mustRun(t, "dump", elf, "-o", own)
	for name, flags := range map[string][]string{"made-zlib": {"-c"}, "made-lzo": {"-l"}, "made-snappy": {"-p"}, "made-zstd": {"-z"}, "made-flat": {"-c", "-F"}} {
		try(name, func(t *testing.T, path string) { makedumpfile(t, flags, own, path) })
	}
}

// makedumpfile converts a core; with -F it writes to its standard output.
func makedumpfile(t *testing.T, flags []string, core, path string) {
	t.Helper()
	args := slices.Concat(flags, []string{"-d", "0", core})
	c := exec.CommandContext(t.Context(), "makedumpfile")
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	if slices.Contains(flags, "-F") {
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		c.Stdout = out
	} else {
		args = append(args, path)
	}
	c.Args = append(c.Args, args...)
	if err := c.Run(); err != nil {
		t.Errorf("makedumpfile %q: %v: %.300s", args, err, said.String())
	}
}
