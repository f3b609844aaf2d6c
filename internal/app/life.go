package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
)

// lifeErrors are the events after which nothing holds any more that was learnt
// of a guest.
var lifeErrors = map[vitrine.LifeEvent]error{
	vitrine.LifeReset:    vitrine.ErrReset,
	vitrine.LifeShutdown: fmt.Errorf("%w: it was powered off", vitrine.ErrGone),
	vitrine.LifeGone:     vitrine.ErrGone,
}

// WhileAlive calls f with a context that also ends when the guest is reset or
// ends. WhileAlive then returns an error that wraps vitrine.ErrReset or ErrGone,
// in front of what f made of memory that belonged to no one system.
func (s *Session) WhileAlive(ctx context.Context, f func(context.Context) error) error {
	watched, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	events := s.guest.WatchLife(watched)
	ended := make(chan error, 1)
	go func() { ended <- awaitEnd(events, cancel) }()
	err := f(watched)
	if ctx.Err() != nil || isEnd(err) {
		return err
	}
	// The monitor sends in order: what happened before its answer is in events.
	_, serr := s.guest.Status(ctx)
	cancel(nil)
	end := <-ended
	switch {
	case end == nil && isEnd(serr):
		end = serr
	case end == nil:
		return err
	}
	end = fmt.Errorf("look into guest %q: %w; nothing that was read of it holds", s.target.Text, end)
	if errors.Is(err, context.Canceled) {
		return end // it is why the context ended
	}
	return errors.Join(end, err)
}

// awaitEnd calls ended when an event says that the guest is not what it was,
// and returns the error, nil when events end before.
func awaitEnd(events <-chan vitrine.LifeEvent, ended context.CancelCauseFunc) error {
	for e := range events {
		if err := lifeErrors[e]; err != nil {
			ended(err)
			return err
		}
	}
	return nil
}

func isEnd(err error) bool {
	return errors.Is(err, vitrine.ErrReset) || errors.Is(err, vitrine.ErrGone)
}
