package kernel

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Syscall is a system call as the kernel's own tracing describes it.
type Syscall struct {
	NR   int    // its number
	Name string // "openat": without the prefix sys_
	Args []SyscallArg
}

// SyscallArg is a parameter of a system call.
type SyscallArg struct {
	Name string // "filename"
	Type string // as C writes it: "const char *"
}

// Limits on what the guest's tables may hold: x86-64 has numbers up to about
// 470 and at most six arguments.
const (
	maxSyscalls    = 1024
	maxSyscallArgs = 6
	maxArgText     = 256
)

// syscallLayout is where the members of struct syscall_metadata lie.
type syscallLayout struct{ name, nr, nargs, types, args Field }

// Syscalls returns the system calls of the kernel with the names and types of
// their arguments, in order of their numbers. It corresponds to the array
// syscalls_metadata; calls that the kernel does not trace are not in it. The
// error wraps ErrNoSymbol when the kernel has no such array.
func (k *Kernel) Syscalls() ([]Syscall, error) {
	va, err := k.address("syscalls_metadata")
	if err != nil {
		return nil, fmt.Errorf("read system call metadata: %w", err)
	}
	array, err := k.space.ReadPointer(va)
	if err != nil {
		return nil, fmt.Errorf("read system call metadata: %w", err)
	}
	l := k.syscallLayout()
	var calls []Syscall
	for nr := range maxSyscalls {
		p, err := k.space.ReadPointer(array + arch.GVA(k.PointerSize()*nr))
		if err != nil {
			break
		}
		// The array's length is not stored. What lies behind it does not point
		// to an entry that has just this number.
		if p < k.base || p >= k.end {
			continue
		}
		if n, err := k.readField(p, l.nr); err != nil || n != uint64(nr) {
			continue
		}
		if c, ok := k.syscall(p, l); ok {
			c.NR = nr
			calls = append(calls, c)
		}
	}
	if len(calls) == 0 {
		return nil, fmt.Errorf("read system call metadata: no valid entry at %v", array)
	}
	return calls, nil
}

// syscallLayout returns the layout of struct syscall_metadata: from the kernel's
// types, else the one of 2.6.33 to 6.12. In 7.2 nb_args is a bit-field.
func (k *Kernel) syscallLayout() syscallLayout {
	w := uint64(k.PointerSize())
	l := syscallLayout{
		name: Field{Offset: 0}, nr: Field{Offset: w, Size: 4}, nargs: Field{Offset: w + 4, Size: 4},
		types: Field{Offset: w + 8}, args: Field{Offset: 2*w + 8},
	}
	for member, to := range map[string]*Field{
		"name": &l.name, "syscall_nr": &l.nr, "nb_args": &l.nargs, "types": &l.types, "args": &l.args,
	} {
		if f, err := k.types.Field("syscall_metadata", member); err == nil {
			*to = f
		}
	}
	return l
}

// readField reads a number of up to 8 bytes from a structure at p.
func (k *Kernel) readField(p arch.GVA, f Field) (uint64, error) {
	var b [8]byte
	if _, err := k.space.Read(b[:min(f.Size, 8)], p+arch.GVA(f.Offset)); err != nil {
		return 0, err
	}
	return f.Bits(binary.LittleEndian.Uint64(b[:])), nil
}

func (k *Kernel) syscall(p arch.GVA, l syscallLayout) (Syscall, bool) {
	name, err := k.stringAt(p + arch.GVA(l.name.Offset))
	if err != nil || !strings.HasPrefix(name, "sys_") {
		return Syscall{}, false
	}
	c := Syscall{Name: strings.TrimPrefix(name, "sys_")}
	n, err := k.readField(p, l.nargs)
	if err != nil || n > maxSyscallArgs {
		return Syscall{}, false
	}
	types, err := k.space.ReadPointer(p + arch.GVA(l.types.Offset))
	if err != nil {
		return Syscall{}, false
	}
	args, err := k.space.ReadPointer(p + arch.GVA(l.args.Offset))
	if err != nil {
		return Syscall{}, false
	}
	word := arch.GVA(k.PointerSize())
	for i := range arch.GVA(n) {
		var a SyscallArg
		if a.Type, err = k.stringAt(types + word*i); err != nil {
			return Syscall{}, false
		}
		if a.Name, err = k.stringAt(args + word*i); err != nil {
			return Syscall{}, false
		}
		c.Args = append(c.Args, a)
	}
	return c, true
}

// stringAt reads the string that the pointer at p points to.
func (k *Kernel) stringAt(p arch.GVA) (string, error) {
	s, err := k.space.ReadPointer(p)
	if err != nil {
		return "", err
	}
	return k.space.ReadString(s, maxArgText)
}
