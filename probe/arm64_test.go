package probe

import (
	"errors"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// The arguments of an arm64 system call are the first registers of those saved.
func TestUserArgOfARM64(t *testing.T) {
	f := newFake(t)
	const saved = tasks + 0x2000
	for i := range 31 {
		f.space.PutUint64(saved+arch.GVA(8*i), uint64(100+i))
	}
	raw := &engine.Hit{Args: [6]uint64{uint64(saved)}}
	h := &Hit{raw: raw, kern: f.facts.kernel, Probe: &Probe{User: UserRegsARM64}}
	for i := range 6 {
		if v, err := h.UserArg(i); err != nil || v != uint64(100+i) {
			t.Errorf("argument %d = %d, %v", i, v, err)
		}
	}
	raw.Args[0] = 0x1000
	if v, err := h.UserArg(0); err == nil {
		t.Errorf("argument out of nothing: %d", v)
	}
}

// What a callback changes goes to the registers of the guest's processor.
func TestChangesToARM64Registers(t *testing.T) {
	r := &arch.Registers{ARM64: arch.ARM64Registers{On: true}}
	h := &Hit{raw: &engine.Hit{Regs: r}, Probe: &Probe{}, facts: &facts{}}
	if err := h.SetArg(2, 7); err != nil || r.ARM64.X[2] != 7 {
		t.Errorf("SetArg: %v, x2 is %d", err, r.ARM64.X[2])
	}
	h.raw.Return = true
	if err := h.SetResult(9); err != nil || r.ARM64.X[0] != 9 || h.Result() != 9 || r.RAX != 0 {
		t.Errorf("SetResult: %v, x0 is %d, rax %d", err, r.ARM64.X[0], r.RAX)
	}
}

func TestUserRoot(t *testing.T) {
	f := newFake(t)
	task, mm := f.task(5, 1, "x", 0, 0), tasks+0x3000
	f.facts.mm, f.facts.pgd, f.facts.pgdSize = 0x80, 0x18, 8
	f.space.PutUint64(task+0x80, uint64(mm))
	f.space.PutUint64(mm+0x18, uint64(tasks+0x4880)) // of 128 bytes, with 52 bits of address
	if got, ok := f.facts.userRoot(task); !ok || got != f.space.Phys(tasks+0x4880) {
		t.Errorf("root %v, %v", got, ok)
	}
	for name, spoil := range map[string]func(){
		"table outside of the kernel":  func() { f.space.PutUint64(mm+0x18, 0x1000) },
		"table that is nowhere":        func() { f.space.PutUint64(mm+0x18, 1<<63) },
		"kernel thread":                func() { f.space.PutUint64(task+0x80, 0) },
		"kernel without these members": func() { f.facts.pgdSize = 0 },
	} {
		f.space.PutUint64(task+0x80, uint64(mm))
		f.space.PutUint64(mm+0x18, uint64(tasks+0x4880))
		f.facts.pgdSize = 8
		spoil()
		if got, ok := f.facts.userRoot(task); ok {
			t.Errorf("%s: root %v", name, got)
		}
	}
	if got, ok := f.facts.userRoot(0); ok {
		t.Errorf("no task: root %v", got)
	}
}

// Implants are machine code of x86.
func TestEnginesOfARM64(t *testing.T) {
	g := vitrine.New(vitrinetest.New(), vitrine.Info{Arch: arch.ARM64, CPUs: 1, Live: true})
	for _, o := range []Options{{Engine: Implant}, {Delivery: Stream}, {Engine: Trap, Delivery: Stream}, {Engine: "magic"}} {
		s := &Session{g: g, facts: &facts{}}
		if err := s.chooseEngine(&o); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
