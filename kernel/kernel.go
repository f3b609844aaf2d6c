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
	Linux OS = "linux"
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
	base    arch.GVA
	end     arch.GVA // first address behind the mapped image
	slide   uint64
	physOff uint64 // physical minus virtual address of the image
	symbols symbolTable
	types   *Types
	facts   map[string]string
	missing []string
}

// OS returns the family of the operating system.
func (k *Kernel) OS() OS { return Linux }

// Release returns the kernel's release as uname -r prints it. It serves
// messages: what a kernel can do is found by looking for symbols and members.
func (k *Kernel) Release() string { return k.release }

// Banner returns the kernel's version line, as in /proc/version. It is text of
// the guest: quote it before a terminal sees it.
func (k *Kernel) Banner() string { return k.banner }

// BuildID returns the linker's build id in lower-case hexadecimal, "" when the
// kernel does not tell it.
func (k *Kernel) BuildID() string { return k.buildID }

// Base returns the address of the kernel's first byte, its symbol _text.
func (k *Kernel) Base() arch.GVA { return k.base }

// Slide returns how far KASLR moved the kernel from where it was linked, in bytes.
func (k *Kernel) Slide() uint64 { return k.slide }

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
