package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel/internal/infer"
	"github.com/vitrine-vmi/vitrine/kernel/internal/pe"
)

// Service is one entry of an NT kernel's service table: a system call.
type Service struct {
	Number int
	Name   string   // "NtCreateFile"; "" when no stub told it
	Addr   arch.GVA // of the function that serves it, wherever it lies
	// Args is how many arguments the call takes; on x64 the table tells only those
	// beyond the fourth, and up to four are -1.
	Args int
}

// Services is an NT kernel's service table, as it was when it was read.
type Services struct {
	Table arch.GVA // KiServiceTable
	From  string   // how it was found
	All   []Service

	nt *NT
}

// ErrNoServices is returned when the service table can't be found.
var ErrNoServices = errors.New("no service table found")

// Bounds of the service table: NT 5.1 has 284 services, 11 about 500.
const (
	minServices = 100
	maxServices = 0x1000 // the rest of a number picks the table
)

// Services reads the table by which the kernel finds the functions of system
// calls, and names those for which the kernel exports a Zw function, whose code
// holds the number. NameBy names the others. The table is found by
// KeServiceDescriptorTable, which 32-bit kernels export, or else by its shape,
// and then believed when the exported Nt functions lie where the numbers of
// their Zw counterparts say.
func (n *NT) Services() (*Services, error) {
	im, err := pe.Read(memoryOf(n.k.space, n.k.base))
	if err != nil {
		return nil, fmt.Errorf("read service table: %w", err)
	}
	numbers := n.zwNumbers()
	at, err := n.k.address("KeServiceDescriptorTable")
	if err == nil {
		if s, ok := n.servicesAt(at); ok && n.agree(s, numbers) {
			s.From = "KeServiceDescriptorTable"
			s.nameAll(numbers)
			return s, nil
		}
	}
	s := n.scanServices(im, numbers)
	if s == nil {
		return nil, fmt.Errorf("read service table: %w", ErrNoServices)
	}
	s.From = "scan of the kernel's data for a table that agrees with exported functions"
	s.nameAll(numbers)
	return s, nil
}

// zwNumbers returns the numbers of the system calls that the kernel exports
// stubs of for its drivers, by the names of the services.
func (n *NT) zwNumbers() map[string]int {
	out := map[string]int{}
	for sym := range n.k.Symbols() {
		rest, ok := strings.CutPrefix(sym.Name, "Zw")
		if !ok {
			continue
		}
		if nr, ok := stubNumber(n.k.space, sym.Addr, n.X64); ok {
			out["Nt"+rest] = nr
		}
	}
	return out
}

func stubNumber(as *vitrine.AddressSpace, at arch.GVA, x64 bool) (int, bool) {
	var code [infer.MaxCode]byte
	got, _ := as.Read(code[:], at)
	nr, ok := infer.Stub(code[:got], x64)
	return int(nr), ok && nr < maxServices
}

// agree reports whether the exported Nt functions lie where the table has the
// numbers of their stubs. Some may be elsewhere: rootkits and guards put their
// own functions into the table.
func (n *NT) agree(s *Services, numbers map[string]int) bool {
	same, other := 0, 0
	for name, nr := range numbers {
		sym, err := n.k.Symbol(name)
		switch {
		case err != nil:
		case nr < len(s.All) && s.All[nr].Addr == sym.Addr:
			same++
		default:
			other++
		}
	}
	return same >= 3 && same > 3*other
}

// servicesAt reads the table that the descriptor at a tells of: its address,
// that of counters, how many services there are, and how many bytes of
// arguments each has on x86.
func (n *NT) servicesAt(a arch.GVA) (*Services, bool) {
	w := arch.GVA(n.k.PointerSize())
	table, err := n.Word(n.k.space, a)
	count, err2 := n.k.space.ReadUint32(a + 2*w)
	args, err3 := n.Word(n.k.space, a+3*w)
	if errors.Join(err, err2, err3) != nil || !n.descriptor(table, args, count) {
		return nil, false
	}
	entries, sizes := make([]byte, 4*count), make([]byte, count)
	if _, err := n.k.space.Read(entries, table); err != nil {
		return nil, false
	}
	got, _ := n.k.space.Read(sizes, args)
	s := &Services{Table: table, All: make([]Service, count), nt: n}
	for i := range s.All {
		s.All[i] = n.service(table, i, binary.LittleEndian.Uint32(entries[4*i:]))
		if !n.X64 && i < got {
			s.All[i].Args = int(sizes[i]) / 4
		}
	}
	return s, true
}

func (n *NT) descriptor(table, args arch.GVA, count uint32) bool {
	in := func(a arch.GVA) bool { return a >= n.k.base && a < n.k.end }
	return in(table) && in(args) && count >= minServices && count < maxServices
}

// service takes an entry apart: an address on x86; on x64 the distance from the
// table, above four bits that tell how many arguments are on the stack.
func (n *NT) service(table arch.GVA, nr int, e uint32) Service {
	if !n.X64 {
		return Service{Number: nr, Addr: arch.GVA(e), Args: -1}
	}
	s := Service{Number: nr, Addr: table + arch.GVA(int64(int32(e))>>4), Args: -1}
	if stack := int(e & 15); stack > 0 {
		s.Args = 4 + stack
	}
	return s
}

// scanServices looks through the kernel's writable data for the descriptor.
func (n *NT) scanServices(im *pe.Image, numbers map[string]int) *Services {
	size, total := n.k.PointerSize(), uint32(0)
	buf := make([]byte, 2*arch.PageSize)
	for _, sec := range im.Sections {
		if !sec.Writable || total+sec.Size > maxScan {
			continue
		}
		total += sec.Size
		for rva := sec.RVA &^ (arch.PageSize - 1); rva < sec.RVA+sec.Size; rva += arch.PageSize {
			page := n.k.base + arch.GVA(rva)
			got, _ := n.k.space.Read(buf[:arch.PageSize+3*size], page)
			for i := 0; i+4*size <= got; i += size {
				word := func(k int) arch.GVA { return arch.GVA(leUint(buf[i+k*size : i+(k+1)*size])) }
				if !n.descriptor(word(0), word(3), uint32(min(word(2), maxServices))) {
					continue
				}
				if s, ok := n.servicesAt(page + arch.GVA(i)); ok && n.agree(s, numbers) {
					return s
				}
			}
		}
	}
	return nil
}

func (s *Services) nameAll(numbers map[string]int) {
	for name, nr := range numbers {
		if nr < len(s.All) {
			s.All[nr].Name = name
		}
	}
	for i := range s.All { // a kernel with symbols knows its functions
		if s.All[i].Name == "" {
			if sym, ok := s.nt.k.SymbolAt(s.All[i].Addr); ok && sym.Addr == s.All[i].Addr && strings.HasPrefix(sym.Name, "Nt") {
				s.All[i].Name = sym.Name
			}
		}
	}
}

// NameBy names services by the stubs of an ntdll.dll: of the kernel's own width,
// mapped at base in a process's memory. It returns how many services have no
// name yet: stubs may be paged out in one process and not in another.
func (s *Services) NameBy(user *vitrine.AddressSpace, base arch.GVA) (unnamed int, err error) {
	user = s.nt.SoftPages(user)
	im, err := pe.Read(memoryOf(user, base))
	if err == nil && im.Plus != s.nt.X64 {
		err = fmt.Errorf("the image at %v is not of the kernel's width", base)
	}
	var exports *pe.Exports
	if err == nil {
		exports, err = im.Exports()
	}
	if err != nil {
		return s.Unnamed(), fmt.Errorf("name services: %w", err)
	}
	for _, e := range exports.Exports {
		if !isNtName(e.Name) || e.RVA == 0 {
			continue
		}
		nr, ok := stubNumber(user, base+arch.GVA(e.RVA), s.nt.X64)
		if ok && nr < len(s.All) && s.All[nr].Name == "" {
			s.All[nr].Name = e.Name
		}
	}
	return s.Unnamed(), nil
}

// isNtName tells NtClose from NtdllDialogWndProc_A and others.
func isNtName(name string) bool {
	return len(name) > 2 && len(name) <= 64 && strings.HasPrefix(name, "Nt") && name[2] >= 'A' && name[2] <= 'Z'
}

// Unnamed returns how many services have no name.
func (s *Services) Unnamed() int {
	n := 0
	for i := range s.All {
		if s.All[i].Name == "" {
			n++
		}
	}
	return n
}

// Named returns the services that have names, sorted by them.
func (s *Services) Named() []Service {
	out := slices.DeleteFunc(slices.Clone(s.All), func(e Service) bool { return e.Name == "" })
	slices.SortFunc(out, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
