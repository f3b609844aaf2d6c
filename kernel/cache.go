package kernel

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/kallsyms"
)

// hint is the content of a cache file: where a kernel of one build keeps its
// symbol table. It holds no fact. The table itself is read from the guest and
// checked as if it had been searched for, so a wrong or hostile hint costs
// time and nothing else, and one guest cannot tell lies about another.
type hint struct {
	Format  int    `json:"format"`
	BuildID string `json:"build_id"`
	Release string `json:"release"` // for who looks into the folder
	Start   uint64 `json:"kallsyms_start"`
	End     uint64 `json:"kallsyms_end"`    // both in bytes from the kernel's base
	Tokens  uint64 `json:"token_table"`     // likewise
	Sum     uint32 `json:"token_table_sum"` // CRC-32 of tokenBytes bytes there, to tell builds apart quickly
}

// tokenBytes is how much of a token table is summed up, its index included.
const tokenBytes = 1024

const (
	hintFormat  = 1
	hintSuffix  = ".kernel.json"
	maxHintFile = 4 << 10
	maxHints    = 64 // files looked at, the newest first
	maxTable    = 64 << 20
)

// readHints returns the hints of a cache folder, the last used first. Files that
// make no sense are left out.
func readHints(dir string) []hint {
	entries, err := os.ReadDir(dir)
	if dir == "" || err != nil {
		return nil
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), hintSuffix) {
			continue
		}
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && fi.Size() <= maxHintFile {
			files = append(files, fi)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var out []hint
	for _, fi := range files[:min(len(files), maxHints)] {
		if h, err := readHint(filepath.Join(dir, fi.Name())); err == nil {
			out = append(out, h)
		}
	}
	return out
}

func readHint(path string) (hint, error) {
	var h hint
	b, err := os.ReadFile(path)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("read cache file: %w", err)
	}
	if h.Format != hintFormat || filepath.Base(path) != h.BuildID+hintSuffix ||
		h.Start >= h.End || h.Tokens < h.Start || h.Tokens+tokenBytes > h.End || h.End-h.Start > maxTable || h.End > uint64(imageHigh-imageLow) {
		return h, errors.New("read cache file: makes no sense")
	}
	return h, nil
}

// writeHint stores a hint under its build id, all of it or nothing.
func writeHint(dir string, h hint) error {
	if id, err := hex.DecodeString(h.BuildID); err != nil || len(id) == 0 {
		return fmt.Errorf("write cache file: build id %q is not hexadecimal", h.BuildID)
	}
	b, err := json.MarshalIndent(h, "", "\t")
	if err != nil {
		return fmt.Errorf("write cache file: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write cache file: %w", err)
	}
	f, err := os.CreateTemp(dir, "new-*")
	if err != nil {
		return fmt.Errorf("write cache file: %w", err)
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write cache file: %w", err)
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, h.BuildID+hintSuffix)); err != nil {
		return fmt.Errorf("write cache file: %w", err)
	}
	return nil
}

// findByHint reads the symbol table from where a hint says that it is.
func (f *found) findByHint(hints []hint) bool {
	for _, h := range hints {
		if sum, err := f.tokenSum(arch.GVA(h.Tokens)); err != nil || sum != h.Sum {
			continue
		}
		start, end := f.image.base()+arch.GVA(h.Start).Page(), f.image.base()+arch.GVA(h.End)
		r, ok := f.image.part(start, uint64(end-start))
		if !ok {
			continue
		}
		p, _ := f.image.bytes(r, nil)
		t, err := kallsyms.Find(p, uint64(r.va), uint64(f.image.base()))
		if err == nil && f.checkTable(t) == nil {
			f.took(t, r)
			f.hint = h
			return true
		}
	}
	return false
}

// tokenSum returns the sum of the token table at off from the base.
func (f *found) tokenSum(off arch.GVA) (uint32, error) {
	r, ok := f.image.part(f.image.base()+off, tokenBytes)
	if !ok {
		return 0, errNoImage
	}
	p, _ := f.image.bytes(r, nil)
	return crc32.ChecksumIEEE(p), nil
}

// part returns the piece of a run from va on, n bytes long.
func (im *image) part(va arch.GVA, n uint64) (run, bool) {
	for _, r := range im.runs {
		if va >= r.va && va < r.end() && n <= uint64(r.end()-va) {
			r.pa += arch.GPA(va - r.va)
			r.va, r.size = va, n
			return r, true
		}
	}
	return run{}, false
}

// took keeps a symbol table that was found in r.
func (f *found) took(t *kallsyms.Table, r run) {
	start, end := t.Layout().Extent()
	f.table = t
	f.start = r.va + arch.GVA(start) - f.image.base()
	f.end = r.va + arch.GVA(end) - f.image.base()
	f.tokens = r.va + arch.GVA(t.Layout().Tokens) - f.image.base()
}

// saveHint writes what was found to the cache folder, where that is new.
func (d *describer) saveHint(k *Kernel, f *found) {
	if d.opts.CacheDir == "" || k.buildID == "" {
		return
	}
	sum, err := f.tokenSum(f.tokens)
	h := hint{Format: hintFormat, BuildID: k.buildID, Release: k.release,
		Start: uint64(f.start), End: uint64(f.end), Tokens: uint64(f.tokens), Sum: sum}
	if err != nil || h == f.hint {
		return
	}
	if err := writeHint(d.opts.CacheDir, h); err != nil {
		k.lacks("cache: " + err.Error())
	}
}
