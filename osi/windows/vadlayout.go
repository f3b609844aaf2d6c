package windows

import (
	"context"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// vadLayout is where the nodes of the tree of mappings keep things.
type vadLayout struct {
	left, right arch.GVA
	inline      bool // EPROCESS.VadRoot is a node, whose right child is the top
	start, end  member
	wide        bool // page numbers have 8 bytes
	startHigh   member
	endHigh     member
	flags       member
	flagBytes   int
	subsection  member
	area        member // XP and 2003: the control area without a subsection between
	forms       []vadFlags
}

// vadFlags is where the bits of MMVAD_FLAGS are.
type vadFlags struct {
	kind, protection, private uint
	kindBits                  uint
}

// Types of mappings (MI_VAD_TYPE), and the protection of an image:
// MM_EXECUTE_WRITECOPY.
const (
	vadImage        = 2
	protectionImage = 7
)

// The forms that MMVAD_FLAGS has had. Their members are known of each build,
// the bits are not; the order of the members, and so the bits, is that of the
// symbols of XP, 7, 8 and 19041.
var (
	flagsXP   = vadFlags{20, 24, 31, 1} // CommitCharge 19, PhysicalMapping, ImageMap, ...
	flags7    = vadFlags{20, 24, 31, 3} // CommitCharge 19, NoChange, VadType 3, MemCommit, Protection 5, Spare 2, PrivateMemory
	flags7x64 = vadFlags{52, 56, 63, 3} // the same with a CommitCharge of 51
	flags8    = vadFlags{0, 3, 15, 3}   // VadType 3, Protection 5, PreferredNode 6, NoChange, PrivateMemory
	flags1903 = vadFlags{4, 7, 20, 3}   // Lock, LockContended, DeleteInProgress, NoChange, VadType 3, Protection 5, PreferredNode 6, PageSize 2, PrivateMemory
	flags11   = vadFlags{4, 7, 21, 3}   // the same with a PreferredNode of 7
)

func findVAD(f *finder, k *kernel.Kernel) vadLayout {
	w := arch.GVA(k.PointerSize())
	var v vadLayout
	v.start = f.get("_MMVAD_SHORT", "StartingVpn")
	v.end = f.get("_MMVAD_SHORT", "EndingVpn")
	v.startHigh = f.get("_MMVAD_SHORT", "StartingVpnHigh") // x64 since 8.1
	v.endHigh = f.get("_MMVAD_SHORT", "EndingVpnHigh")
	v.flags = f.get("_MMVAD_SHORT", "u", "u.VadFlags", "VadFlags")
	v.subsection = f.get("_MMVAD", "Subsection") // since Vista
	v.area = f.get("_MMVAD", "ControlArea")
	left, right := f.get("_MMVAD_SHORT", "LeftChild"), f.get("_MMVAD_SHORT", "RightChild")
	v.left, v.right = left.off, right.off
	old := left.ok // until 7
	_, err := f.types.Size("_MM_AVL_TABLE")
	if v.inline = err == nil; v.inline { // 2003 to 8: parent, left, right
		v.left, v.right = w, 2*w
	} else if !old { // since 8.1: RTL_BALANCED_NODE
		v.left, v.right = 0, w
	}
	v.wide = old && w == 8
	v.flagBytes = 4
	if v.wide {
		v.flagBytes = 8
	}
	v.forms = flagForms(f, w)
	return v
}

// flagForms returns the forms that the flags may have, the likeliest first.
func flagForms(f *finder, w arch.GVA) []vadFlags {
	if exact, ok := exactFlags(f); ok {
		return []vadFlags{exact}
	}
	has := func(m string) bool { return f.get("_MMVAD_FLAGS", m).ok }
	node, _ := f.types.Field("_MMVAD_FLAGS", "PreferredNode")
	switch {
	case has("ImageMap"):
		return []vadFlags{flagsXP}
	case has("MemCommit") && w == 8:
		return []vadFlags{flags7x64}
	case has("MemCommit"):
		return []vadFlags{flags7}
	case !has("Lock"):
		return []vadFlags{flags8}
	case node.BitSize == 7:
		return []vadFlags{flags11, flags1903, flags8}
	}
	return []vadFlags{flags1903, flags11, flags8} // 10 1803 and 1809 have members of both
}

// exactFlags takes the bits from symbols of exactly this kernel.
func exactFlags(f *finder) (vadFlags, bool) {
	var out vadFlags
	for m, to := range map[string]*uint{"VadType": &out.kind, "Protection": &out.protection, "PrivateMemory": &out.private} {
		at, err := f.types.Field("_MMVAD_FLAGS", m)
		if err != nil || at.Size == 0 { // a layout tells no sizes, and no bits
			return vadFlags{}, false
		}
		*to = uint(at.Offset)*8 + uint(at.BitOffset)
	}
	out.kindBits = 3
	return out, true
}

func bitsOf(v uint64, at, n uint) uint64 { return v >> at & (1<<n - 1) }

// isImage reports whether flags are those of a mapped executable.
func (b vadFlags) isImage(flags uint64) bool {
	want := uint64(vadImage)
	if b.kindBits == 1 {
		want = 1
	}
	return bitsOf(flags, b.kind, b.kindBits) == want
}

// learnFlags decides between the forms by the executables of processes, whose
// mapping must be an image with the protection of one.
func (s *system) learnFlags(ctx context.Context, as *vitrine.AddressSpace) vadFlags {
	s.mu.Lock()
	known := s.flags
	s.mu.Unlock()
	if known != nil {
		return *known
	}
	votes := make([]int, len(s.l.vad.forms))
	if len(votes) > 1 {
		s.eachProcess(ctx, as, func(p *process, err error) bool {
			if err != nil || p.kernelOnly {
				return err == nil
			}
			if v, err := s.vadAt(as, p, p.ptr(s.l.process.base)); err == nil {
				for i, form := range s.l.vad.forms {
					if form.isImage(v.flags) && bitsOf(v.flags, form.protection, 5) == protectionImage {
						votes[i]++
					}
				}
			}
			return true
		})
	}
	best := 0
	for i := range votes {
		if votes[i] > votes[best] {
			best = i
		}
	}
	form := s.l.vad.forms[best]
	s.mu.Lock()
	s.flags = &form
	s.mu.Unlock()
	return form
}
