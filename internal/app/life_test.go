package app

import (
	"context"
	"errors"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// mortal is a fake guest that a test resets or ends.
type mortal struct {
	*vitrinetest.Backend
	events chan vitrine.LifeEvent
}

func (m mortal) WatchLife(ctx context.Context) <-chan vitrine.LifeEvent {
	out := make(chan vitrine.LifeEvent, 8)
	go func() {
		defer close(out)
		for {
			select {
			case e := <-m.events:
				out <- e
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func mortalSession() (*Session, mortal) {
	m := mortal{vitrinetest.New(), make(chan vitrine.LifeEvent)}
	g := vitrine.New(m, vitrine.Info{Name: "fake", Backend: "fake", Live: true})
	return &Session{guest: g, opts: &Options{}, target: Target{Text: "vm1"}}, m
}

func TestGuestThatEndsEndsTheCommand(t *testing.T) {
	torn := errors.New("task is torn")
	for _, c := range []struct {
		event vitrine.LifeEvent
		want  error
	}{
		{vitrine.LifeReset, vitrine.ErrReset},
		{vitrine.LifeShutdown, vitrine.ErrGone},
		{vitrine.LifeGone, vitrine.ErrGone},
	} {
		s, m := mortalSession()
		err := s.WhileAlive(t.Context(), func(ctx context.Context) error {
			m.events <- c.event
			<-ctx.Done() // a list that goes on and on
			return ctx.Err()
		})
		if !errors.Is(err, c.want) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want %v alone", c.event, err, c.want)
		}
		s, m = mortalSession()
		err = s.WhileAlive(t.Context(), func(context.Context) error {
			m.events <- c.event
			return torn
		})
		if !errors.Is(err, c.want) || !errors.Is(err, torn) {
			t.Errorf("%s: %v, want %v before %v", c.event, err, c.want, torn)
		}
		s, m = mortalSession()
		err = s.WhileAlive(t.Context(), func(context.Context) error {
			m.events <- c.event
			return nil // what it read was of two systems
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s after all was read: %v, want %v", c.event, err, c.want)
		}
	}
}

func TestGuestThatLivesChangesNothing(t *testing.T) {
	torn := errors.New("task is torn")
	for _, want := range []error{nil, torn} {
		s, m := mortalSession()
		err := s.WhileAlive(t.Context(), func(ctx context.Context) error {
			m.events <- vitrine.LifeStop // somebody pauses it
			m.events <- vitrine.LifeResume
			if ctx.Err() != nil {
				t.Error("the context has ended")
			}
			return want
		})
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

func TestInterruptIsNoEndOfTheGuest(t *testing.T) {
	s, _ := mortalSession()
	ctx, interrupt := context.WithCancel(t.Context())
	err := s.WhileAlive(ctx, func(ctx context.Context) error {
		interrupt()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || isEnd(err) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

func TestLostMonitorIsTheEndOfTheGuest(t *testing.T) {
	s, m := mortalSession()
	m.FailNth(vitrinetest.OpStatus, 1, vitrine.ErrGone)
	err := s.WhileAlive(t.Context(), func(context.Context) error { return errors.New("task is torn") })
	if !errors.Is(err, vitrine.ErrGone) {
		t.Errorf("%v, want %v", err, vitrine.ErrGone)
	}
}
