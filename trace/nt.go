package trace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// ntNames finds the functions of an NT kernel by their names: services, whose
// functions its service table tells, and whatever it exports or the user's
// symbols name.
type ntNames struct {
	k        symbols
	services *kernel.Services // nil when the table was not found
	byName   map[string]kernel.Service
	missing  error // why services is nil
	image    imageOf
}

// imageOf tells what lies in the kernel's image.
type imageOf func() (base, end arch.GVA)

// newNTNames reads the service table, and names its entries by the stubs of
// ntdll.dll, which every process has. Sys may be nil: then only those are named
// that the kernel has stubs of itself.
func newNTNames(ctx context.Context, k *kernel.Kernel, sys osi.System) *ntNames {
	n := &ntNames{k: k, byName: map[string]kernel.Service{}, image: k.Image}
	n.services, n.missing = k.NT().Services()
	if n.services == nil {
		return n
	}
	if sys != nil {
		osi.NameServices(ctx, sys, n.services)
	}
	for _, s := range n.services.Named() {
		n.byName[s.Name] = s
	}
	return n
}

// ntFunction is a function of an NT kernel.
type ntFunction struct {
	name    string // of the service, "" for other functions
	symbol  string // what it is called
	addr    arch.GVA
	args    int // how many a service takes, -1 when it is not known
	service bool
}

// resolve finds what a name means: a service, also by the name of its Zw stub
// or without prefix; or any function that has a symbol.
func (n *ntNames) resolve(name string) (ntFunction, error) {
	for _, form := range serviceNames(name) {
		if s, ok := n.byName[form]; ok {
			return n.function(s), nil
		}
	}
	sym, err := n.k.Symbol(name)
	if err != nil {
		if n.missing != nil {
			err = errors.Join(err, n.missing)
		}
		return ntFunction{}, fmt.Errorf("trace %s: %w: %w", name, ErrUnknownCall, err)
	}
	if sym.Type != 'T' && sym.Type != 't' {
		return ntFunction{}, fmt.Errorf("trace %s: %w: it is not a function", name, ErrUnknownCall)
	}
	f := ntFunction{symbol: sym.Name, addr: sym.Addr, args: -1}
	if count, ok := syscalls.NTArgs(sym.Name); ok {
		f.name, f.args, f.service = sym.Name, count, true // exported, and no table found
	}
	return f, nil
}

// serviceNames are the names of services that a name may mean.
func serviceNames(name string) []string {
	if rest, ok := strings.CutPrefix(name, "Zw"); ok {
		return []string{"Nt" + rest}
	}
	return []string{name, "Nt" + name}
}

func (n *ntNames) function(s kernel.Service) ntFunction {
	f := ntFunction{name: s.Name, symbol: s.Name, addr: s.Addr, args: s.Args, service: true}
	if count, ok := syscalls.NTArgs(s.Name); ok {
		f.args = count
	}
	// Something else than the kernel serves it: say where.
	if base, end := n.image(); s.Addr < base || s.Addr >= end {
		f.symbol = fmt.Sprintf("%s@%v", s.Name, s.Addr)
	}
	return f
}

// all returns the functions of all services that have names, each function once.
func (n *ntNames) all() ([]ntFunction, error) {
	if n.services == nil {
		return nil, fmt.Errorf("trace all calls: %w", n.missing)
	}
	var out []ntFunction
	for _, s := range n.services.Named() {
		out = append(out, n.function(s))
	}
	return distinct(out, nil), nil
}

// distinct returns the functions that are not in ignore, each address once.
func distinct(fs, ignore []ntFunction) []ntFunction {
	seen := map[arch.GVA]bool{}
	for _, f := range ignore {
		seen[f.addr] = true
	}
	return slices.DeleteFunc(fs, func(f ntFunction) bool {
		dup := seen[f.addr]
		seen[f.addr] = true
		return dup
	})
}

// chosen returns the functions that the options name.
func (n *ntNames) chosen(o *CallsOptions) ([]ntFunction, error) {
	var errs []error
	pick := func(names []string) (found []ntFunction) {
		for _, name := range names {
			f, err := n.resolve(name)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			found = append(found, f)
		}
		return found
	}
	ignore, out := pick(o.Ignore), pick(o.Names)
	if len(o.Names) == 0 {
		var err error
		if out, err = n.all(); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if out = distinct(out, ignore); len(out) == 0 {
		return nil, errors.New("trace: no system call is left to trace")
	}
	return out, nil
}

// kvmBreakpoints is how many breakpoints a processor holds itself.
const kvmBreakpoints = 4

// plantable refuses more functions than KVM's processors have breakpoints for:
// those that KVM would hold otherwise are bytes in the kernel's text, which NT
// guards. One is for the returns of services, which all lead to one place.
func plantable(g *vitrine.Guest, fs []ntFunction) error {
	if g.Info().Accel != "kvm" || len(fs) < kvmBreakpoints {
		return nil
	}
	return fmt.Errorf("trace %d functions of an NT guest under KVM: its processors hold %d breakpoints, one of them for returns; name at most %d calls: %w",
		len(fs), kvmBreakpoints, kvmBreakpoints-1, errors.ErrUnsupported)
}

// ntObjects answers what a decoder asks about handles.
type ntObjects struct {
	sys    osi.System
	ctx    context.Context //nolint:containedctx // it lives as long as one hit
	task   arch.GVA
	system arch.GVA // the process System, whose handles the kernel's own are
	x64    bool
}

var _ syscalls.Objects = (*ntObjects)(nil)

// kernelHandle marks handles of the kernel's own table: all bits from 31 on.
const kernelHandle = 0x80000000

// Object implements syscalls.Objects.
func (o *ntObjects) Object(handle uint64) (kind, name string, ok bool) {
	if o.sys == nil || handle == 0 {
		return "", "", false
	}
	h := osi.Handle{Task: o.task}
	switch {
	case o.x64 && handle>>31 == 1<<33-1, !o.x64 && handle&kernelHandle != 0:
		h.Task, handle = o.system, handle&(kernelHandle-1)
	case handle >= kernelHandle:
		return "", "", false
	}
	f, err := o.sys.FileByFD(o.ctx, h, int(handle))
	if err != nil || f.Type == "" {
		return "", "", false
	}
	return f.Type, f.Path, true
}
