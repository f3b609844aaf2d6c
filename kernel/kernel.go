package kernel

import (
	"errors"
	"maps"
	"slices"
	"time"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// OS is a family of operating systems.
type OS string

// The families that Describe can tell.
const (
	Linux   OS = "linux"
	Windows OS = "windows" // NT kernels: Windows itself and what is built like it
)

// Options change how Describe works. The zero value and nil mean the defaults.
type Options struct {
	// CacheDir is a folder for cache files, made if absent, one for each build of
	// a kernel; "" means none. A file tells where to look first in the guest and
	// nothing that would have to be believed; a wrong one is replaced.
	CacheDir string
	// Wait is how long to wait for a guest that is still booting: 0 means until
	// ctx's deadline and at most 60 s, a negative value not at all.
	Wait time.Duration
	// Early accepts a kernel that has not started its first program yet.
	Early bool
	// Symbols names files with the exact symbols of an NT kernel: a PDB, or
	// Volatility 3 ISF (.json or .json.xz); or with the structures of a Linux
	// kernel that has no BTF: its vmlinux with debug information, or ISF, as
	// dwarf2json makes it of that. One that is of another kernel than
	// the guest's is refused and told in Missing. A folder is taken for a
	// symbol store, NAME/GUIDAGE/NAME, as _NT_SYMBOL_PATH has them.
	Symbols []string
	// SymbolServer is the URL of a symbol server that is asked when no file of
	// Symbols fits; what it sends is kept in the first folder of Symbols. ""
	// means that the network is not used.
	SymbolServer string
	// NoLayouts leaves the layouts of NT's builds unused, which the program
	// carries: only what the kernel itself and exact symbols tell is believed.
	// It shows what is known without them; much is missing then.
	NoLayouts bool
	// Progress, when not nil, is called with a few words before each step that
	// may take a while. It is called from the goroutine that called Describe.
	Progress func(step string)
}

// Errors of lookups. All are returned wrapped, with the name that was asked for.
var (
	// ErrNoSymbol is returned when the kernel has no such symbol.
	ErrNoSymbol = errors.New("no such kernel symbol")
	// ErrNoType is returned when the kernel's type information has no such type,
	// member, enumerator or function, or the kernel has no type information.
	ErrNoType = errors.New("no such kernel type")
)

// Kernel is what is known of the kernel of one guest since its last boot.
type Kernel struct {
	g       *vitrine.Guest
	space   *vitrine.AddressSpace
	release string
	banner  string
	buildID string
	note    []byte // text of VMCOREINFO
	base    arch.GVA
	end     arch.GVA // first address behind the mapped image
	slide   uint64
	physOff uint64   // physical minus virtual address of the image
	direct  arch.GVA // of physical address 0 in the map of all memory (arm64: where VMCOREINFO tells; 32-bit x86), else 0
	symbols symbolTable
	// inferred holds variables that the symbol table lacks and that were found by
	// what they hold; nil where there was nothing to look for.
	inferred map[string]arch.GVA
	types    *Types
	facts    map[string]string
	missing  []string
	nt       *NT // nil for Linux
}

// OS returns the family of the operating system.
func (k *Kernel) OS() OS {
	if k.nt != nil {
		return Windows
	}
	return Linux
}

// NT returns what only an NT kernel has, nil for another.
func (k *Kernel) NT() *NT { return k.nt }

// PointerSize returns the size of the kernel's pointers in bytes. It is less
// than that of the guest's processors when a 32-bit kernel runs on 64-bit ones.
func (k *Kernel) PointerSize() int {
	switch {
	case k.nt != nil && !k.nt.X64:
		return 4
	case k.nt != nil:
		return 8
	}
	return k.space.Mode().PointerSize()
}

// Release returns the kernel's release as uname -r prints it, or of an NT
// kernel its version and build, such as "10.0.19041". It serves
// messages: what a kernel can do is found by looking for symbols and members.
func (k *Kernel) Release() string { return k.release }

// Banner returns the kernel's version line, as in /proc/version, or of an NT
// kernel its NtBuildLab. It is text of
// the guest: quote it before a terminal sees it.
func (k *Kernel) Banner() string { return k.banner }

// BuildID returns the linker's build id in lower-case hexadecimal, or of an NT
// kernel GUID and age of its PDB as symbol stores write them; "" when the
// kernel does not tell it.
func (k *Kernel) BuildID() string { return k.buildID }

// VMCoreInfo returns the text in which the kernel describes itself to tools for
// crash dumps, nil when it has none. Nobody may change it.
func (k *Kernel) VMCoreInfo() []byte { return k.note }

// Image returns the virtual addresses from Base to the end of the kernel's image.
func (k *Kernel) Image() (base, end arch.GVA) { return k.base, k.end }

// Base returns the address of the kernel's first byte: its symbol _text, or of
// an NT kernel its PE header.
func (k *Kernel) Base() arch.GVA { return k.base }

// Slide returns how far KASLR moved the kernel from where it was linked, in
// bytes; 0 for an NT kernel, whose header tells only where it is.
func (k *Kernel) Slide() uint64 { return k.slide }

// Arch returns the instruction set that the kernel is made for, which an image of
// its guest may not tell.
func (k *Kernel) Arch() arch.Arch {
	m := k.space.Mode()
	switch {
	case m != m.User():
		return arch.ARM64
	case m.PointerSize() == 4:
		return arch.I386
	}
	return k.g.Arch()
}

// Paging returns the page-table format that the kernel uses.
func (k *Kernel) Paging() arch.PagingMode { return k.space.Mode() }

// Guest returns the guest.
func (k *Kernel) Guest() *vitrine.Guest { return k.g }

// AddressSpace returns the kernel's own address space, that of its first page
// table (init_top_pgt): all kernel memory, no program's.
func (k *Kernel) AddressSpace() *vitrine.AddressSpace { return k.space }

// Types returns the kernel's types. It is never nil; without type information
// each of its lookups returns ErrNoType.
func (k *Kernel) Types() *Types { return k.types }

// Facts returns how each fact became known: fact name to provenance, such as
// "btf", "kallsyms", "registers" or "vmcoreinfo". The map is the caller's.
func (k *Kernel) Facts() map[string]string { return maps.Clone(k.facts) }

// Missing returns what could not be learnt, each with the reason.
func (k *Kernel) Missing() []string { return slices.Clone(k.missing) }

func (k *Kernel) fact(name, provenance string) { k.facts[name] = provenance }

func (k *Kernel) lacks(what string) { k.missing = append(k.missing, what) }
