package osi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// toy is the provider of an operating system that keeps all it knows in one
// table of processes: a mark, and then 16 bytes for each, the first 4 of them
// the pid and the last 8 the name.
type toy struct {
	// A provider implements all methods of System; this one leaves the others
	// away, and must not be asked for them.
	osi.System
	g *vitrine.Guest
}

const (
	toyTable = arch.GPA(0x1000)
	toyMark  = "TOY PROCESSES 1\x00"
	toySlots = 64
)

func detectToy(_ context.Context, g *vitrine.Guest, _ *kernel.Kernel) (string, error) {
	mark := make([]byte, len(toyMark))
	if _, err := g.ReadPhysical(mark, toyTable); err != nil {
		return "", err
	}
	if string(mark) != toyMark {
		return "", fmt.Errorf("no table of processes at %v", toyTable)
	}
	return fmt.Sprintf("a table of processes at %v", toyTable), nil
}

func openToy(_ context.Context, g *vitrine.Guest, _ *kernel.Kernel, _ *osi.Options) (osi.System, error) {
	return toy{g: g}, nil
}

func (toy) OS() string { return "toy" }

// Processes reads an entry when its turn comes. What can't be read is an error
// in its place; the context's end is the last.
func (y toy) Processes(ctx context.Context) iter.Seq2[osi.Process, error] {
	return func(yield func(osi.Process, error) bool) {
		var entry [16]byte
		for i := range toySlots { // bounded: the table is the guest's
			if err := ctx.Err(); err != nil {
				yield(osi.Process{}, err)
				return
			}
			at := toyTable + arch.GPA(len(toyMark)+16*i)
			if _, err := y.g.ReadPhysical(entry[:], at); err != nil {
				if !yield(osi.Process{}, err) || errors.Is(err, vitrine.ErrGone) {
					return
				}
				continue
			}
			if entry[0] == 0 {
				continue
			}
			name, _, _ := bytes.Cut(entry[8:], []byte{0})
			p := osi.Process{PID: int(entry[0]), Name: string(name), Threads: 1, ID: osi.MakeID(int(entry[0]), 0)}
			if !yield(p, nil) {
				return
			}
		}
	}
}

// A provider for an operating system that Vitrine does not know. It would call
// osi.Register in its init, and be held against package providertest.
func ExampleProvider() {
	provider := osi.Provider{Name: "toy", Detect: detectToy, Open: openToy}

	guest := vitrinetest.New()
	guest.PutPhysical(toyTable, []byte(toyMark+"\x01\x00\x00\x00\x00\x00\x00\x00init\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00shell\x00\x00\x00"))
	ctx := context.Background()
	saw, err := provider.Detect(ctx, guest.Guest(), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("saw", saw)
	sys, _ := provider.Open(ctx, guest.Guest(), nil, nil)
	for p, err := range sys.Processes(ctx) {
		fmt.Println(p.PID, p.Name, err)
	}
	// Output:
	// saw a table of processes at 0x1000
	// 1 init <nil>
	// 7 shell <nil>
}
