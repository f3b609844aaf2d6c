package implant

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// other is an engine that runs beside the implants.
type other struct {
	wanted bool
	run    func(ctx context.Context, h engine.Handler) error
}

func (o *other) Wanted() bool                                          { return o.wanted }
func (o *other) RunBeside(ctx context.Context, h engine.Handler) error { return o.run(ctx, h) }

// beginner counts what it is told, and fails the test when two tell it at once.
type beginner struct {
	t      *testing.T
	inside atomic.Int32
	begun  int
	hits   int
}

func (b *beginner) Begin() { b.begun++ }

func (b *beginner) Entered(*engine.Hit) (any, bool, error) {
	if b.inside.Add(1) != 1 {
		b.t.Error("two hits are delivered at a time")
	}
	b.hits++
	b.inside.Add(-1)
	return nil, false, nil
}

func (b *beginner) Returned(*engine.Hit, any) error { return nil }

func TestBesideSharesTheHandler(t *testing.T) {
	b := &beginner{t: t}
	const n = 1000
	delivered := make(chan struct{})
	o := &other{run: func(ctx context.Context, h engine.Handler) error {
		engine.Begin(h)
		for range n {
			if _, _, err := h.Entered(&engine.Hit{}); err != nil {
				return err
			}
		}
		close(delivered)
		<-ctx.Done()
		return nil
	}}
	r := &run{e: &Engine{cfg: Config{Beside: o}}, h: b}
	r.startBeside(t.Context())
	if r.beside != nil {
		t.Fatal("it was started without anything to do")
	}
	o.wanted = true
	r.startBeside(t.Context())
	r.startBeside(t.Context()) // it runs already
	for range n {
		if _, _, err := r.h.Entered(&engine.Hit{}); err != nil {
			t.Fatal(err)
		}
	}
	<-delivered
	if err := r.besideEnded(t.Context()); err != nil {
		t.Error(err)
	}
	if err := r.stopBeside(); err != nil || r.h != engine.Handler(b) {
		t.Errorf("stop = %v", err)
	}
	if b.hits != 2*n || b.begun != 1 {
		t.Errorf("%d hits, begun %d times", b.hits, b.begun)
	}
	// The next one, after the implants have come again, begins nothing.
	r.begun, delivered = true, make(chan struct{})
	r.startBeside(t.Context())
	<-delivered
	if err := r.stopBeside(); err != nil || b.begun != 1 {
		t.Errorf("stop = %v, begun %d times", err, b.begun)
	}
}

func TestBesideThatEndsEndsTheRun(t *testing.T) {
	broken := errors.New("connection lost")
	for _, want := range []error{broken, nil} {
		r := &run{e: &Engine{cfg: Config{Beside: &other{wanted: true, run: func(context.Context, engine.Handler) error { return want }}}}, h: &beginner{t: t}}
		r.startBeside(t.Context())
		<-r.beside.done
		err := r.besideEnded(t.Context())
		if err == nil || want != nil && !errors.Is(err, want) || r.beside != nil {
			t.Errorf("ended = %v, want %v", err, want)
		}
	}
	// At the end of the run it is no error.
	ctx, cancel := context.WithCancel(t.Context())
	r := &run{e: &Engine{cfg: Config{Beside: &other{wanted: true, run: func(ctx context.Context, _ engine.Handler) error { <-ctx.Done(); return nil }}}}, h: &beginner{t: t}}
	r.startBeside(ctx)
	cancel()
	<-r.beside.done
	if err := r.besideEnded(ctx); err != nil {
		t.Errorf("ended = %v", err)
	}
}

func TestNotPlanted(t *testing.T) {
	done, cancel := context.WithCancel(t.Context())
	cancel()
	failed := errors.New("no memory")
	var clean *NotPlantedError
	if err := notPlanted(t.Context(), failed); !errors.As(err, &clean) || !errors.Is(err, failed) {
		t.Errorf("clean failure = %v", err)
	}
	if err := notPlanted(t.Context(), errors.Join(failed, left(failed))); errors.As(err, &clean) {
		t.Errorf("a failure that left something = %v, which allows breakpoints", err)
	}
	if err := notPlanted(done, context.Canceled); err != nil {
		t.Errorf("the end of the context = %v", err)
	}
	if err := notPlanted(done, errors.Join(context.Canceled, left(failed))); err == nil {
		t.Error("something was left, and nothing said")
	}
	if left(nil) != nil {
		t.Error("no error became one")
	}
}
