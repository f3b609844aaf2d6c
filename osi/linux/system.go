package linux

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// system implements osi.System. All its fields are immutable but the pool.
type system struct {
	g      *vitrine.Guest
	k      facts
	l      *layout
	kernel *vitrine.AddressSpace // the kernel's own; for memory that is never remapped: slabs and the image
	word   int                   // bytes of a pointer and of a C long

	initTask   arch.GVA
	modules    arch.GVA // head of the list of modules, 0 when the symbol is missing
	timekeeper arch.GVA // 0 when it could not be found or believed
	tkSequence arch.GVA // its sequence count
	specialOps arch.GVA // special_mapping_vmops, 0 when the symbol is missing
	pidNS      arch.GVA // init_pid_ns, likewise
	subsystems arch.GVA // cgroup_subsys, likewise

	tasks sync.Pool // of *[]byte, each as long as the shape of task_struct
}

var _ osi.System = (*system)(nil)

// open builds the system over a kernel's description; kernel is the address
// space of the kernel itself.
func open(ctx context.Context, g *vitrine.Guest, k facts, kernel *vitrine.AddressSpace) (*system, error) {
	word := kernel.Mode().PointerSize()
	if word == 0 {
		return nil, fmt.Errorf("open linux provider: paging is %v: %w", kernel.Mode(), errors.ErrUnsupported)
	}
	l, err := newLayout(k)
	if err != nil {
		return nil, fmt.Errorf("open linux provider: %w", err)
	}
	s := &system{g: g, k: k, l: l, kernel: kernel, word: word}
	s.tasks.New = func() any { b := make([]byte, l.task.hi-l.task.lo); return &b }
	if s.initTask, err = k.Symbol("init_task"); err != nil {
		return nil, fmt.Errorf("open linux provider: %w", err)
	}
	if _, err := s.readTask(s.initTask); err != nil {
		return nil, fmt.Errorf("open linux provider: %w", err)
	}
	s.modules, _ = k.Symbol("modules")
	s.pidNS, _ = k.Symbol("init_pid_ns")
	s.subsystems, _ = k.Symbol("cgroup_subsys")
	s.specialOps, _ = k.Symbol("special_mapping_vmops")
	s.timekeeper = s.findTimekeeper(ctx)
	return s, nil
}

// arm64 reports whether the kernel is one of arm64, by its page tables: an image
// may not tell what its processors were.
func (s *system) arm64() bool { return s.kernel.Mode() != s.kernel.Mode().User() }

// words returns the size of n pointers in a row.
func (s *system) words(n int) arch.GVA { return arch.GVA(n * s.word) }

// OS implements osi.System.
func (s *system) OS() string { return "linux" }

// fresh returns the kernel's address space without cached translations, for
// memory that the kernel maps and unmaps while it runs: the vmalloc area.
func (s *system) fresh() *vitrine.AddressSpace {
	return s.g.AddressSpace(s.kernel.Mode(), s.kernel.Root())
}
