package kernel

import (
	"encoding/binary"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/btf"
	"github.com/vitrine-vmi/vitrine/kernel/internal/vmcoreinfo"
)

// Without CONFIG_KALLSYMS_ALL a kernel has symbols of its functions only. What
// data symbols would have told is then searched for in the image.

// maxPointers bounds how many pointers are followed in search of VMCOREINFO.
const maxPointers = 1 << 20

// infoByScan looks in the kernel's variables for a pointer to a page that starts
// with VMCOREINFO: vmcoreinfo_data and vmcoreinfo_note are such. It looks at
// nothing that a program could own but does not own the pointer to, and the
// caller compares what it returns with the other facts.
func (f *found) infoByScan() *vmcoreinfo.Info {
	var buf, p []byte
	left := maxPointers
	for _, r := range f.image.runs {
		if !r.writable {
			continue
		}
		p, buf = f.image.bytes(r, buf)
		for ; len(p) >= 8; p = p[8:] {
			v := binary.LittleEndian.Uint64(p)
			if v%arch.PageSize != 0 || v>>63 == 0 || v >= uint64(f.image.low) {
				continue
			}
			if left--; left < 0 {
				return nil
			}
			if in := f.infoAt(arch.GVA(v)); in != nil && f.checkInfo(in) == nil {
				return in
			}
		}
	}
	return nil
}

// infoAt reads VMCOREINFO from a page, nil when it holds none.
func (f *found) infoAt(va arch.GVA) *vmcoreinfo.Info {
	var page [arch.PageSize]byte
	if n, err := f.space.Read(page[:64], va); err != nil || vmcoreinfo.InPage(page[:n]) == nil {
		return nil
	}
	n, _ := f.space.Read(page[:], va)
	in, err := vmcoreinfo.Parse(vmcoreinfo.InPage(page[:n]))
	if err != nil {
		return nil
	}
	return in
}

// btfStart is the start of a BTF header: magic, version 1, no flags, and the
// length that the header has had from the beginning.
var btfStart = []byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0}

// minBTF is less than the BTF of any kernel, and more than what of it a kernel
// may carry for its modules or as an example.
const minBTF = 64 << 10

// searchTypes looks for BTF in the constant data of the image.
func (f *found) searchTypes() (*btf.Spec, string) {
	var buf, p []byte
	for _, r := range f.image.byTrust() {
		if r.writable {
			continue
		}
		p, buf = f.image.bytes(r, buf)
		if spec, at, size := firstBTF(p); spec != nil {
			return spec, fmt.Sprintf("btf in kernel memory, found by its header at %v (%d bytes)", r.va+arch.GVA(at), size)
		}
	}
	return nil, ""
}
