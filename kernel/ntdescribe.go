package kernel

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/layouts"
)

// ntBuilder learns one NT kernel.
type ntBuilder struct {
	d      *describer
	f      *ntFound
	k      *Kernel
	nt     *NT
	types  *ntTypes
	layout *layouts.Layout
	exact  bool // layout is of the kernel's build
	names  []Symbol
	extra  exactSymbols // nil without a symbol file

	exactBy string // provenance of extra

	system    []byte     // copy of the EPROCESS of System
	witnesses []*witness // other processes, for checking what System lacks
}

// exactSymbols is a symbol file of exactly this kernel.
type exactSymbols interface {
	exactTypes
	Symbols(yield func(name string, rva uint32))
}

// onceNT makes one attempt to describe an NT kernel.
func (d *describer) onceNT(ctx context.Context) (*Kernel, error) {
	if c := d.g.WindowsCrash(); c != nil && c.Type == vitrine.WindowsTriage {
		return d.describeTriage(ctx, c)
	}
	f, err := d.findNT(ctx)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		k, err := d.describeNT(ctx, f)
		if err == nil || try == attemptsNT || ctx.Err() != nil || !d.g.Info().Live || errors.Is(err, vitrine.ErrNotBooted) {
			return k, err
		}
		f.space.Invalidate()
	}
}

// attemptsNT is how often a kernel that was found is read: the guest runs, and
// a list that changes just then looks like no list.
const attemptsNT = 3

func (d *describer) describeNT(ctx context.Context, f *ntFound) (*Kernel, error) {
	b := &ntBuilder{d: d, f: f, nt: &NT{X64: f.image.Plus, Revision: -1, ImageSize: uint64(f.image.Size), pcrs: map[int]arch.GVA{}}}
	b.k = &Kernel{g: d.g, space: f.space, base: f.base, end: f.base + arch.GVA(f.image.Size), facts: map[string]string{}, nt: b.nt}
	b.nt.k = b.k
	if pa, err := f.space.Translate(f.base); err == nil {
		b.k.physOff = uint64(pa) - uint64(f.base)
	}
	b.k.fact("base", fmt.Sprintf("PE image with the name ntoskrnl.exe, below the %s, page tables by %s", f.how, f.root.from))
	b.k.fact("paging", f.root.from)
	if err := b.readExports(); err != nil {
		return nil, err
	}
	b.readVersion()
	b.readSymbolName()
	b.useSymbolFile(ctx)
	b.chooseLayout()
	b.finishSymbols()
	if err := b.findSystem(ctx); err != nil {
		return nil, err
	}
	b.inferFields(ctx)
	if err := b.findHeads(ctx); err != nil {
		return nil, err
	}
	b.findObjectTypes()
	if !d.opts.Early && d.g.Info().Live && len(b.witnesses) == 0 {
		return nil, notBooted(ctx, d.g, nil, fmt.Errorf("NT %s found at %v, which has started no process yet but System", b.k.release, b.k.base))
	}
	b.finishSymbols()
	return b.k, nil
}

// readExports reads the names that the kernel offers to drivers.
func (b *ntBuilder) readExports() error {
	e, err := b.f.image.Exports()
	if err != nil {
		return fmt.Errorf("describe guest: %w: NT kernel at %v: %w", vitrine.ErrNotUnderstood, b.f.base, err)
	}
	code := func(rva uint32) byte {
		for _, s := range b.f.image.Sections {
			if rva >= s.RVA && rva-s.RVA < s.Size && !s.Executable {
				return 'D'
			}
		}
		return 'T'
	}
	for _, x := range e.Exports {
		if x.RVA != 0 {
			b.names = append(b.names, Symbol{Name: x.Name, Addr: b.f.base + arch.GVA(x.RVA), Type: code(x.RVA)})
		}
	}
	b.k.fact("symbols", fmt.Sprintf("PE exports (%d)", len(b.names)))
	if e.Missing > 0 {
		b.k.lacks(fmt.Sprintf("%d exports: paged out, or out of the image", e.Missing))
	}
	b.k.symbols = newNTSymbols(b.names)
	return nil
}

// finishSymbols makes the table of all names that are known by now.
func (b *ntBuilder) finishSymbols() { b.k.symbols = newNTSymbols(append([]Symbol(nil), b.names...)) }

// name adds a symbol that was found by other means than the exports.
func (b *ntBuilder) name(name string, at arch.GVA) {
	if at != 0 {
		b.names = append(b.names, Symbol{Name: name, Addr: at, Type: 'D'})
	}
}

func (b *ntBuilder) word(va arch.GVA) (arch.GVA, error) { return b.nt.Word(b.k.space, va) }

// variable reads the pointer that an exported variable holds.
func (b *ntBuilder) variable(name string) (arch.GVA, error) {
	at, err := b.k.address(name)
	if err != nil {
		return 0, err
	}
	return b.word(at)
}

// KUSER_SHARED_DATA is at a fixed place in every build, and so are its first
// members (ntddk.h).
const (
	sharedData86 = arch.GVA(0xffdf_0000)
	sharedData64 = arch.GVA(0xffff_f780_0000_0000)
	sharedMajor  = 0x26c
	sharedMinor  = 0x270
)

// buildFree and buildChecked are the upper bits of NtBuildNumber.
const (
	buildMask    = 0x0fff_ffff
	buildFree    = 0xf
	buildChecked = 0xc
)

// readVersion reads what the kernel calls itself.
func (b *ntBuilder) readVersion() {
	n := b.nt
	n.SharedData = sharedData64
	if !n.X64 {
		n.SharedData = sharedData86
	}
	if at, err := b.k.address("NtBuildNumber"); err == nil {
		if v, err := b.k.space.ReadUint32(at); err == nil && v&buildMask < 1<<20 {
			n.Build, n.Checked = int(v&buildMask), v>>28 == buildChecked
			b.k.fact("build", "export NtBuildNumber")
		}
	}
	if at, err := b.k.address("NtBuildLab"); err == nil {
		b.k.banner, _ = b.k.space.ReadString(at, 256)
		b.k.fact("banner", "export NtBuildLab")
	}
	major, err := b.k.space.ReadUint32(n.SharedData + sharedMajor)
	minor, err2 := b.k.space.ReadUint32(n.SharedData + sharedMinor)
	if err == nil && err2 == nil && major < 100 && minor < 100 {
		n.Major, n.Minor = int(major), int(minor)
		b.k.fact("version", "KUSER_SHARED_DATA")
	}
	b.readRevision()
	b.k.release = fmt.Sprintf("%d.%d.%d", n.Major, n.Minor, n.Build)
	b.k.fact("release", "build and version")
	if n.Build == 0 {
		b.k.lacks("build number: export NtBuildNumber is absent or makes no sense")
	}
}

// readRevision reads the last number of the file version: from the version
// resource, or until 8.1 from NtBuildLab, "7601.17514.x86fre...".
func (b *ntBuilder) readRevision() {
	v, err := b.f.image.Version()
	if err == nil {
		if b.nt.Major == 0 && b.nt.Minor == 0 {
			b.nt.Major, b.nt.Minor = v[0], v[1]
			b.k.fact("version", "version resource")
		}
		if b.nt.Build == 0 {
			b.nt.Build = v[2]
			b.k.fact("build", "version resource")
		}
		b.nt.Revision = v[3]
		b.k.fact("revision", "version resource")
		return
	}
	if parts := strings.Split(b.k.banner, "."); len(parts) > 2 {
		if r, err := strconv.Atoi(parts[1]); err == nil && r >= 0 {
			b.nt.Revision = r
			b.k.fact("revision", "NtBuildLab")
		}
	}
}

// readSymbolName reads the name of the symbol file.
func (b *ntBuilder) readSymbolName() {
	c, err := b.f.image.CodeView()
	if err != nil {
		b.k.lacks(fmt.Sprintf("name of the symbol file: %v", err))
		return
	}
	b.nt.PDB, b.nt.GUID, b.nt.PDBAge = c.File(), c.GUID, c.Age
	b.k.buildID = fmt.Sprintf("%s%X", c.GUID, c.Age)
	b.k.fact("build_id", "CodeView record of the PE image")
}

// chooseLayout takes the layout that is nearest to the kernel's build.
func (b *ntBuilder) chooseLayout() {
	if b.d.opts.NoLayouts {
		b.useLayout("the kernel itself")
		b.k.lacks("layouts: they were not to be used; members are known where the kernel itself tells them")
		return
	}
	b.layout, b.exact = layouts.Find(b.nt.Build, b.nt.Revision, b.nt.X64)
	by := fmt.Sprintf("layout of build %v", b.layout)
	if !b.exact {
		by = fmt.Sprintf("layout of build %v, the nearest to %d", b.layout, b.nt.Build)
	}
	if !b.exact && b.extra == nil {
		b.k.lacks(fmt.Sprintf("layout of build %d: none is known; members are taken from %v where the kernel itself does not tell", b.nt.Build, b.layout))
	}
	if l := b.agreeingLayout(); l != nil && b.extra == nil {
		b.k.lacks(fmt.Sprintf("layout of build %v: accessors disagree with it; that of %v is used, with which they agree", b.layout, l))
		b.layout, b.exact = l, false
		by = fmt.Sprintf("layout of build %v, with which accessors agree", l)
	}
	b.useLayout(by)
}

// useLayout makes the types: of the layout, if there is one, and of the exact
// symbols.
func (b *ntBuilder) useLayout(by string) {
	b.types = newNTTypes(b.layout, by)
	if b.extra != nil {
		b.types.exact, b.types.exactBy = b.extra, b.exactBy
		by = b.exactBy
	}
	b.k.types = newTypes(nil)
	b.k.types.nt = b.types
	b.k.fact("types", by)
}
