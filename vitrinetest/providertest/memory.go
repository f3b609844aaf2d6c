package providertest

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

func (s *suite) mappings(t *testing.T) {
	for _, want := range s.truth.Processes {
		got := all(t, s.sys.Mappings(t.Context(), s.handle(t, want.PID)))
		if want.Mappings == nil && !want.KThread {
			continue
		}
		if diff := cmp.Diff(want.Mappings, got, cmpopts.IgnoreFields(osi.Mapping{}, "Kind"), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("mappings of pid %d (%s) (-guest +system):\n%s", want.PID, want.Name, diff)
		}
		for _, m := range got {
			if kind := kindOf(m); m.Kind != kind {
				t.Errorf("mapping %v of pid %d, %q, is of kind %v, want %v", m.Start, want.PID, m.Name, m.Kind, kind)
			}
		}
	}
}

// kindOf tells the kind from the name.
func kindOf(m osi.Mapping) osi.MappingKind {
	switch {
	case m.Name == "[heap]":
		return osi.MappingHeap
	case m.Name == "[stack]":
		return osi.MappingStack
	case strings.HasPrefix(m.Name, "/") || strings.HasPrefix(m.Name, `\`) || strings.HasPrefix(m.Name, "anon_inode:") || strings.HasPrefix(m.Name, "[anon_shmem:"):
		return osi.MappingFile
	}
	return osi.MappingUnknown
}

func (s *suite) mappingAt(t *testing.T) {
	for _, want := range s.truth.Processes {
		h := s.handle(t, want.PID)
		if want.KThread {
			if m, err := s.sys.MappingAt(t.Context(), h, 0x1000); !errors.Is(err, osi.ErrNoUserMemory) {
				t.Errorf("MappingAt in kernel thread %d = %+v, %v, want ErrNoUserMemory", want.PID, m, err)
			}
			continue
		}
		for i, w := range want.Mappings {
			for _, a := range []osi.Mapping{{Range: osi.Range{Start: w.Start}}, {Range: osi.Range{Start: w.End - 1}}} {
				m, err := s.sys.MappingAt(t.Context(), h, a.Start)
				if diff := cmp.Diff(w, m, cmpopts.IgnoreFields(osi.Mapping{}, "Kind")); err != nil || diff != "" {
					t.Errorf("MappingAt(%v) of pid %d: %v (-guest +system):\n%s", a.Start, want.PID, err, diff)
				}
			}
			if i+1 < len(want.Mappings) && want.Mappings[i+1].Start == w.End {
				continue
			}
			if m, err := s.sys.MappingAt(t.Context(), h, w.End); !errors.Is(err, osi.ErrNoMapping) {
				t.Errorf("MappingAt(%v), a hole of pid %d = %+v, %v, want ErrNoMapping", w.End, want.PID, m, err)
			}
		}
	}
}

func (s *suite) libraries(t *testing.T) {
	derive := s.truth.LibrariesOf
	if derive == nil {
		derive = LibrariesOf
	}
	for _, want := range s.truth.Processes {
		got := all(t, s.sys.Libraries(t.Context(), s.handle(t, want.PID)))
		if want.Mappings == nil {
			continue
		}
		if diff := cmp.Diff(derive(want), got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("libraries of pid %d (%s) (-guest +system):\n%s", want.PID, want.Name, diff)
		}
	}
}

// LibrariesOf applies the rule of osi.Library to the mappings of a process.
func LibrariesOf(p Process) []osi.Library {
	var out []osi.Library
	exec := map[string]bool{}
	for _, m := range p.Mappings {
		if !strings.HasPrefix(m.Name, "/") || m.Name == p.Exe {
			continue
		}
		exec[m.Name] = exec[m.Name] || m.Perms[2] == 'x'
		i := slices.IndexFunc(out, func(l osi.Library) bool { return l.Path == m.Name })
		if i < 0 {
			i = len(out)
			out = append(out, osi.Library{Name: path.Base(strings.TrimSuffix(m.Name, " (deleted)")), Path: m.Name, Base: m.Start})
		}
		out[i].Size = uint64(m.End - out[i].Base)
	}
	return slices.DeleteFunc(out, func(l osi.Library) bool { return !exec[l.Path] })
}

func (s *suite) memory(t *testing.T) {
	for _, want := range s.truth.Processes {
		h := s.handle(t, want.PID)
		m, err := s.sys.Memory(t.Context(), h)
		if want.KThread {
			if !errors.Is(err, osi.ErrNoUserMemory) {
				t.Errorf("Memory of kernel thread %d: %v, want ErrNoUserMemory", want.PID, err)
			}
			if _, err := s.sys.AddressSpace(t.Context(), h); !errors.Is(err, osi.ErrNoUserMemory) {
				t.Errorf("AddressSpace of kernel thread %d: %v, want ErrNoUserMemory", want.PID, err)
			}
			continue
		}
		if want.States == "Z" {
			continue
		}
		if err != nil || m.Brk < m.StartBrk || want.StartBrk != 0 && m.StartBrk != want.StartBrk || want.Stack != 0 && m.StartStack != want.Stack {
			t.Errorf("Memory of pid %d = %+v, %v, want start_brk %v, stack %v", want.PID, m, err, want.StartBrk, want.Stack)
		}
		as, err := s.sys.AddressSpace(t.Context(), h)
		if err != nil || as.Root() != h.ASID {
			t.Errorf("AddressSpace of pid %d: %v, want the root %v", want.PID, err, h.ASID)
			continue
		}
		if len(want.Args) > 0 && want.Args[0] != "" && !s.truth.NT {
			if arg, err := as.ReadString(m.Args.Start, 4096); err != nil || arg != want.Args[0] {
				t.Errorf("first argument of pid %d in its memory = %q, %v, want %q", want.PID, arg, err, want.Args[0])
			}
		}
	}
}

func (s *suite) pages(t *testing.T) {
	for _, want := range s.truth.Processes {
		h := s.handle(t, want.PID)
		pages := all(t, s.sys.Pages(t.Context(), h))
		if want.KThread || want.Mappings == nil {
			continue
		}
		as, err := s.sys.AddressSpace(t.Context(), h)
		if err != nil || len(pages) == 0 {
			t.Errorf("pid %d has %d pages, %v", want.PID, len(pages), err)
			continue
		}
		end := pages[0].Start
		for _, p := range pages {
			inside := slices.ContainsFunc(want.Mappings, func(m osi.Mapping) bool { return m.Contains(p.Start) })
			if pa, err := as.Translate(p.Start); p.Start < end || !inside || err != nil || pa != p.Addr {
				t.Errorf("page %+v of pid %d: in a mapping %v, at %v, %v", p, want.PID, inside, pa, err)
			}
			end = p.Start + arch.GVA(p.Size)
		}
	}
}
