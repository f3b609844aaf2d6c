//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// textKeeper holds a copy of the kernel's own text, read through /proc/kcore, to prove later that nobody changed it.
//
// Kernel text changes by itself at the sites of jump labels (static keys) and static calls: their tables are read, and
// a difference there is counted but not reported as foreign.
type textKeeper struct {
	// mu guards the rest.
	mu    sync.Mutex
	syms  []symbol // text symbols in address order
	start uint64
	copy  []byte
	own   []bool // bytes that the kernel may patch itself
	count int
}

type symbol struct {
	addr uint64
	name string
}

func (k *textKeeper) baseline() (wire.TextBaseline, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	core, err := os.Open("/proc/kcore")
	if err != nil {
		return wire.TextBaseline{}, err
	}
	defer core.Close()
	named, err := k.loadSymbols()
	if err != nil {
		return wire.TextBaseline{}, err
	}
	k.start = named["_stext"]
	end := named["_etext"]
	if k.start == 0 || end <= k.start || end-k.start > 64<<20 {
		return wire.TextBaseline{}, fmt.Errorf("kernel text at %#x-%#x makes no sense", k.start, end)
	}
	if k.copy, err = readCore(core, k.start, end-k.start); err != nil {
		return wire.TextBaseline{}, err
	}
	k.own, k.count = make([]bool, len(k.copy)), 0
	if err := k.markSites(core, named); err != nil {
		return wire.TextBaseline{}, err
	}
	return wire.TextBaseline{Start: k.start, End: end, SHA256: k.sum(k.copy), Ignored: k.count}, nil
}

// loadSymbols fills syms and returns the addresses of the named bounds.
func (k *textKeeper) loadSymbols() (map[string]uint64, error) {
	text, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		return nil, err
	}
	named := map[string]uint64{}
	k.syms = k.syms[:0]
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) != 3 { // a fourth field names the module
			continue
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("parse /proc/kallsyms: %w", err)
		}
		switch f[2] {
		case "_stext", "_etext", "__start___jump_table", "__stop___jump_table", "__start_static_call_sites", "__stop_static_call_sites":
			named[f[2]] = addr
		}
		if f[1] == "t" || f[1] == "T" {
			k.syms = append(k.syms, symbol{addr, f[2]})
		}
	}
	slices.SortFunc(k.syms, func(a, b symbol) int {
		switch {
		case a.addr < b.addr:
			return -1
		case a.addr > b.addr:
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	return named, nil
}

// markSites marks what the kernel itself may patch. struct jump_entry is {s32 code, s32 target, long key} and struct
// static_call_site {s32 addr, s32 key}, both relative to their own place; __SCT__ trampolines are patched whole.
func (k *textKeeper) markSites(core *os.File, named map[string]uint64) error {
	for _, t := range []struct {
		start, stop string
		stride      int
	}{
		{"__start___jump_table", "__stop___jump_table", 16},
		{"__start_static_call_sites", "__stop_static_call_sites", 8},
	} {
		start, stop := named[t.start], named[t.stop]
		if start == 0 || stop <= start || stop-start > 16<<20 {
			continue // this kernel has no such table
		}
		table, err := readCore(core, start, stop-start)
		if err != nil {
			return err
		}
		for i := 0; i+t.stride <= len(table); i += t.stride {
			rel := int32(binary.LittleEndian.Uint32(table[i:])) //nolint:gosec // a signed field
			k.mark(start+uint64(i)+uint64(int64(rel)), 5)
		}
	}
	for _, s := range k.syms {
		if strings.HasPrefix(s.name, "__SCT__") {
			k.mark(s.addr, 8)
		}
	}
	return nil
}

func (k *textKeeper) mark(addr uint64, n int) {
	at := addr - k.start
	if at >= uint64(len(k.own)) {
		return // in a module or in freed init text
	}
	k.count++
	for i := range uint64(n) {
		if at+i < uint64(len(k.own)) {
			k.own[at+i] = true
		}
	}
}

func (k *textKeeper) diff() (wire.TextDiff, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.copy == nil {
		return wire.TextDiff{}, errors.New("no baseline was taken")
	}
	core, err := os.Open("/proc/kcore")
	if err != nil {
		return wire.TextDiff{}, err
	}
	defer core.Close()
	now, err := readCore(core, k.start, uint64(len(k.copy)))
	if err != nil {
		return wire.TextDiff{}, err
	}
	d := wire.TextDiff{SHA256: k.sum(now)}
	for i := 0; i < len(now); i++ {
		if now[i] == k.copy[i] {
			continue
		}
		if k.own[i] {
			d.Own++
			continue
		}
		j := i
		for j < len(now) && now[j] != k.copy[j] && !k.own[j] {
			j++
		}
		if len(d.Ranges) < 64 {
			d.Ranges = append(d.Ranges, k.changed(now, i, j))
		}
		i = j - 1
	}
	return d, nil
}

func (k *textKeeper) changed(now []byte, i, j int) wire.TextRange {
	addr := k.start + uint64(i)
	return wire.TextRange{Addr: addr, Symbol: k.name(addr), Old: k.copy[i:j], New: now[i:j]}
}

func (k *textKeeper) name(addr uint64) string {
	i := sort.Search(len(k.syms), func(i int) bool { return k.syms[i].addr > addr })
	if i == 0 {
		return ""
	}
	return fmt.Sprintf("%s+%#x", k.syms[i-1].name, addr-k.syms[i-1].addr)
}

// sum hashes text with the kernel's own patch sites zeroed.
func (k *textKeeper) sum(text []byte) string {
	masked := slices.Clone(text)
	for i, own := range k.own {
		if own {
			masked[i] = 0
		}
	}
	s := sha256.Sum256(masked)
	return hex.EncodeToString(s[:])
}

// readCore reads kernel virtual memory through the ELF segments of /proc/kcore.
func readCore(core *os.File, addr, n uint64) ([]byte, error) {
	f, err := elf.NewFile(core)
	if err != nil {
		return nil, fmt.Errorf("parse /proc/kcore: %w", err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && addr >= p.Vaddr && addr-p.Vaddr < p.Memsz && n <= p.Memsz-(addr-p.Vaddr) {
			b := make([]byte, n)
			if _, err := core.ReadAt(b, int64(p.Off+addr-p.Vaddr)); err != nil { //nolint:gosec // kcore offsets fit
				return nil, fmt.Errorf("read kernel memory at %#x: %w", addr, err)
			}
			return b, nil
		}
	}
	return nil, fmt.Errorf("read kernel memory at %#x: not in /proc/kcore", addr)
}
