package windows

import (
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
	"github.com/vitrine-vmi/vitrine/vitrinetest/providertest"
)

// otherwise returns where a kernel that claims the build has its members: it
// has more words in the kernel's part of processes and threads, and a signature
// before key control blocks, as checked and compatible kernels do.
func (b build) otherwise() nttest.Offset {
	types, _, _ := kernel.NTLayout(b.build, b.x64())
	size := func(name string) uint64 {
		n, _ := types.Size(name)
		return n
	}
	pcb, tcb := size("_KPROCESS"), size("_KTHREAD")
	offsets, w := b.offsets(), uint64(4)
	if b.x64() {
		w = 8
	}
	return func(structName, path string) (uint64, bool) {
		off, ok := offsets(structName, path)
		switch {
		case structName == "_EPROCESS" && off >= pcb, structName == "_ETHREAD" && off >= tcb:
			off += 16
		case structName == "_CM_KEY_CONTROL_BLOCK":
			off += w
		}
		return off, ok
	}
}

// A kernel that claims a build and lays structures out otherwise is understood
// all the same.
func TestOtherwise(t *testing.T) {
	for _, b := range builds {
		t.Run(b.name, func(t *testing.T) {
			c := b.config()
			c.Offset = b.otherwise()
			g := nttest.New(c)
			providertest.Test(t, openFake(t, g), b.truth(g))
		})
	}
}

// Mappings that no file is found behind are named by the loader, unless they
// are a process's own memory.
func TestMappingsByLoader(t *testing.T) {
	for _, b := range builds {
		c := b.config()
		notepad := c.Processes[2]
		for i := range notepad.VADs {
			if v := &notepad.VADs[i]; v.Start == 0x76000000 {
				v.File, v.Device = "", ""
			}
		}
		s := openFake(t, nttest.New(c))
		p, err := s.ProcessByPID(t.Context(), 1234)
		if err != nil {
			t.Fatal(err)
		}
		for at, want := range map[arch.GVA]string{0x76001000: `C:\Windows\System32\KERNEL32.DLL`, 0x10000: "", 0x77000000: disk + system32("ntdll.dll")} {
			m, err := s.MappingAt(t.Context(), p.Handle, at)
			if err != nil || m.Name != want || (m.Kind == osi.MappingFile) != (want != "") {
				t.Errorf("%s: %v: %+v, %v, want the name %q", b.name, at, m, err, want)
			}
		}
	}
}
