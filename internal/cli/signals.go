package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

// signals turns the signals that end a program into the end of a context, so
// that the guest is left as it was found.
type signals struct {
	first  atomic.Pointer[os.Signal]
	ch     chan os.Signal
	cancel context.CancelFunc
}

// catchSignals returns a context that ends at SIGINT, SIGTERM, SIGHUP or
// SIGQUIT. Further signals are answered with a note only: leaving at once
// would leave the guest with our breakpoints in it. SIGPIPE is turned into
// write errors for the same reason.
func (e *env) catchSignals(ctx context.Context) (context.Context, *signals) {
	s := &signals{ch: make(chan os.Signal, 4)}
	ctx, s.cancel = context.WithCancel(ctx)
	signal.Notify(s.ch, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	signal.Ignore(syscall.SIGPIPE)
	go func() {
		for sig := range s.ch {
			if s.first.CompareAndSwap(nil, &sig) {
				s.cancel()
				continue
			}
			fmt.Fprintln(e.stderr, "vitrine: still leaving the guest as it was; 'vitrine repair TARGET' does it after a kill -9")
		}
	}()
	return ctx, s
}

// caught returns the first signal, nil if there was none.
func (s *signals) caught() os.Signal {
	if p := s.first.Load(); p != nil {
		return *p
	}
	return nil
}

func (s *signals) stop() {
	signal.Stop(s.ch)
	close(s.ch)
	s.cancel()
}

// holdStops keeps Ctrl-Z from stopping this process: a guest that waits for
// us at a breakpoint would stand still with it. It returns the way back.
func (e *env) holdStops() (release func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTSTP)
	go func() {
		for range ch {
			fmt.Fprintln(e.stderr, "vitrine: not stopping, the guest would stand still too; Ctrl-C ends the trace")
		}
	}()
	return func() {
		signal.Stop(ch)
		close(ch)
	}
}
