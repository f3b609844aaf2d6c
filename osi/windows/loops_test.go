package windows

import (
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
)

// pointer reads a pointer of the guest.
func pointer(g *nttest.Guest, read func(arch.GVA) uint64, at arch.GVA) arch.GVA {
	if v := read(at); g.X64 {
		return arch.GVA(v)
	} else {
		return arch.GVA(uint32(v))
	}
}

// The lists of a process's loader are its own to spoil: whatever they lead to,
// the list ends, and has what is mapped.
func TestLoaderLoops(t *testing.T) {
	for _, b := range builds {
		w := arch.GVA(4)
		if b.x64() {
			w = 8
		}
		for list := range arch.GVA(3) {
			for name, to := range map[string]func(head, first arch.GVA) arch.GVA{
				"to itself":        func(_, first arch.GVA) arch.GVA { return first },
				"nowhere":          func(arch.GVA, arch.GVA) arch.GVA { return 0 },
				"into the kernel":  func(arch.GVA, arch.GVA) arch.GVA { return nttestKernel(b) },
				"to no memory":     func(arch.GVA, arch.GVA) arch.GVA { return 0x6fff_0000 },
				"into its middle":  func(_, first arch.GVA) arch.GVA { return first + 1 },
				"behind the lists": func(head, _ arch.GVA) arch.GVA { return head + 0x1000 },
			} {
				g := nttest.New(b.config())
				s := openFake(t, g)
				p := g.Processes[2]
				ldr := pointer(g, p.Space.Uint64, p.PEB+g.At("_PEB", "Ldr"))
				head := ldr + 8 + w + list*2*w
				first := pointer(g, p.Space.Uint64, head)
				p.Space.PutUint(first, uint64(to(head, first)), int(w))
				names, failed := map[string]bool{}, 0
				for l, err := range s.Libraries(t.Context(), osi.Handle{Task: p.Task}) {
					if err != nil {
						failed++
						continue
					}
					names[l.Name] = true
				}
				if !names["KERNEL32.DLL"] || !names["ntdll.dll"] || len(names) > 4 {
					t.Errorf("%s, list %d leads %s: libraries %v, %d errors", b.name, list, name, names, failed)
				}
			}
		}
	}
}

// nttestKernel is an address of the kernel.
func nttestKernel(b build) arch.GVA {
	if b.x64() {
		return 0xffff_f800_0000_0000
	}
	return 0x8000_0000
}

// The ways from an object to its name may lead round: each ends.
func TestNameLoops(t *testing.T) {
	for _, b := range builds {
		g := nttest.New(b.config())
		s := openFake(t, g)
		word := g.Kernel.Uint64
		task := osi.Handle{Task: g.Processes[2].Task}
		for f, err := range s.Files(t.Context(), task) {
			if err != nil {
				t.Fatalf("%s: %v", b.name, err)
			}
			switch f.Type {
			case "Key":
				block := pointer(g, word, f.Object+g.At("_CM_KEY_BODY", "KeyControlBlock"))
				g.Word(block+g.At("_CM_KEY_CONTROL_BLOCK", "ParentKcb"), uint64(block))
			case "File":
				g.Word(f.Object+g.At("_FILE_OBJECT", "RelatedFileObject"), uint64(f.Object))
			}
		}
		seen := 0
		for f, err := range s.Files(t.Context(), task) {
			if err != nil {
				t.Errorf("%s: %v", b.name, err)
			}
			if seen++; f.Type == "Key" && f.Path != "" {
				t.Errorf("%s: a key under itself has the path %.80q", b.name, f.Path)
			}
		}
		if seen != 6 {
			t.Errorf("%s: %d handles, want 6", b.name, seen)
		}
	}
}
