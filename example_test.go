package vitrine_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// A program gets its guest from package qemu; these examples make one up.
func guestWithBanner() *vitrine.Guest {
	b := vitrinetest.New()
	space := b.NewSpace(arch.Paging4Level)
	space.Map(0xffffffff81000000, 2*arch.PageSize, 0)
	space.PutString(0xffffffff81000ff0, "Linux version 6.1.0, across two pages")
	b.SetRegisters(arch.Registers{CR0: arch.CR0PE | arch.CR0PG, CR3: uint64(space.Root()), CR4: arch.CR4PAE, EFER: arch.EFERLMA})
	return b.Guest()
}

func ExampleAddressSpace_ReadString() {
	g := guestWithBanner()
	defer g.Close()
	regs, err := g.Registers(context.Background(), 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	as := g.AddressSpace(regs.PagingMode(), regs.Root())
	s, err := as.ReadString(0xffffffff81000ff0, 100)
	fmt.Printf("%q %v\n", s, err)
	// A string that does not end in time comes with what there is of it.
	s, err = as.ReadString(0xffffffff81000ff0, 5)
	fmt.Printf("%q %v\n", s, errors.Is(err, vitrine.ErrTooLong))
	// Output:
	// "Linux version 6.1.0, across two pages" <nil>
	// "Linux" true
}

func ExampleAddressSpace_Read_fault() {
	g := guestWithBanner()
	defer g.Close()
	regs, err := g.Registers(context.Background(), 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	as := g.AddressSpace(regs.PagingMode(), regs.Root())
	// Two pages are mapped: of three, two can be read.
	n, err := as.Read(make([]byte, 3*arch.PageSize), 0xffffffff81000000)
	var fault *vitrine.FaultError
	if errors.As(err, &fault) {
		fmt.Printf("read %d bytes; nothing is mapped at %v\n", n, fault.Addr)
	}
	// Output:
	// read 8192 bytes; nothing is mapped at 0xffffffff81002000
}

func ExampleGuest_ReadPhysical() {
	b := vitrinetest.New()
	b.PutPhysical(0x1000, []byte("hello"))
	g := b.Guest()
	defer g.Close()
	p := make([]byte, 5)
	n, err := g.ReadPhysical(p, 0x1000)
	fmt.Printf("%s %v\n", p[:n], err)
	// Output:
	// hello <nil>
}
