package kernel

import (
	"context"
	"errors"
	"fmt"
	"time"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/btf"
	"github.com/vitrine-vmi/vitrine/kernel/internal/vmcoreinfo"
)

const (
	defaultWait = 60 * time.Second
	firstPoll   = 50 * time.Millisecond
	lastPoll    = 500 * time.Millisecond
	// atOnce is how often a running guest is tried without a pause: the page
	// table of a program may be freed while it is being read.
	atOnce = 2
)

// linkedBase is where x86-64 kernels are linked to start: the image range plus
// CONFIG_PHYSICAL_START, which distributions leave at 16 MiB.
const linkedBase = imageLow + 16<<20

// Describe learns the kernel of a guest. A live guest that is still booting is
// waited for, until its kernel has started its first program (see Options). It
// stops the guest at no time.
//
// It returns an error that wraps vitrine.ErrNotBooted when no operating system
// has started within the wait, or ever will because the guest is paused, and
// vitrine.ErrNotUnderstood when something else than Linux or NT runs. The text
// says what was looked for and what was found.
func Describe(ctx context.Context, g *vitrine.Guest, opts *Options) (*Kernel, error) {
	if opts == nil {
		opts = &Options{}
	}
	d := &describer{g: g, opts: opts, hints: readHints(opts.CacheDir)}
	wait := opts.Wait
	if wait == 0 {
		wait = defaultWait
	}
	deadline := time.Now().Add(wait)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		// Leave a moment to say what was found.
		deadline = t.Add(-min(firstPoll, time.Until(t)/4))
	}
	poll := firstPoll
	for try := 1; ; try++ {
		k, err := d.once(ctx)
		if err != nil && ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		}
		if err == nil || !d.worthWaiting(ctx, err) {
			return k, err
		}
		if try < atOnce {
			continue
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, err
		}
		d.progress("waiting for the guest to boot")
		if err := sleep(ctx, min(poll, left)); err != nil {
			return nil, fmt.Errorf("describe guest: %w", err)
		}
		poll = min(2*poll, lastPoll)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// describer is one call of Describe.
type describer struct {
	g     *vitrine.Guest
	opts  *Options
	hints []hint // of the cache folder
}

func (d *describer) progress(step string) {
	if d.opts.Progress != nil {
		d.opts.Progress(step)
	}
}

// worthWaiting reports whether a failed attempt may succeed later: the guest
// runs, and runs nothing that is known not to be Linux.
func (d *describer) worthWaiting(ctx context.Context, err error) bool {
	if !errors.Is(err, vitrine.ErrNotBooted) || !d.g.Info().Live {
		return false
	}
	st, err := d.g.Status(ctx)
	return err == nil && st == vitrine.StatusRunning
}

// once makes one attempt: Linux first, then NT. A guest that is neither is
// told as not Linux, which says more of what was seen.
func (d *describer) once(ctx context.Context) (*Kernel, error) {
	if d.g.WindowsCrash() != nil { // no Linux guest is dumped so
		return d.onceNT(ctx)
	}
	k, err := d.onceLinux(ctx)
	if err == nil || ctx.Err() != nil {
		return k, err
	}
	k, errNT := d.onceNT(ctx)
	if errNT != nil && errors.Is(errNT, errNoNT) {
		return nil, err
	}
	return k, errNT
}

// onceLinux makes one attempt to describe a Linux kernel.
func (d *describer) onceLinux(ctx context.Context) (*Kernel, error) {
	f, err := d.locate(ctx)
	if err != nil {
		return nil, err
	}
	k := d.assemble(f)
	d.loadTypes(k, f)
	if f.root.stext != 0 && !f.root.is32() {
		k.inferData(f.image)
	}
	if err := d.checkBooted(ctx, k); err != nil {
		return nil, err
	}
	k.addLateFacts()
	d.saveHint(k, f)
	return k, nil
}

// locate finds the kernel by the registers, or where there are none by what
// lies in memory.
func (d *describer) locate(ctx context.Context) (*found, error) {
	d.progress("looking for the kernel")
	if d.g.Arch() == arch.ARM64 {
		if f := d.byNote(); f != nil {
			return f, nil
		}
		return d.byMemory(ctx, d.look(ctx))
	}
	f, err := d.byRegisters(ctx)
	if !errors.Is(err, errors.ErrUnsupported) {
		return f, err
	}
	if f := d.byNote(); f != nil {
		return f, nil
	}
	if d.searched() {
		return nil, notBooted(ctx, d.g, nil, errors.New("the page tables that its vmcoreinfo names map no kernel"))
	}
	roots, err := rootsFromMemory(ctx, d.g)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("describe guest: %w", ctx.Err())
	}
	if err != nil {
		return nil, notBooted(ctx, d.g, nil, err)
	}
	return d.onlyOne(ctx, roots, nil)
}

// searched reports whether the guest's memory has been looked through already: a
// running guest without registers has its VMCOREINFO from there (see
// qemu.OpenProcess). Its opener tries many layouts of that memory, and to look
// through it again for each would take minutes.
func (d *describer) searched() bool { return d.g.Info().Live && len(d.g.VMCoreInfo()) > 0 }

// byNote follows the VMCOREINFO that came with an image, nil where it leads to
// no kernel: looking through all memory for it takes as long as reading it.
func (d *describer) byNote() *found {
	in, err := vmcoreinfo.Parse(d.g.VMCoreInfo())
	if err != nil {
		return nil
	}
	r, ok := rootOf(in)
	if !ok {
		return nil
	}
	r.from = "vmcoreinfo of the image"
	f, err := tryRoot(d.g, r, d.hints)
	if err != nil {
		return nil
	}
	return f
}

// byRegisters tries the page tables that the processors use, one after the
// other. All page tables of a kernel map the same image, so the first one that
// leads to a kernel is enough.
func (d *describer) byRegisters(ctx context.Context) (*found, error) {
	seen := &sighting{}
	last := errors.New("no processor has paging on")
	tried := map[root]bool{}
	for cpu := range min(d.g.CPUs(), maxCPUs) {
		r, err := d.g.Registers(ctx, cpu)
		if err != nil {
			return nil, fmt.Errorf("describe guest: read registers: %w", err)
		}
		for _, at := range rootsOf(r) {
			if tried[at] {
				continue
			}
			tried[at] = true
			f, err := tryRoot(d.g, at, d.hints)
			if err == nil {
				return f, nil
			}
			if len(tried) == 1 || !errors.Is(err, errNoImage) {
				last = err // the most telling one
			}
		}
		seen.add(d.g, cpu, r)
		if seen.foreign != "" {
			return nil, fmt.Errorf("describe guest: %w: not Linux: found %s; %v", vitrine.ErrNotUnderstood, seen.foreign, seen)
		}
	}
	return nil, notBooted(ctx, d.g, seen, last)
}

// onlyOne tries all page tables that memory offers: without registers only the
// lack of a rival tells a running kernel from one that ran before.
func (d *describer) onlyOne(ctx context.Context, roots []root, seen *sighting) (*found, error) {
	var one *found
	var last error
	for _, r := range roots {
		f, err := tryRoot(d.g, r, d.hints)
		if err != nil {
			last = err
			continue
		}
		if one != nil && one.space.Root() != f.space.Root() {
			return nil, fmt.Errorf("describe guest: %w: two kernels in memory, %q and %q, and no registers to tell which one runs",
				vitrine.ErrNotUnderstood, one.release, f.release)
		}
		one = f
	}
	if one == nil {
		return nil, notBooted(ctx, d.g, seen, last)
	}
	return one, nil
}

// assemble makes a Kernel of what was located.
func (d *describer) assemble(f *found) *Kernel {
	k := &Kernel{g: d.g, space: f.space, release: f.release, banner: f.banner,
		symbols: f.table, facts: map[string]string{}, base: f.image.base()}
	if va, ok := f.symbol("_text"); ok {
		k.base = va
	}
	last := f.image.runs[len(f.image.runs)-1]
	k.end = last.end()
	if f.root.is32() {
		k.direct = arch.GVA(f.root.off)
		if va, ok := f.symbol("_end"); ok { // what lies behind is other memory
			k.end = va
		}
	}
	if pa, err := f.space.Translate(k.base); err == nil {
		k.physOff = uint64(pa) - uint64(k.base)
	} else if f.root.stext != 0 { // _text itself is not mapped
		k.physOff = -f.root.off
	}
	k.fact("release", "banner in kernel memory")
	k.fact("banner", f.bannerBy)
	k.fact("base", "kallsyms _text, page tables by "+f.root.from)
	k.fact("paging", f.root.from)
	k.fact("symbols", fmt.Sprintf("kallsyms in kernel memory (%d)", f.table.Len()))
	if f.hint.BuildID != "" {
		k.fact("symbols", k.facts["symbols"]+", found by cache")
	}
	k.fact("page_table", f.spaceBy)
	if f.spaceBy == f.root.from {
		k.lacks("page table: symbol init_top_pgt is absent; a program's is used, which may end with it")
	}
	k.slide = uint64(k.base - f.linkedAt())
	k.fact("slide", "base, assuming that the kernel was linked at "+f.linkedAt().String())
	if f.info == nil {
		k.lacks("VMCOREINFO: not found (built without CONFIG_KEXEC_CORE and CONFIG_PROC_KCORE, or without CONFIG_KALLSYMS_ALL)")
		return k
	}
	k.fact("release", f.infoBy)
	k.note = f.info.Text
	k.direct = max(k.direct, armDirect(f))
	if k.buildID = f.info.BuildID; k.buildID != "" {
		k.fact("build_id", f.infoBy)
	}
	if f.info.HasOffset {
		k.slide = f.info.KernelOffset
		k.fact("slide", f.infoBy)
	}
	if _, ok := f.info.Numbers["phys_base"]; ok {
		k.fact("phys_base", f.infoBy)
	}
	return k
}

// loadTypes reads the kernel's BTF.
func (d *describer) loadTypes(k *Kernel, f *found) {
	k.types = newTypes(nil)
	start, err := k.address("__start_BTF")
	stop, err2 := k.address("__stop_BTF")
	if err != nil || err2 != nil {
		if spec, by := f.searchTypes(); spec != nil {
			k.types = newTypes(spec)
			k.fact("types", by)
			return
		}
		d.noTypes(k, "BTF: neither symbol __start_BTF nor a BTF header in kernel memory (built without CONFIG_DEBUG_INFO_BTF)")
		return
	}
	size := uint64(stop - start)
	if stop <= start || size > btf.MaxSize {
		d.noTypes(k, fmt.Sprintf("BTF: section from %v to %v makes no sense", start, stop))
		return
	}
	if f.early != nil && f.early.va == start && f.early.size == size {
		k.types = newTypes(f.early.spec)
		k.fact("types", fmt.Sprintf("btf in kernel memory (%d bytes)", size))
		return
	}
	d.progress("reading types")
	spec, err := btf.Load(k.copyImage(start, size))
	if err != nil {
		d.noTypes(k, fmt.Sprintf("BTF: %v", err))
		return
	}
	k.types = newTypes(spec)
	k.fact("types", fmt.Sprintf("btf in kernel memory (%d bytes)", size))
}

// copyImage copies constant data out of the kernel's image. What cannot be read
// is zero.
func (k *Kernel) copyImage(va arch.GVA, n uint64) []byte {
	p := make([]byte, n)
	first, err := k.space.Translate(va)
	last, err2 := k.space.Translate(va + arch.GVA(n) - 1)
	if err == nil && err2 == nil && uint64(last-first) == n-1 { // the image is one piece of physical memory
		if src := k.g.MapPhysical(first, n); src != nil {
			copy(p, src)
			return p
		}
		if m, err := k.g.ReadPhysical(p, first); err == nil && m == len(p) {
			return p
		}
	}
	for at := uint64(0); at < n; at += arch.PageSize {
		part := p[at:min(at+arch.PageSize, n)]
		m, _ := k.space.Read(part, va+arch.GVA(at))
		clear(part[m:])
	}
	return p
}

// Values of system_state (include/linux/kernel.h), for kernels without BTF:
// SYSTEM_RUNNING has been 2 until 5.14 and 3 since, and whatever is not 0 or 1
// is past the point where the kernel can be read.
const systemScheduling = 1

// checkBooted returns ErrNotBooted while the kernel has not started its first
// program.
func (d *describer) checkBooted(ctx context.Context, k *Kernel) error {
	if d.opts.Early || !d.g.Info().Live {
		return nil
	}
	va, err := k.address("system_state")
	if err != nil {
		return d.checkFirstProgram(k)
	}
	state, err := k.space.ReadUint32(va)
	if err != nil {
		return notBooted(ctx, d.g, nil, err)
	}
	running, err := k.types.Enum("system_states", "SYSTEM_RUNNING")
	if err != nil {
		running = systemScheduling + 1
	}
	if int64(state) < running {
		return fmt.Errorf("describe guest: %w: Linux %s found at %v, still starting (system_state is %d, running is %d)",
			vitrine.ErrNotBooted, k.release, k.base, state, running)
	}
	k.fact("boot", "kallsyms system_state")
	return nil
}

// addLateFacts tells of what is looked up when it is first asked for.
func (k *Kernel) addLateFacts() {
	if va, err := k.address("syscalls_metadata"); err != nil {
		k.lacks("system call metadata: symbol syscalls_metadata is absent (built without CONFIG_FTRACE_SYSCALLS)")
	} else if p, err := k.space.ReadPointer(va); err != nil || p == 0 {
		k.lacks("system call metadata: table not filled in")
	} else {
		k.fact("syscalls", "syscalls_metadata in kernel memory")
	}
	if _, err := k.address("__per_cpu_offset"); err != nil {
		k.lacks("per-CPU variables: symbol __per_cpu_offset is absent (built without CONFIG_SMP or CONFIG_KALLSYMS_ALL)")
	} else {
		k.fact("percpu", "kallsyms __per_cpu_offset")
	}
}

// DirectMap returns where the kernel maps physical address 0 in its map of all
// memory, or would if there were memory; false where that is not known.
func (k *Kernel) DirectMap() (arch.GVA, bool) {
	if k.direct != 0 {
		return k.direct, true
	}
	va, err := k.address("page_offset_base") // x86 with CONFIG_RANDOMIZE_MEMORY, since 4.8
	if err != nil {
		return 0, false
	}
	direct, err := k.space.ReadPointer(va)
	return direct, err == nil && direct>>63 != 0
}

// PhysBase returns the guest-physical address at which the kernel's image starts.
func (k *Kernel) PhysBase() arch.GPA { return arch.GPA(uint64(k.base) + k.physOff) }
