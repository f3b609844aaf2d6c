package implant

import (
	"context"
	"errors"
	"sync"

	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// Beside is an engine that hooks what implants cannot, and needs control of the
// guest for that: it runs while the implants are in and do not need it.
type Beside interface {
	// Wanted reports whether it has anything to hook.
	Wanted() bool
	// RunBeside works as Engine.Run does.
	RunBeside(ctx context.Context, h engine.Handler) error
}

// beside is what runs beside the implants of one run.
type beside struct {
	end  context.CancelFunc
	done chan struct{}
	err  error // of its end, once done is closed
}

// startBeside starts the other engine if it has anything to do. From then on
// its hits and ours are delivered one at a time.
func (r *run) startBeside(ctx context.Context) {
	if r.beside != nil || r.e.cfg.Beside == nil || !r.e.cfg.Beside.Wanted() {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &beside{end: cancel, done: make(chan struct{})}
	shared := &oneAtATime{h: r.h, begun: r.begun}
	r.alone, r.h, r.beside = r.h, shared, b
	go func() {
		defer close(b.done)
		b.err = r.e.cfg.Beside.RunBeside(ctx, shared)
	}()
}

// stopBeside ends the other engine and waits for it, so that control is free.
func (r *run) stopBeside() error {
	b := r.beside
	if b == nil {
		return nil
	}
	b.end()
	<-b.done
	r.h, r.beside = r.alone, nil
	return b.err
}

// besideEnded returns an error when the other engine has ended by itself.
func (r *run) besideEnded(ctx context.Context) error {
	if r.beside == nil {
		return nil
	}
	select {
	case <-r.beside.done:
	default:
		return nil
	}
	if err := r.stopBeside(); err != nil || ctx.Err() != nil {
		return err
	}
	return errors.New("the engine beside the implants has ended")
}

// oneAtATime is a handler that two engines deliver to.
type oneAtATime struct {
	mu    sync.Mutex // held while the handler runs
	h     engine.Handler
	begun bool
}

// Begin implements engine.Beginner: the other engine begins last.
func (o *oneAtATime) Begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.begun {
		o.begun = true
		engine.Begin(o.h)
	}
}

func (o *oneAtATime) Entered(h *engine.Hit) (any, bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.h.Entered(h)
}

func (o *oneAtATime) Returned(h *engine.Hit, value any) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.h.Returned(h, value)
}
