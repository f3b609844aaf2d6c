//go:build linux

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// textKeeper holds a copy of the kernel's own text, read through /proc/kcore, to prove later that nobody changed it. What
// does not change while the kernel runs is found out once: under TCG that takes longer than all the rest.
//
// Kernel text changes by itself at the sites of jump labels (static keys) and static calls: their tables are read, and
// a difference there is counted but not reported as foreign.
type textKeeper struct {
	// mu guards the rest.
	mu    sync.Mutex
	names []byte // /proc/kallsyms but for modules, as it is; nil before the first baseline
	start uint64
	copy  []byte
	own   []bool // bytes that the kernel may patch itself
	count int
}

func (k *textKeeper) baseline() (wire.TextBaseline, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	core, err := os.Open("/proc/kcore")
	if err != nil {
		return wire.TextBaseline{}, err
	}
	defer core.Close()
	if k.names == nil {
		if err := k.learn(core); err != nil {
			k.names = nil
			return wire.TextBaseline{}, err
		}
	}
	if k.copy, err = readCore(core, k.start, uint64(len(k.own))); err != nil {
		return wire.TextBaseline{}, err
	}
	return wire.TextBaseline{Start: k.start, End: k.start + uint64(len(k.own)), Ignored: k.count}, nil
}

// learn finds the text and what of it the kernel itself may patch.
func (k *textKeeper) learn(core *os.File) error {
	all, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		return err
	}
	k.names = all
	if i := bytes.IndexByte(all, '['); i >= 0 { // the first symbol of a module: they are last
		k.names = bytes.Clone(all[:bytes.LastIndexByte(all[:i], '\n')+1])
	}
	named := map[string]uint64{}
	for _, name := range []string{"_stext", "_etext", "__start___jump_table", "__stop___jump_table", "__start_static_call_sites", "__stop_static_call_sites"} {
		named[name] = k.symbol(name)
	}
	k.start = named["_stext"]
	end := named["_etext"]
	if k.start == 0 || end <= k.start || end-k.start > 64<<20 {
		return fmt.Errorf("kernel text at %#x-%#x makes no sense", k.start, end)
	}
	k.own, k.count = make([]bool, end-k.start), 0
	return k.markSites(core, named)
}

// symbol returns the address of a symbol that is not a module's, 0 when it is absent.
func (k *textKeeper) symbol(name string) uint64 {
	i := bytes.Index(k.names, []byte(" "+name+"\n"))
	if i < 0 {
		return 0
	}
	return address(k.names[bytes.LastIndexByte(k.names[:i], '\n')+1:])
}

// address returns the number that a line of /proc/kallsyms begins with.
func address(line []byte) uint64 {
	digits, _, _ := bytes.Cut(line[:min(len(line), 17)], []byte(" "))
	n, _ := strconv.ParseUint(string(digits), 16, 64) // 0 is no address of text
	return n
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
	trampoline := []byte(" __SCT__")
	for rest := k.names; ; {
		at := bytes.Index(rest, trampoline)
		if at < 0 {
			return nil
		}
		k.mark(address(rest[bytes.LastIndexByte(rest[:at], '\n')+1:]), 8)
		rest = rest[at+len(trampoline):]
	}
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
	var d wire.TextDiff
	for at := 0; at < len(now); at += 4096 {
		if end := min(at+4096, len(now)); !bytes.Equal(now[at:end], k.copy[at:end]) {
			k.diffPage(&d, now, at, end)
		}
	}
	return d, nil
}

// diffPage adds what differs of one page.
func (k *textKeeper) diffPage(d *wire.TextDiff, now []byte, at, end int) {
	for i := at; i < end; i++ {
		if now[i] == k.copy[i] {
			continue
		}
		if k.own[i] {
			d.Own++
			continue
		}
		j := i
		for j < end && now[j] != k.copy[j] && !k.own[j] {
			j++
		}
		if len(d.Ranges) < 64 {
			d.Ranges = append(d.Ranges, k.changed(now, i, j))
		}
		i = j - 1
	}
}

func (k *textKeeper) changed(now []byte, i, j int) wire.TextRange {
	addr := k.start + uint64(i)
	return wire.TextRange{Addr: addr, Symbol: k.name(addr), Old: k.copy[i:j], New: now[i:j]}
}

// name says where in which function an address is.
func (k *textKeeper) name(addr uint64) string {
	var best uint64
	var name []byte
	for line := range bytes.Lines(k.names) {
		f := bytes.Fields(line)
		if len(f) != 3 || (f[1][0] != 't' && f[1][0] != 'T') {
			continue
		}
		if at := address(line); at <= addr && at >= best {
			best, name = at, f[2]
		}
	}
	if best == 0 {
		return ""
	}
	return fmt.Sprintf("%s+%#x", name, addr-best)
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
