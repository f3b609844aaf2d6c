package nttest

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// ServiceCount is how many entries the service table has.
const ServiceCount = 130

// makeServices writes the service table, its descriptor, and of each service
// that has a name the exported function and its Zw stub. Services without a name
// are all served by one function, without one.
func (g *Guest) makeServices() {
	if g.Services == nil {
		return
	}
	nobody := g.text
	g.Kernel.Put(nobody, []byte{0xb8, 0x02, 0x00, 0x00, 0xc0, 0xc3})
	g.text += 16
	g.ServiceTable = g.reserve(4 * ServiceCount)
	args := g.reserve(ServiceCount)
	entry := func(nr int, to arch.GVA, n byte) {
		v := uint32(to)
		if g.X64 {
			v = uint32(int64(to)-int64(g.ServiceTable)) << 4
			if n > 4 {
				v |= uint32(n - 4)
			}
		}
		g.Kernel.PutUint32(g.ServiceTable+arch.GVA(4*nr), v)
		g.Kernel.Put(args+arch.GVA(nr), []byte{4 * n})
	}
	for nr := range ServiceCount {
		entry(nr, nobody, 0)
	}
	for _, name := range slices.Sorted(maps.Keys(g.Services)) {
		nr := g.Services[name]
		g.function(name, []byte{0x33, 0xc0, 0xc3})
		entry(nr, g.Exports[name], 6)
		g.function("Zw"+strings.TrimPrefix(name, "Nt"), g.stub(uint32(nr)))
	}
	at := g.reserve(4 * g.w)
	g.Word(at, uint64(g.ServiceTable))
	g.Word(at+2*arch.GVA(g.w), ServiceCount)
	g.Word(at+3*arch.GVA(g.w), uint64(args))
	if !g.X64 && !g.NoServiceName {
		g.export("KeServiceDescriptorTable", at)
	}
}

// stub is the code of a Zw function, as far as it is looked at.
func (g *Guest) stub(nr uint32) []byte {
	if g.X64 {
		return binary.LittleEndian.AppendUint32([]byte{0x48, 0x8b, 0xc4, 0xfa, 0x48, 0x83, 0xec, 0x10, 0x50, 0x9c, 0x6a, 0x10, 0x48, 0x8d, 0x05, 0, 0, 0, 0, 0x50, 0xb8}, nr)
	}
	return append(binary.LittleEndian.AppendUint32([]byte{0xb8}, nr), 0x8d, 0x54, 0x24, 0x04, 0x9c, 0x6a, 0x08)
}
