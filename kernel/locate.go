package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/kallsyms"
	"github.com/vitrine-vmi/vitrine/kernel/internal/vmcoreinfo"
)

// root is a page table that may be the kernel's, and how it was found.
type root struct {
	mode arch.PagingMode
	addr arch.GPA
	from string // provenance: "registers", "vmcoreinfo"
	// stext is where the kernel's image starts, where that is not always the same
	// range (x86); 0 there. It lies off bytes above its physical address.
	stext arch.GVA
	off   uint64
}

// pages that lie this far apart are the two page tables of one process where
// the kernel isolates its page tables: the kernel's, then the user's
// (PTI_PGTABLE_SWITCH_BIT, arch/x86/entry/calling.h, since 4.15).
const ptiSwitch = 1 << 12

// rootsOf returns the page tables that a processor may be using for the kernel,
// the kernel's half of an isolated pair first; none when it has no paging on.
func rootsOf(r *arch.Registers) []root {
	mode := r.PagingMode()
	if mode == arch.PagingOff {
		return nil
	}
	use := root{mode: mode, addr: r.Root(), from: "registers"}
	if use.addr&ptiSwitch == 0 {
		return []root{use}
	}
	kernel := use
	kernel.addr &^= ptiSwitch
	return []root{kernel, use}
}

// found is what locating a kernel yields, every part checked against the others.
type found struct {
	root     root
	image    *image
	table    *kallsyms.Table
	start    arch.GVA // of the table in memory, its end and its tokens, all from the base
	end      arch.GVA
	tokens   arch.GVA
	hint     hint                  // the cache file that led to the table, zero without
	space    *vitrine.AddressSpace // the kernel's own, where it is known
	spaceBy  string                // how space was found
	info     *vmcoreinfo.Info      // nil when the guest has none
	infoBy   string                // how info was found
	release  string
	banner   string
	bannerBy string      // how banner was found
	early    *earlyTypes // types that were read before it was known where they are
}

// tryRoot looks for a Linux kernel through one page table.
func tryRoot(g *vitrine.Guest, r root, hints []hint) (*found, error) {
	if r.is32() {
		var err error
		if r, err = locate32(g, r); err != nil {
			return nil, err
		}
	}
	im, err := mapImage(g, r)
	if err != nil {
		return nil, err
	}
	f := &found{root: r, image: im}
	defer f.prefetchTypes()()
	if !f.findByHint(hints) {
		if err := f.findSymbols(); err != nil {
			return nil, err
		}
	}
	if err := f.findSpace(); err != nil {
		return nil, err
	}
	if err := f.findBanner(); err != nil {
		return nil, err
	}
	if err := f.findInfo(); err != nil {
		return nil, err
	}
	return f, f.improveSpace()
}

// findSymbols looks for the symbol table in the image.
func (f *found) findSymbols() error {
	var buf, p []byte
	last := kallsyms.ErrNotFound
	for _, r := range f.image.byTrust() {
		p, buf = f.image.bytes(r, buf)
		t, err := kallsyms.Find(p, uint64(r.va), uint64(f.image.base()))
		if err == nil {
			err = f.checkTable(t)
		}
		if err == nil {
			f.took(t, r)
			return nil
		}
		if !errors.Is(err, kallsyms.ErrNotFound) || errors.Is(last, kallsyms.ErrNotFound) {
			last = err
		}
	}
	return fmt.Errorf("look for kallsyms in the %d MiB image at %v: %w", f.image.size>>20, f.image.base(), last)
}

// checkTable compares a symbol table with the place of the image.
func (f *found) checkTable(t *kallsyms.Table) error {
	i, ok := t.Lookup("_text")
	if !ok || f.root.stext != 0 { // arm64 maps nothing of what precedes _stext
		i, ok = t.Lookup("_stext")
	}
	if !ok {
		return fmt.Errorf("symbol table has neither _text nor _stext: %w", kallsyms.ErrFormat)
	}
	if a := arch.GVA(t.Addr(i)); a != f.image.base() && !f.image.holds(a) {
		return fmt.Errorf("symbol table has %s at %v, the image starts at %v: %w", t.Name(i), a, f.image.base(), kallsyms.ErrFormat)
	}
	return nil
}

// holds reports whether the page tables map a.
func (im *image) holds(a arch.GVA) bool {
	for _, r := range im.runs {
		if a >= r.va && a < r.end() {
			return true
		}
	}
	return false
}

func (f *found) symbol(name string) (arch.GVA, bool) {
	i, ok := f.table.Lookup(name)
	if !ok {
		return 0, false
	}
	return arch.GVA(f.table.Addr(i)), true
}

// findSpace makes the kernel's own address space from init_top_pgt and checks
// that the page table maps itself where the one in use maps it.
func (f *found) findSpace() error {
	use := f.image.g.AddressSpace(f.root.mode, f.root.addr)
	va, ok := f.symbol("init_top_pgt") // swapper_pg_dir until 4.16
	if !ok {
		va, ok = f.symbol("swapper_pg_dir")
	}
	f.space, f.spaceBy = use, f.root.from
	if !ok { // CONFIG_KALLSYMS_ALL is off
		return nil
	}
	return f.useTable(va, "kallsyms init_top_pgt")
}

// useTable makes the page table at va the kernel's address space, if it maps
// itself where the one in use maps it.
func (f *found) useTable(va arch.GVA, by string) error {
	pa, err := f.space.Translate(va)
	if err != nil {
		return fmt.Errorf("find the kernel's page table: %w", err)
	}
	own := f.image.g.AddressSpace(f.root.mode, pa)
	if again, err := own.Translate(va); err != nil || again != pa {
		return fmt.Errorf("the kernel's page table at %v does not map itself yet", pa)
	}
	f.space, f.spaceBy = own, by
	return nil
}

// improveSpace takes the kernel's page table from VMCOREINFO where symbols do
// not tell it: the one in use may be a program's and end with it.
func (f *found) improveSpace() error {
	if f.info == nil || f.spaceBy != f.root.from {
		return nil
	}
	va, ok := f.info.Symbols["swapper_pg_dir"]
	if !ok {
		return nil
	}
	return f.useTable(arch.GVA(va), f.infoBy)
}

var bannerStart = []byte("Linux version ")

// findBanner reads the line that the kernel prints first.
func (f *found) findBanner() error {
	f.bannerBy = "kallsyms linux_banner"
	va, ok := f.symbol("linux_banner")
	if !ok {
		va, ok = f.searchBanner()
		f.bannerBy = "search of kernel memory"
	}
	if !ok {
		return errors.New("symbol table found, banner \"Linux version\" not")
	}
	s, err := f.space.ReadString(va, 1024)
	if err != nil {
		return fmt.Errorf("read banner: %w", err)
	}
	rest, ok := strings.CutPrefix(s, string(bannerStart))
	if !ok {
		return fmt.Errorf("banner reads %.40q", s)
	}
	f.banner = strings.TrimRight(s, "\n")
	f.release, _, _ = strings.Cut(rest, " ")
	return nil
}

// searchBanner looks for the line where no symbol tells of it.
func (f *found) searchBanner() (arch.GVA, bool) {
	var buf, p []byte
	for _, r := range f.image.byTrust() {
		p, buf = f.image.bytes(r, buf)
		if at, ok := bannerIn(p); ok {
			return r.va + arch.GVA(at), true
		}
	}
	return 0, false
}

// bannerIn returns where in p the banner is. Since Linux 6.1 (2df8220cc511) the
// image also holds one that the linker replaced, which lacks the number of the
// build; it is taken where there is no other.
func bannerIn(p []byte) (first int, found bool) {
	for at := 0; ; {
		i := bytes.Index(p[at:], bannerStart)
		if i < 0 {
			return first, found
		}
		start := at + i
		at = start + len(bannerStart)
		line, _, _ := bytes.Cut(p[start:min(start+1024, len(p))], []byte("\n"))
		switch {
		case at == len(p) || p[at] < '0' || p[at] > '9':
			// The format of /proc/version starts the same and goes on with a verb.
		case buildNumber.Match(line):
			return start, true
		case !found:
			first, found = start, true
		}
	}
}

var buildNumber = regexp.MustCompile(` #[0-9]`)
