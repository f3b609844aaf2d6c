package kernel

import (
	"context"
	"errors"
	"fmt"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/kdbg"
)

// findHeads finds the heads of the kernel's lists, by every way that there is;
// a place is taken only when what lies there is such a list.
func (b *ntBuilder) findHeads(ctx context.Context) error {
	kd := b.findKDBG()
	links, err := b.types.field("_EPROCESS", "ActiveProcessLinks")
	if err != nil {
		return fmt.Errorf("describe guest: %w: NT %s at %v: process list not found: %w", vitrine.ErrNotUnderstood, b.k.release, b.k.base, err)
	}
	head := b.processHead(links.Offset)
	if head == 0 {
		return fmt.Errorf("describe guest: %w: NT %s at %v: the list of System leads to no head in the kernel", vitrine.ErrNotUnderstood, b.k.release, b.k.base)
	}
	b.nt.ProcessHead = head
	by := "list that System is in"
	if kd != nil && arch.GVA(kd.PsActiveProcessHead) == head {
		by += ", KDBG agrees"
	}
	b.k.fact("PsActiveProcessHead", by)
	b.name("PsActiveProcessHead", head)
	b.findModules(kd)
	b.setPCR()
	b.findProcessors(kd)
	b.findPCRs(ctx)
	return nil
}

// processHead returns the one node of the process list that lies in the
// kernel's image.
func (b *ntBuilder) processHead(links uint64) arch.GVA {
	nodes, err := b.ring(b.nt.System + arch.GVA(links))
	if err != nil {
		return 0
	}
	var head arch.GVA
	for _, n := range nodes {
		if b.inImage(n) {
			if head != 0 {
				return 0
			}
			head = n
		}
	}
	return head
}

func (b *ntBuilder) inImage(a arch.GVA) bool { return a >= b.k.base && a < b.k.end }

// maxRing bounds the lists that are walked while a kernel is described.
const maxRing = 1 << 16

var errNoRing = errors.New("no list that leads back")

// ring returns the nodes of a doubly linked list, at first. Each must point
// back to the one before. What looks like a list for a while is walked again:
// the guest may have changed it just then.
func (b *ntBuilder) ring(at arch.GVA) ([]arch.GVA, error) {
	for try := 1; ; try++ {
		out, whole := b.ringOnce(at)
		if whole {
			return out, nil
		}
		if len(out) < 3 || len(out) == maxRing || try == attemptsNT || !b.d.g.Info().Live {
			return nil, errNoRing
		}
	}
}

func (b *ntBuilder) ringOnce(at arch.GVA) (out []arch.GVA, whole bool) {
	size := arch.GVA(b.k.PointerSize())
	for node := at; len(out) < maxRing; {
		out = append(out, node)
		next, err := b.word(node)
		if err != nil || !b.nt.KernelAddress(next) {
			return out, false
		}
		if back, err := b.word(next + size); err != nil || back != node {
			return out, false
		}
		if node = next; node == at {
			return out, true
		}
	}
	return out, false
}

// findModules finds PsLoadedModuleList: its first entry is the kernel.
func (b *ntBuilder) findModules(kd *kdbg.Block) {
	type candidate struct {
		at arch.GVA
		by string
	}
	var all []candidate
	if at, err := b.k.address("PsLoadedModuleList"); err == nil {
		all = append(all, candidate{at, "symbol"})
	}
	if kd != nil {
		all = append(all, candidate{arch.GVA(kd.PsLoadedModuleList), "KDBG"})
	}
	if v := b.versionBlock(); v != 0 {
		if at, err := b.k.space.ReadUint64(v + versionModules); err == nil {
			all = append(all, candidate{b.narrow(at), "KdVersionBlock"})
		}
	}
	for _, c := range all {
		if b.isModuleList(c.at) {
			b.nt.ModuleList = c.at
			b.k.fact("PsLoadedModuleList", c.by+", leads to the kernel's own entry")
			break
		}
	}
	if b.nt.ModuleList == 0 {
		if b.nt.ModuleList = b.scanModules(); b.nt.ModuleList == 0 {
			b.k.lacks("list of drivers: neither a symbol, KDBG, KdVersionBlock nor a scan of the kernel's data led to it")
			return
		}
		b.k.fact("PsLoadedModuleList", "scan of the kernel's data for the list whose first entry is the kernel")
	}
	b.name("PsLoadedModuleList", b.nt.ModuleList)
}

func (b *ntBuilder) narrow(a uint64) arch.GVA {
	if b.nt.X64 {
		return arch.GVA(a)
	}
	return arch.GVA(uint32(a))
}

// isModuleList reports whether the list at head begins with the kernel's entry.
func (b *ntBuilder) isModuleList(head arch.GVA) bool {
	size := arch.GVA(b.k.PointerSize())
	if !b.nt.KernelAddress(head) {
		return false
	}
	first, err := b.word(head)
	if err != nil || !b.nt.KernelAddress(first) || first == head {
		return false
	}
	if back, err := b.word(first + size); err != nil || back != head {
		return false
	}
	base, err := b.types.field("_LDR_DATA_TABLE_ENTRY", "DllBase")
	if err != nil {
		return false
	}
	at, err := b.word(first + arch.GVA(base.Offset))
	return err == nil && at == b.k.base
}

// maxScan bounds how much of the kernel's data is scanned.
const maxScan = 16 << 20

// eachDatum calls f with every pointer-sized word of the kernel's writable
// sections until it returns true, and returns where that was.
func (b *ntBuilder) eachDatum(f func(at, v arch.GVA) bool) arch.GVA {
	size, total := b.k.PointerSize(), uint32(0)
	buf := make([]byte, arch.PageSize)
	for _, s := range b.f.image.Sections {
		if !s.Writable || total+s.Size > maxScan {
			continue
		}
		total += s.Size
		for rva := s.RVA &^ (arch.PageSize - 1); rva < s.RVA+s.Size; rva += arch.PageSize {
			page := b.k.base + arch.GVA(rva)
			n, _ := b.k.space.Read(buf, page)
			for i := 0; i+size <= n; i += size {
				v := arch.GVA(leUint(buf[i : i+size]))
				if f(page+arch.GVA(i), v) {
					return page + arch.GVA(i)
				}
			}
		}
	}
	return 0
}

func leUint(b []byte) uint64 {
	var v uint64
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

func (b *ntBuilder) scanModules() arch.GVA {
	return b.eachDatum(func(at, v arch.GVA) bool {
		return b.nt.KernelAddress(v) && !b.inImage(v) && b.isModuleList(at)
	})
}

// findProcessors takes KiProcessorBlock when what it lists are KPRCBs: by a
// symbol, by KDBG, or by a scan. Without it the KPCR of a processor in user mode
// can't be found on x64 where the backend does not tell what SWAPGS would load.
func (b *ntBuilder) findProcessors(kd *kdbg.Block) {
	at, err := b.k.address("KiProcessorBlock")
	by := "symbol"
	if err != nil && kd != nil {
		at, by = arch.GVA(kd.KiProcessorBlock), "KDBG"
	}
	if !b.nt.KernelAddress(at) || !b.isProcessorBlock(at) {
		at, by = b.eachDatum(func(at, v arch.GVA) bool {
			return b.nt.KernelAddress(v) && b.isProcessorBlock(at)
		}), "scan of the kernel's data for the addresses of KPRCBs"
	}
	if at == 0 {
		return
	}
	b.nt.Processors = at
	b.k.fact("KiProcessorBlock", by+", leads to the KPRCBs of all processors")
	b.name("KiProcessorBlock", at)
}

// isProcessorBlock reports whether the array at va lists the KPRCBs of all
// virtual processors, each with its number.
func (b *ntBuilder) isProcessorBlock(va arch.GVA) bool {
	number, err := b.types.field("_KPRCB", "Number")
	if err != nil {
		return false
	}
	for cpu := range min(b.d.g.CPUs(), maxCPUs) {
		prcb, err := b.word(va + arch.GVA(cpu*b.k.PointerSize()))
		if err != nil || !b.nt.KernelAddress(prcb) || uint64(prcb) < b.nt.prcb || !isPCR(b.k.space, prcb-arch.GVA(b.nt.prcb), b.nt.X64) {
			return false
		}
		if n, err := b.k.space.ReadUint8(prcb + arch.GVA(number.Offset)); err != nil || int(n) != cpu&0xff {
			return false
		}
	}
	return true
}

// setPCR sets where the KPCR has what the provider reads of it.
func (b *ntBuilder) setPCR() {
	b.nt.prcb, b.nt.currentThread = prcbData86, prcbData86+prcbThread86
	if b.nt.X64 {
		b.nt.prcb, b.nt.currentThread = prcbData64, prcbData64+prcbThread64
	}
	if f, ok := b.types.inferred("_KPCR", "CurrentThread"); ok {
		b.nt.currentThread = f.Offset
	}
}

// findPCRs says which processors' KPCRs can be found now.
func (b *ntBuilder) findPCRs(ctx context.Context) {
	missing := 0
	for cpu := range min(b.d.g.CPUs(), maxCPUs) {
		if _, err := b.nt.PCR(ctx, cpu); err != nil {
			missing++
		}
	}
	if missing > 0 {
		b.k.lacks(fmt.Sprintf("KPCR of %d of %d virtual processors: what they run can't be told yet", missing, b.d.g.CPUs()))
		return
	}
	b.k.fact("KPCR", "FS or GS of each virtual processor, or KiProcessorBlock")
}

// The version block (DBGKD_GET_VERSION64), a debugger's way to KDBG.
const (
	versionBase    = 0x10
	versionModules = 0x18
	versionData    = 0x20
)

// versionBlock returns KdVersionBlock of the first processor's KPCR, 0 when it
// has none or one that speaks of another kernel.
func (b *ntBuilder) versionBlock() arch.GVA {
	r, err := b.d.g.Registers(context.Background(), 0)
	if err != nil {
		return 0
	}
	pcr, at := findPCR(b.k.space, r, b.nt.X64), arch.GVA(pcrVersion86)
	if b.nt.X64 {
		at = pcrVersion64
	}
	if pcr == 0 {
		return 0
	}
	v, err := b.word(pcr + at)
	if err != nil || !b.nt.KernelAddress(v) {
		return 0
	}
	if base, err := b.k.space.ReadUint64(v + versionBase); err != nil || b.narrow(base) != b.k.base {
		return 0
	}
	return v
}

// findKDBG finds the debugger's block: by the version block, by its symbol, or
// by its tag in the kernel's data. One that is encoded is decoded where the
// symbols tell the key.
func (b *ntBuilder) findKDBG() *kdbg.Block {
	try := func(at arch.GVA, by string) *kdbg.Block {
		p := make([]byte, kdbg.MinSize)
		if _, err := b.k.space.Read(p, at); err != nil {
			return nil
		}
		kd, err := kdbg.Parse(p, b.nt.X64)
		if key, ok := b.kdbgKey(); err != nil && ok {
			kd, err = kdbg.Parse(kdbg.Decode(p, key), b.nt.X64)
			by += ", decoded"
		}
		if err != nil || b.narrow(kd.Base) != b.k.base {
			return nil
		}
		b.k.fact("KDBG", by)
		b.name("KdDebuggerDataBlock", at)
		return kd
	}
	if v := b.versionBlock(); v != 0 {
		list, err := b.k.space.ReadUint64(v + versionData)
		if at, err2 := b.word(b.narrow(list)); err == nil && err2 == nil {
			if kd := try(at, "KdVersionBlock"); kd != nil {
				return kd
			}
		}
	}
	if at, err := b.k.address("KdDebuggerDataBlock"); err == nil {
		if kd := try(at, "symbol"); kd != nil {
			return kd
		}
	}
	var kd *kdbg.Block
	tag := arch.GVA(leUint([]byte(kdbg.Tag)))
	b.eachDatum(func(at, v arch.GVA) bool {
		if v&0xffff_ffff == tag && kd == nil {
			kd = try(at-0x10, "its tag in the kernel's data")
		}
		return kd != nil
	})
	if kd == nil {
		b.k.lacks("KDBG: not found, or encoded (8 for x64 and later, unless a debugger is attached)")
	}
	return kd
}

func (b *ntBuilder) kdbgKey() (kdbg.Key, bool) {
	never, err := b.variable64("KiWaitNever")
	always, err2 := b.variable64("KiWaitAlways")
	at, err3 := b.k.address("KdpDataBlockEncoded")
	return kdbg.Key{Never: never, Always: always, Address: uint64(at)}, errors.Join(err, err2, err3) == nil
}

func (b *ntBuilder) variable64(name string) (uint64, error) {
	at, err := b.k.address(name)
	if err != nil {
		return 0, err
	}
	return b.k.space.ReadUint64(at)
}
