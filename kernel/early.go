package kernel

import (
	"bytes"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/btf"
)

// earlyTypes is type information that was found by its header and decoded while
// the symbols were still being decoded: each takes about as long as the other,
// and most of the time that it takes to know a kernel. The symbols say
// afterwards whether it is the one.
type earlyTypes struct {
	spec *btf.Spec
	va   arch.GVA
	size uint64
}

// prefetchTypes starts to look for BTF in constant data that is mapped. The
// function that it returns waits for the end of that: nothing of the guest is
// read after it.
func (f *found) prefetchTypes() (wait func()) {
	done := make(chan *earlyTypes, 1)
	go func() { done <- findEarlyTypes(f.image) }()
	return func() { f.early = <-done }
}

// findEarlyTypes decodes the first BTF of a kernel's size in constant data, nil
// when there is none, or memory would have to be copied to look.
func findEarlyTypes(im *image) *earlyTypes {
	for _, r := range im.byTrust() {
		if r.writable || !r.noExec {
			continue
		}
		p := im.g.MapPhysical(r.pa, r.size)
		if spec, at, size := firstBTF(p); spec != nil {
			return &earlyTypes{spec: spec, va: r.va + arch.GVA(at), size: uint64(size)}
		}
	}
	return nil
}

// firstBTF decodes the first BTF of a kernel's size in p, nil when there is none.
func firstBTF(p []byte) (spec *btf.Spec, at, size int) {
	for ; at < len(p); at += len(btfStart) {
		i := bytes.Index(p[at:], btfStart)
		if i < 0 {
			break
		}
		at += i
		size = btf.Extent(p[at:])
		if size < minBTF || size > len(p)-at {
			continue
		}
		// A copy: the guest may write to it between check and use.
		if spec, err := btf.Load(bytes.Clone(p[at : at+size])); err == nil {
			return spec, at, size
		}
	}
	return nil, 0, 0
}
