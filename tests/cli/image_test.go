package cli_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/dump"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/testvm"
	"github.com/vitrine-vmi/vitrine/internal/testvm/vmtest"
	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// questions are asked of a guest and of its images.
func questions(pid int) [][]string {
	p := fmt.Sprint(pid)
	return [][]string{
		{"ps", "--json"}, {"ps", "--threads", "--json"}, {"modules", "--json"}, {"maps", "--json", p}, {"files", "--json", p},
		{"libs", "--json", p}, {"read", "linux_banner", "64"}, {"current", "--json"},
	}
}

// ask puts the target behind the command's name.
func ask(t *testing.T, q []string, target string, more ...string) string {
	t.Helper()
	return mustRun(t, slices.Concat(q[:1], []string{target}, q[1:], more)...)
}

// Images of a guest that stands still tell the same as the guest.
func TestImages(t *testing.T) {
	vm := guest(t)
	pid := vmtest.SpawnWith(t, vm, wire.SpawnArgs{Kind: "threads", Name: "imaged", Args: []string{"3"}, UID: 4321, GID: 77}).PID
	truth := vmtest.Truth(t, vm)
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Cont(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	want := map[string]string{}
	for _, q := range questions(pid) {
		want[strings.Join(q, " ")] = ask(t, q, target(vm))
	}
	same := func(t *testing.T, image string, more ...string) {
		t.Helper()
		all := questions(pid)
		if !strings.HasSuffix(image, "plain") { // the memory is the same: what finds it needs not be asked all
			all = slices.DeleteFunc(all, func(q []string) bool { return !slices.Contains([]string{"ps", "maps", "read", "current"}, q[0]) })
		}
		for _, q := range all {
			if got := ask(t, q, image, more...); got != want[strings.Join(q, " ")] {
				t.Errorf("%v: the guest says\n%s\nits image\n%s", q, want[strings.Join(q, " ")], got)
			}
		}
	}
	dir := t.TempDir()
	elf := filepath.Join(dir, "plain")
	for _, c := range []struct {
		name string
		args map[string]any
	}{
		{"plain", map[string]any{"paging": false}},
		{"paging", map[string]any{"paging": true}},
		{"kdump-zlib", map[string]any{"paging": false, "format": "kdump-zlib"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, c.name)
			c.args["protocol"] = "file:" + path
			if _, err := vm.Execute(t.Context(), "dump-guest-memory", c.args); err != nil {
				t.Fatal(err)
			}
			same(t, path)
			if path != elf {
				os.Remove(path) // they are as large as the guest
			}
		})
	}
	t.Run("truth", func(t *testing.T) { imageIsTrue(t, elf, truth) })
	lime, raw := filepath.Join(dir, "lime"), filepath.Join(dir, "raw")
	convert(t, elf, lime, raw)
	t.Run("lime", func(t *testing.T) { same(t, lime) })
	t.Run("raw", func(t *testing.T) { same(t, raw, "--layout", "flat") })
	testOtherFormats(t, elf, same)
	t.Run("mutated", func(t *testing.T) { mutatedImages(t, elf) })
	t.Run("without BTF", func(t *testing.T) { imageWithoutBTF(t, elf) })
	t.Run("truncated", func(t *testing.T) { truncatedImage(t, elf) })
}

// imageIsTrue compares the processes of an image with what the guest said of
// itself.
func imageIsTrue(t *testing.T, path string, truth *wire.Truth) {
	procs := map[int]event.Process{}
	for _, p := range decode[event.Process](t, mustRun(t, "ps", "--json", path)) {
		procs[p.PID] = p
	}
	seen := 0
	for i := range truth.Procs {
		// A kernel worker is called after what it did last, which changes.
		want := &truth.Procs[i]
		if want.Stable && want.PID != truth.Reporter && !strings.HasPrefix(want.Comm(), "kworker") {
			vmtest.Equal(t, fmt.Sprintf("process %d", want.PID), comparable(procs[want.PID]), expected(want))
			seen++
		}
	}
	if seen < 20 {
		t.Errorf("only %d processes could be compared", seen)
	}
}

// convert writes the memory of an image as LiME and as raw memory with holes.
func convert(t *testing.T, from, lime, raw string) {
	t.Helper()
	g, err := dump.Open(t.Context(), from, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	l, err := os.Create(lime)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, reg := range g.Regions() {
		head := append([]byte("EMiL"), 1, 0, 0, 0)
		for _, v := range []uint64{uint64(reg.Start), uint64(reg.End()) - 1, 0} {
			head = binary.LittleEndian.AppendUint64(head, v)
		}
		if _, err := l.Write(head); err != nil {
			t.Fatal(err)
		}
		copyRegion(t, g, reg, l, r)
	}
}

// copyRegion appends a region to l, and puts what of it is not zero into r.
func copyRegion(t *testing.T, g *vitrine.Guest, reg vitrine.Region, l io.Writer, r io.WriterAt) {
	t.Helper()
	if uint64(reg.End()) > 4<<30 { // firmware at its end, which is no part of flat RAM
		r = discard{}
	}
	buf := make([]byte, 64<<10)
	for a := reg.Start; a < reg.End(); a += 64 << 10 {
		p := buf[:min(len(buf), int(reg.End()-a))]
		if _, err := g.ReadPhysical(p, a); err != nil {
			t.Fatal(err)
		}
		_, err := l.Write(p)
		if err == nil && slices.ContainsFunc(p, func(c byte) bool { return c != 0 }) {
			_, err = r.WriteAt(p, int64(a))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// truncatedImage checks that an image without its second half is an answer or an
// error, at once.
func truncatedImage(t *testing.T, path string) {
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []int64{2, 20, 200, 200000} {
		if err := os.Truncate(path, fi.Size()/part); err != nil {
			t.Fatal(err)
		}
		r := run(t, "ps", path)
		if r.status == 0 && r.stdout == "" || r.status != 0 && !strings.Contains(r.stderr, "vitrine:") {
			t.Errorf("1/%d of an image: status %d\n%s", part, r.status, r.stderr)
		}
		if r.status != 0 && part <= 200 && !strings.Contains(r.stderr, "cut off") {
			t.Errorf("1/%d of an image: not said to be cut off:\n%s", part, r.stderr)
		}
	}
}

// A guest in its firmware has no operating system, and its image neither.
func TestImageOfFirmware(t *testing.T) {
	vm := vmtest.Boot(t, &testvm.Options{Firmware: true, Memory: 64})
	path := filepath.Join(t.TempDir(), "image")
	if _, err := vm.Execute(t.Context(), "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + path}); err != nil {
		t.Fatal(err)
	}
	if r := run(t, "ps", path); r.status != 4 || !strings.Contains(r.stderr, "no operating system has started") {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}
