package qemu

import (
	"context"
	"sync"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/qmp"
)

// hub hands run state changes to any number of watchers.
type hub struct {
	mu       sync.Mutex // guards the following fields
	watchers map[chan vitrine.LifeEvent]struct{}
	muted    bool // our own control stops and resumes the guest all the time
	gone     bool
}

// watchBuffer is how many events a watcher may lag behind.
const watchBuffer = 64

var lifeEvents = map[string]vitrine.LifeEvent{
	"STOP":     vitrine.LifeStop,
	"RESUME":   vitrine.LifeResume,
	"RESET":    vitrine.LifeReset,
	"SHUTDOWN": vitrine.LifeShutdown,
}

// onEvent takes an event of the monitor, in the monitor's goroutine.
func (m *machine) onEvent(ev qmp.Event) {
	e, ok := lifeEvents[ev.Name]
	if !ok {
		return
	}
	m.life.event(e)
	if c := m.ctl.Load(); c != nil {
		c.event(e)
	}
}

// event hands an event to the watchers.
func (h *hub) event(e vitrine.LifeEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.muted && (e == vitrine.LifeStop || e == vitrine.LifeResume) {
		return
	}
	h.send(e)
}

// end tells everybody, and whoever comes later, that the guest is gone.
func (h *hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.gone {
		h.gone = true
		h.send(vitrine.LifeGone)
	}
}

// mute drops stop and resume events while our own control causes them.
func (h *hub) mute(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.muted = on
}

// send needs mu held. A full channel loses its oldest event.
func (h *hub) send(e vitrine.LifeEvent) {
	for ch := range h.watchers {
		for sent := false; !sent; {
			select {
			case ch <- e:
				sent = true
			default:
				select {
				case <-ch:
				default:
				}
			}
		}
	}
}

// watch returns events until ctx ends, when the channel is closed.
func (h *hub) watch(ctx context.Context) <-chan vitrine.LifeEvent {
	ch := make(chan vitrine.LifeEvent, watchBuffer)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = map[chan vitrine.LifeEvent]struct{}{}
	}
	h.watchers[ch] = struct{}{}
	if h.gone {
		ch <- vitrine.LifeGone
	}
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, ch)
		close(ch)
	})
	return ch
}

// WatchLife returns changes of the run state until ctx ends. While OpenControl
// is in force, stops and resumes are not reported: it causes them itself.
func (m *machine) WatchLife(ctx context.Context) <-chan vitrine.LifeEvent { return m.life.watch(ctx) }
