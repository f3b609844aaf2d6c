package windows

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
)

// userData is where nttest puts loader data, parameters and their texts.
const userData = arch.GVA(0x240000)

// What is paged out is said to be so, and fails no list.
func TestPagedOut(t *testing.T) {
	for _, b := range builds {
		g := nttest.New(b.config())
		s := openFake(t, g)
		notepad := g.Processes[2]
		for page := userData; page < userData+0x8000; page += arch.PageSize {
			notepad.Space.Unmap(page)
		}
		p, err := s.ProcessByPID(t.Context(), 1234)
		if err != nil || p.CommandLine != osi.PagedOut || !cmp.Equal(p.Args, []string{osi.PagedOut}) || p.Exe != disk+`\Windows\notepad.exe` {
			t.Errorf("%s: %+v, %v", b.name, p, err)
		}
		if cwd, err := s.Cwd(t.Context(), p.Handle); err != nil || cwd != osi.PagedOut {
			t.Errorf("%s: working directory %q, %v", b.name, cwd, err)
		}
		// The libraries are known by their mappings still.
		var names []string
		for l, err := range s.Libraries(t.Context(), p.Handle) {
			if err != nil {
				t.Errorf("%s: %+v, %v", b.name, l, err)
			}
			names = append(names, l.Name)
		}
		if diff := cmp.Diff([]string{"KERNEL32.DLL", "ntdll.dll"}, names); diff != "" {
			t.Errorf("%s: libraries\n%s", b.name, diff)
		}
	}
}

// Pages in transition are not present to the hardware and are read all the same.
func TestTransition(t *testing.T) {
	for _, b := range builds {
		g := nttest.New(b.config())
		s := openFake(t, g)
		space := g.Processes[2].Space
		for page := userData; page < userData+0x8000; page += arch.PageSize {
			space.PutEntry(page, uint64(space.Phys(page))|1<<11|4<<5)
		}
		p, err := s.ProcessByPID(t.Context(), 1234)
		if want := `"C:\Windows\notepad.exe" a\b "c d.txt"`; err != nil || p.CommandLine != want {
			t.Errorf("%s: command line %q, %v", b.name, p.CommandLine, err)
		}
		// A page of zeros and one in the page file are not.
		space.PutEntry(userData, 4<<5)
		as, err := s.AddressSpace(t.Context(), p.Handle)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := as.ReadUint32(userData); !pagedOut(err) {
			t.Errorf("%s: a page that is nowhere reads as %#x, %v", b.name, v, err)
		}
	}
}

// A prototype entry leads to the page where it says so.
func TestPrototype(t *testing.T) {
	for _, b := range builds {
		if b.mode == arch.Paging32Bit {
			continue // its address is packed by a base that is not known
		}
		g := nttest.New(b.config())
		s := openFake(t, g)
		space := g.Processes[2].Space
		at, pa := g.Pool(16), space.Phys(userData)
		g.Kernel.PutUint64(at, uint64(pa)|1)
		entry := uint64(at)<<16 | 1<<10
		if b.mode == arch.PagingPAE {
			entry = uint64(at)<<32 | 1<<10
		}
		space.PutEntry(userData, entry)
		p, err := s.ProcessByPID(t.Context(), 1234)
		if err != nil || p.CommandLine == osi.PagedOut || p.CommandLine == "" {
			t.Errorf("%s: command line %q, %v", b.name, p.CommandLine, err)
		}
		g.Kernel.PutUint64(at, uint64(pa)|1<<11) // itself in transition
		if p, err := s.ProcessByPID(t.Context(), 1234); err != nil || p.CommandLine == osi.PagedOut {
			t.Errorf("%s: by a prototype in transition: %q, %v", b.name, p.CommandLine, err)
		}
	}
}

// drain reads everything that there is and returns how many errors came.
func drain(t *testing.T, s *system) (failed int) {
	ctx := t.Context()
	count := func(err error) {
		if err != nil {
			failed++
		}
	}
	var handles []osi.Handle
	for h, err := range s.ProcessHandles(ctx) {
		handles = append(handles, h)
		count(err)
	}
	for _, err := range s.Processes(ctx) {
		count(err)
	}
	for _, err := range s.Modules(ctx) {
		count(err)
	}
	for cpu := range s.g.CPUs() {
		_, err := s.Current(ctx, cpu)
		count(err)
	}
	for _, h := range handles {
		for _, err := range s.Threads(ctx, h) {
			count(err)
		}
		for _, err := range s.Libraries(ctx, h) {
			count(err)
		}
		for _, err := range s.Mappings(ctx, h) {
			count(err)
		}
		for _, err := range s.Pages(ctx, h) {
			count(err)
		}
		for _, err := range s.Files(ctx, h) {
			count(err)
		}
		_, err := s.Memory(ctx, h)
		count(err)
	}
	return failed
}

// Loops and garbage in every list: each ends, with an error for what is wrong.
func TestLoops(t *testing.T) {
	for _, b := range builds {
		for name, spoil := range map[string]func(g *nttest.Guest){
			"processes": func(g *nttest.Guest) {
				link := g.Processes[1].Task + g.At("_EPROCESS", "ActiveProcessLinks")
				g.Word(link, uint64(link))
			},
			"processes end nowhere": func(g *nttest.Guest) {
				g.Word(g.Processes[1].Task+g.At("_EPROCESS", "ActiveProcessLinks"), 0)
			},
			"threads": func(g *nttest.Guest) {
				link := g.Processes[2].Threads[0].Task + g.At("_ETHREAD", "ThreadListEntry")
				g.Word(link, uint64(link))
			},
			"drivers": func(g *nttest.Guest) { g.Word(g.ModuleList, uint64(g.Processes[0].Task)) },
			"mappings": func(g *nttest.Guest) {
				root := g.Processes[2].Task + g.At("_EPROCESS", "VadRoot")
				if g.InlineVAD {
					root += g.At("_LIST_ENTRY", "Blink") * 2
				}
				g.Word(root, uint64(g.Processes[2].Task))
			},
			"handles": func(g *nttest.Guest) {
				g.Word(g.Processes[2].Task+g.At("_EPROCESS", "ObjectTable"), uint64(g.Processes[2].Task))
			},
		} {
			g := nttest.New(b.config())
			s := openFake(t, g)
			spoil(g)
			if drain(t, s) == 0 && name != "handles" {
				t.Errorf("%s, %s: no error", b.name, name)
			}
		}
	}
}

// Whatever bytes the guest's structures hold, every question ends.
func TestGarbage(t *testing.T) {
	for i, b := range builds {
		rnd := rand.New(rand.NewPCG(7, uint64(i)))
		g := nttest.New(b.config())
		s := openFake(t, g)
		first := g.Processes[0].Task.Page()
		for range 40 {
			at := first + arch.GVA(rnd.IntN(0x20000))
			v := rnd.Uint64()
			switch rnd.IntN(3) {
			case 0:
				v = uint64(first) + uint64(rnd.IntN(0x20000))&^7
			case 1:
				v = 0
			}
			g.Word(at&^7, v)
			drain(t, s)
		}
	}
}

func TestNoSuchThing(t *testing.T) {
	s := openFake(t, nttest.New(builds[5].config()))
	if th, err := s.ThreadAt(t.Context(), 0x1000); !errors.Is(err, osi.ErrNoProcess) {
		t.Errorf("ThreadAt(0x1000) = %+v, %v", th, err)
	}
	for h, err := range s.Threads(t.Context(), osi.Handle{Task: 0x1000}) {
		if !errors.Is(err, osi.ErrNoProcess) {
			t.Errorf("Threads(0x1000): %+v, %v", h, err)
		}
	}
}

func TestSplitCommand(t *testing.T) {
	for line, want := range map[string][]string{
		``:                              nil,
		`a.exe`:                         {`a.exe`},
		`"C:\Program Files\a.exe" b  c`: {`C:\Program Files\a.exe`, `b`, `c`},
		`a.exe "b c" d`:                 {`a.exe`, `b c`, `d`},
		`a.exe a\\b d"e f"g h`:          {`a.exe`, `a\\b`, `de fg`, `h`},
		`a.exe a\\\"b c d`:              {`a.exe`, `a\"b`, `c`, `d`},
		`a.exe a\\\\"b c" d e`:          {`a.exe`, `a\\b c`, `d`, `e`},
		`a.exe "a""b"`:                  {`a.exe`, `a"b`},
		`a.exe ""`:                      {`a.exe`, ``},
		osi.PagedOut:                    {osi.PagedOut},
	} {
		if diff := cmp.Diff(want, splitCommand(line)); diff != "" {
			t.Errorf("%s\n%s", line, diff)
		}
	}
}

func TestAccessNames(t *testing.T) {
	for _, tt := range []struct {
		kind string
		mask uint32
		want string
	}{
		{"File", 0x120089, "FILE_READ_DATA|FILE_READ_EA|FILE_READ_ATTRIBUTES|READ_CONTROL|SYNCHRONIZE"},
		{"Event", 0x1f0003, "EVENT_QUERY_STATE|EVENT_MODIFY_STATE|DELETE|READ_CONTROL|WRITE_DAC|WRITE_OWNER|SYNCHRONIZE"},
		{"Unheard", 5, "0x5"},
		{"Key", 0, "0x0"},
	} {
		if got := accessNames(tt.kind, tt.mask); got != tt.want {
			t.Errorf("accessNames(%s, %#x) = %s", tt.kind, tt.mask, got)
		}
	}
}
