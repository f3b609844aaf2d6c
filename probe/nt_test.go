package probe

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
)

// ntFake is memory laid out as a build of NT is.
type ntFake struct {
	*nttest.Guest
	g *vitrine.Guest
	k *kernel.Kernel
	f *ntFacts
	r arch.Registers // of a processor in a function of the last process's first thread
}

func newNTFake(t *testing.T, major, minor, build int, mode arch.PagingMode) *ntFake {
	t.Helper()
	types, _, _ := kernel.NTLayout(build, mode == arch.Paging4Level)
	offset := func(structName, path string) (uint64, bool) {
		f, err := types.Field(structName, path)
		return f.Offset, err == nil
	}
	const created = 0x01d8_0000_0000_0000
	vad := nttest.VAD{Start: 0x10000, End: 0x11000, Private: true}
	x := &ntFake{Guest: nttest.New(nttest.Config{Mode: mode, Offset: offset, Major: major, Minor: minor, Build: build, InlineVAD: true,
		Services: map[string]int{"NtClose": 1, "NtOpenKey": 2, "NtCreateFile": 3},
		Processes: []*nttest.Process{
			{PID: 4, Name: "System", Created: created, Threads: []nttest.Thread{{TID: 8, State: 5}}},
			{PID: 300, PPID: 4, Name: "smss.exe", Image: `\Device\V\smss.exe`, Created: created + 10, Base: 0x48580000, Threads: []nttest.Thread{{TID: 304, State: 5}}, VADs: []nttest.VAD{vad}},
			{PID: 1234, PPID: 300, Name: "notepad.exe", Image: `\Device\V\notepad.exe`, Created: created + 20, Base: 0x400000, Threads: []nttest.Thread{{TID: 1238, State: 2}}, VADs: []nttest.VAD{vad}},
		}})}
	x.g = x.Guest.Guest()
	var err error
	if x.k, err = kernel.Describe(t.Context(), x.g, nil); err != nil {
		t.Fatal(err)
	}
	if x.f, err = findNTFacts(x.k); err != nil {
		t.Fatal(err)
	}
	stack := x.Pool(0x1000)
	x.r = arch.Registers{RSP: uint64(stack + 0x800), RCX: 10, RDX: 11, R8: 12, R9: 13, GSBase: uint64(x.PCR), FSBase: uint64(x.PCR)}
	w := arch.GVA(8)
	if !x.X64 {
		w = 4
	}
	for i := range arch.GVA(20) {
		x.Word(stack+0x800+w*(i+1), uint64(100+i))
	}
	task := x.task()
	x.Word(task+x.At("_KTHREAD", "StackBase"), uint64(stack+0x1000))
	x.Word(task+x.At("_KTHREAD", "StackLimit"), uint64(stack))
	return x
}

func (x *ntFake) task() arch.GVA { return x.Processes[2].Threads[0].Task }

var ntFakes = []struct {
	name                string
	major, minor, build int
	mode                arch.PagingMode
}{{"2003 x86", 5, 2, 3790, arch.Paging32Bit}, {"7 x86", 6, 1, 7601, arch.PagingPAE}, {"7 x64", 6, 1, 7601, arch.Paging4Level}}

// Who runs, on which stack, and with which arguments.
func TestNTFacts(t *testing.T) {
	for _, c := range ntFakes {
		t.Run(c.name, func(t *testing.T) {
			x := newNTFake(t, c.major, c.minor, c.build, c.mode)
			if got := x.f.task(&x.r); got != x.task() {
				t.Errorf("thread %v, want %v", got, x.task())
			}
			for mode, fromKernel := range map[byte]bool{0: true, 1: false} {
				x.Kernel.Put(x.task()+x.At("_KTHREAD", "PreviousMode"), []byte{mode})
				want := Thread{Task: x.task(), PID: 1234, TID: 1238, PPID: 300, Comm: "notepad.exe", Kernel: fromKernel}
				if d := cmp.Diff(want, x.f.thread(x.task())); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			}
			if got := x.f.created(x.task()); got != 0x01d8_0000_0000_0014 {
				t.Errorf("process created at %#x", got)
			}
			x.arguments(t)
			x.stacks(t)
			if got := x.f.thread(0); got != (Thread{}) {
				t.Errorf("no thread is %+v", got)
			}
			if got := x.f.thread(x.Base + 0x5000000); got.PID != 0 || got.Comm != "" {
				t.Errorf("what is not there is %+v", got)
			}
			x.r.GSBase, x.r.FSBase = 0x7ffd0000, 0x7ffd0000 // a user's block
			if got := x.f.task(&x.r); got != 0 {
				t.Errorf("thread %v by a user's block", got)
			}
		})
	}
}

func (x *ntFake) arguments(t *testing.T) {
	t.Helper()
	for i := range 12 {
		want := uint64(100 + i) // on the stack, above the return address
		if x.X64 && i < 4 {
			want = uint64(10 + i) // in a register; its home on the stack is not looked at
		}
		if got, err := x.f.argument(&x.r, i); got != want || err != nil {
			t.Errorf("argument %d is %d, %v, want %d", i, got, err, want)
		}
		if err := x.f.setArg(&x.r, i, 1000+uint64(i)); err != nil || x.f.arg(&x.r, i) != 1000+uint64(i) {
			t.Errorf("argument %d was changed to %d, %v", i, x.f.arg(&x.r, i), err)
		}
	}
	for _, i := range []int{-1, maxNTArgs} {
		if _, err := x.f.argument(&x.r, i); err == nil {
			t.Errorf("argument %d", i)
		}
	}
	r := x.r
	r.RSP = 0x1000
	if _, err := x.f.argument(&r, 6); err == nil || x.f.arg(&r, 6) != 0 {
		t.Error("an argument where no stack is")
	}
}

func (x *ntFake) stacks(t *testing.T) {
	t.Helper()
	top := arch.GVA(x.r.RSP &^ 0xf)
	base := x.f.word(x.task() + x.f.stackBase)
	for _, c := range []struct {
		sp   arch.GVA
		want bool
	}{{top, true}, {base - 4, true}, {base, false}, {base - 0x1000, true}, {base - 0x1004, false}, {0, false}} {
		if id, ok := x.f.stack(x.task(), uint64(c.sp)); ok != c.want || ok && id != base {
			t.Errorf("stack at %v: %v, %v", c.sp, id, ok)
		}
	}
	if _, ok := x.f.stack(0, x.r.RSP); ok {
		t.Error("nobody's stack")
	}
}

// A session takes breakpoints only, at any address that a name is given to.
func TestNTSession(t *testing.T) {
	x := newNTFake(t, 6, 1, 7601, arch.Paging4Level)
	for _, o := range []*Options{nil, {Engine: Trap}, {Delivery: Sync}} {
		s, err := New(x.g, x.k, o)
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		if st := s.Stats(); st.Engine != Trap || st.Delivery != Sync {
			t.Errorf("%+v", st)
		}
		if _, err := s.Add(&Probe{Name: "NtSecret", Addr: x.Exports["NtClose"], Return: func(*Hit, any) {}}); err != nil {
			t.Error(err)
		}
		if _, err := s.Add(&Probe{Func: "NtOpenKey"}); err != nil {
			t.Error(err)
		}
		if _, err := s.Add(&Probe{Name: "NtNowhere", Addr: 0x1000}); err == nil {
			t.Error("a function where nothing is")
		}
		if _, err := s.Add(&Probe{Func: "NtBuildNumber"}); err == nil {
			t.Error("a variable was hooked")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, o := range []*Options{{Engine: Implant}, {Delivery: Stream}, {Engine: "ptrace"}} {
		if _, err := New(x.g, x.k, o); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// Arguments of a hit beyond the sixth, and what can't be done on x86.
func TestNTHit(t *testing.T) {
	for _, c := range ntFakes {
		x := newNTFake(t, c.major, c.minor, c.build, c.mode)
		raw := &engine.Hit{Regs: &x.r, Args: [6]uint64{1, 2, 3, 4, 5, 6}}
		h := &Hit{Probe: &Probe{}, raw: raw, facts: &facts{nt: x.f, kernel: x.k.AddressSpace()}, kern: x.k.AddressSpace()}
		for i, want := range map[int]uint64{0: 1, 5: 6, 7: 107, 10: 110} {
			if got, err := h.ArgAt(i); got != want || err != nil {
				t.Errorf("%s: argument %d is %d, %v, want %d", c.name, i, got, err, want)
			}
		}
		if err := h.SetArg(1, 77); err != nil || h.Arg(1) != 77 || x.f.arg(&x.r, 1) != 77 {
			t.Errorf("%s: argument changed to %d, %v", c.name, x.f.arg(&x.r, 1), err)
		}
		if err := h.SkipWith(5); x.X64 != (err == nil) || raw.Skip != x.X64 {
			t.Errorf("%s: skipped: %v, %v", c.name, raw.Skip, err)
		}
		raw.Return = true
		if _, err := h.ArgAt(7); err == nil {
			t.Errorf("%s: an argument at the return", c.name)
		}
	}
}

// A family goes by the ids of parents.
func TestNTFamily(t *testing.T) {
	x := newNTFake(t, 6, 1, 7601, arch.PagingPAE)
	f := &facts{nt: x.f, kernel: x.k.AddressSpace()}
	th := x.f.thread(x.task())
	for _, c := range []struct {
		filter Filter
		want   bool
	}{
		{Filter{PIDs: []int{1234}}, true}, {Filter{PIDs: []int{300}}, false}, {Filter{PIDs: []int{300}, Follow: true}, true}, {Filter{PIDs: []int{4}, Follow: true}, false},
	} {
		fam := newFamily(f, &c.filter)
		if got := fam.has(&th); got != c.want {
			t.Errorf("%+v: %v", c.filter, got)
		}
	}
	fam := newFamily(f, &Filter{PIDs: []int{4}, Follow: true})
	smss := x.f.thread(x.Processes[1].Threads[0].Task)
	if !fam.has(&smss) || !fam.has(&th) {
		t.Error("a grandchild whose parent was seen is not in the family")
	}
}
