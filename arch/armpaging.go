package arch

// armFormat is what AArch64 page tables differ in from x86 ones.
// Source: Arm ARM (DDI 0487J), sections D8.2 and D8.3, for 4 KiB granules.
type armFormat struct {
	user bool // TTBR0's: addresses at the bottom
	wide bool // FEAT_LPA2 (TCR.DS): addresses have bits 50 and 51 in bits 8 and 9
}

// Bits of descriptors. Those of a table hold for all that is below it.
const (
	armTable    = 1 << 1  // at the last level: a page
	armUser     = 1 << 6  // AP[1]: EL0 may access
	armReadOnly = 1 << 7  // AP[2]
	armDirty    = 1 << 51 // DBM: written to, it becomes writable; Linux's own "writable" where processors lack it
	armPXN      = 1 << 53 // EL1 may not execute
	armUXN      = 1 << 54 // EL0 may not execute

	armTablePXN      = 1 << 59
	armTableUXN      = 1 << 60
	armTableNoUser   = 1 << 61 // APTable[0]
	armTableReadOnly = 1 << 62 // APTable[1]
)

// Bits of TTBR0 and TTBR1 and of descriptors that hold an address. A register
// also has the ASID at the top and CnP at the bottom, a descriptor attributes.
const (
	armMask48 = 0x0000_ffff_ffff_f000
	armMask50 = 0x0003_ffff_ffff_f000
	// With LPA2 a top table is as small as its few entries, and bits 48 to 51 of
	// its address are in bits 2 to 5.
	armRootWide = 0x0000_ffff_ffff_ffc0 | 0xf<<2
)

// armLevels are all levels of 4 KiB granules, level -1 first. A format has those
// from its widest address down, the first one with as many bits as remain.
var armLevels = []level{{shift: 48, bits: 9}, {shift: 39, bits: 9}, {shift: 30, bits: 9, large: true}, {shift: 21, bits: 9, large: true}, {shift: 12, bits: 9}}

func armFormatOf(vaBits uint, user, wide bool) *format {
	f := &format{entry: 8, rootMask: armMask48, addrMask: armMask48, vaBits: vaBits, arm: &armFormat{user: user, wide: wide}}
	if wide {
		f.rootMask, f.addrMask = armRootWide, armMask50
	}
	for _, l := range armLevels {
		if l.shift >= vaBits {
			continue
		}
		l.bits = min(l.bits, vaBits-l.shift)
		l.large = l.large || wide && l.shift == 39 // blocks of 512 GiB
		f.levels = append(f.levels, l)
	}
	return f
}

func (a *armFormat) root(masked uint64) GPA {
	if !a.wide {
		return GPA(masked)
	}
	return GPA(masked&^0x3f | masked>>2&0xf<<48)
}

func (a *armFormat) address(e, mask uint64) GPA {
	if !a.wide {
		return GPA(e & mask)
	}
	return GPA(e&mask | e>>8&3<<50)
}

// holds reports whether va is in the half. A program may keep a tag in the top
// byte, which Linux has the processor ignore (TCR.TBI0).
func (a *armFormat) holds(va GVA, bits uint) bool {
	if a.user {
		return uint64(va)&^(0xff<<56)>>bits == 0
	}
	return int64(va)>>bits == -1
}

// armKind tells what a valid descriptor is: bit 1 is set in those of tables and
// of pages, and clear in those of blocks, which some levels can have.
func armKind(e uint64, l level, last bool) (present, leaf bool) {
	table := e&armTable != 0
	switch {
	case last:
		return table, table
	case table:
		return true, false
	}
	return l.large, l.large
}

// restrict narrows the permissions by one descriptor.
func (a *armFormat) restrict(m *Mapping, e uint64, leaf bool) {
	if !leaf {
		noExec := uint64(armTablePXN)
		if a.user {
			noExec = armTableUXN
		}
		m.Writable = m.Writable && e&armTableReadOnly == 0
		m.User = m.User && e&armTableNoUser == 0
		m.NoExec = m.NoExec || e&noExec != 0
		return
	}
	noExec := uint64(armPXN)
	if a.user {
		noExec = armUXN
	}
	m.Writable = m.Writable && (e&armReadOnly == 0 || e&armDirty != 0)
	m.User = m.User && e&armUser != 0
	m.NoExec = m.NoExec || e&noExec != 0
}
