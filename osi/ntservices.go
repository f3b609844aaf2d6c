package osi

import (
	"context"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// maxNtdlls is how many processes are asked for their ntdll.dll: parts of it may
// be paged out in one and not in another.
const maxNtdlls = 8

// NameServices names the entries of an NT kernel's service table by the stubs of
// ntdll.dll, which every process has. It asks processes until all services have
// names, or asking more brings nothing.
func NameServices(ctx context.Context, sys System, services *kernel.Services) {
	left, asked := services.Unnamed(), 0
	for h, err := range sys.ProcessHandles(ctx) {
		if err != nil || left == 0 || asked >= maxNtdlls {
			return
		}
		base := ntdllOf(ctx, sys, h)
		if base == 0 {
			continue
		}
		as, err := sys.AddressSpace(ctx, h)
		if err != nil {
			continue
		}
		before := left
		if left, err = services.NameBy(as, base); err != nil {
			continue
		}
		if asked++; left == before && asked > 1 {
			return
		}
	}
}

// ntdllOf returns where a process has the ntdll.dll of the kernel's width, 0 if
// it is not seen.
func ntdllOf(ctx context.Context, sys System, h Handle) arch.GVA {
	for l, err := range sys.Libraries(ctx, h) {
		if err != nil {
			return 0
		}
		path := strings.ToLower(l.Path)
		if strings.EqualFold(l.Name, "ntdll.dll") && !strings.Contains(path, `\syswow64\`) && !strings.Contains(path, `\sysarm32\`) {
			return l.Base
		}
	}
	return 0
}
