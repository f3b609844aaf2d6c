package qemu

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
)

var sharedRAM = []string{"-m", "512", "-object", "memory-backend-memfd,id=m0,size=512M,share=on", "-machine", "memory-backend=m0"}

func benchRandom(b *testing.B, args ...string) {
	g := startQEMU(b, args...).attach(b, nil)
	rnd := rand.New(rand.NewPCG(1, 2))
	addrs := make([]arch.GPA, 4096)
	for i := range addrs {
		addrs[i] = arch.GPA(1<<20 + rnd.Uint64N(400<<20)&^7)
	}
	var p [8]byte
	for i := 0; b.Loop(); i++ {
		if _, err := g.ReadPhysical(p[:], addrs[i%len(addrs)]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
}

func benchSequential(b *testing.B, size int, args ...string) {
	g := startQEMU(b, args...).attach(b, nil)
	p := make([]byte, size)
	b.SetBytes(int64(size))
	for a := arch.GPA(1 << 20); b.Loop(); a += arch.GPA(size) {
		if a > 400<<20 {
			a = 1 << 20
		}
		if _, err := g.ReadPhysical(p, a); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadRandom(b *testing.B) {
	b.Run("mapped", func(b *testing.B) { benchRandom(b, sharedRAM...) })
	b.Run("process", func(b *testing.B) { benchRandom(b, "-m", "512") })
}

func BenchmarkReadSequential(b *testing.B) {
	b.Run("mapped-4K", func(b *testing.B) { benchSequential(b, 4<<10, sharedRAM...) })
	b.Run("mapped-1M", func(b *testing.B) { benchSequential(b, 1<<20, sharedRAM...) })
	b.Run("process-4K", func(b *testing.B) { benchSequential(b, 4<<10, "-m", "512") })
	b.Run("process-1M", func(b *testing.B) { benchSequential(b, 1<<20, "-m", "512") })
}

func BenchmarkMonitorRegisters(b *testing.B) {
	g := startQEMU(b, "-m", "64").attach(b, nil)
	for b.Loop() {
		if _, err := g.Registers(context.Background(), 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	e := startQEMU(b, sharedRAM...)
	for b.Loop() {
		e.attach(b, nil).Close()
	}
}

func BenchmarkStub(b *testing.B) {
	b.Run("hit", func(b *testing.B) {
		_, g := startCounter(b)
		c := openControl(b, g)
		do(b, c.Insert(arch.BreakSoftware, bootNop), c.Resume())
		wait(b, c)
		ctx := context.Background()
		for b.Loop() {
			r, err := c.Registers(0)
			do(b, err, c.SetPC(0, r.PC()+1), c.Resume())
			_, err = c.Wait(ctx)
			do(b, err)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "hits/s")
	})
	b.Run("registers", func(b *testing.B) {
		_, g := startCounter(b)
		c := openControl(b, g).(*control)
		for b.Loop() {
			clear(c.regs)
			_, err := c.Registers(0)
			do(b, err)
		}
	})
	b.Run("step", func(b *testing.B) {
		_, g := startCounter(b)
		c := openControl(b, g)
		ctx := context.Background()
		for b.Loop() {
			do(b, c.Step(ctx, 0))
		}
	})
	b.Run("open and close", func(b *testing.B) {
		_, g := startCounter(b)
		for b.Loop() {
			mustClose(b, openControl(b, g))
		}
	})
}
