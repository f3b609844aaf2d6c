package qemu

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
)

func TestWhenThere(t *testing.T) {
	notYet := errors.New("not yet: " + vitrine.ErrNotFound.Error())
	notYet = errors.Join(notYet, vitrine.ErrNotFound)
	there := &vitrine.Guest{}
	tries := 0
	appears := func() (*vitrine.Guest, error) {
		if tries++; tries < 3 {
			return nil, notYet
		}
		return there, nil
	}
	if g, err := whenThere(t.Context(), &Options{Wait: time.Minute}, appears); g != there || err != nil || tries != 3 {
		t.Errorf("a guest that appears = %p, %v after %d tries", g, err, tries)
	}
	never := func() (*vitrine.Guest, error) { tries++; return nil, notYet }
	tries = 0
	if _, err := whenThere(t.Context(), nil, never); !errors.Is(err, vitrine.ErrNotFound) || tries != 1 {
		t.Errorf("without a wait: %v after %d tries, want ErrNotFound after one", err, tries)
	}
	if _, err := whenThere(t.Context(), &Options{Wait: time.Millisecond}, never); !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("after the wait: %v, want ErrNotFound", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := whenThere(ctx, &Options{Wait: time.Minute}, never)
	if !errors.Is(err, vitrine.ErrNotFound) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, want ErrNotFound and Canceled", err)
	}
	tries = 0
	busy := func() (*vitrine.Guest, error) { tries++; return nil, vitrine.ErrBusy }
	if _, err := whenThere(t.Context(), &Options{Wait: time.Minute}, busy); !errors.Is(err, vitrine.ErrBusy) || tries != 1 {
		t.Errorf("another error: %v after %d tries, want ErrBusy after one", err, tries)
	}
}

// QEMU is started while AttachName waits for it.
func TestAttachNameWaitsForTheGuest(t *testing.T) {
	const name = "vitrine-test-late"
	type result struct {
		g   *vitrine.Guest
		err error
	}
	done := make(chan result, 1)
	go func() {
		g, err := AttachName(t.Context(), name, &Options{Wait: time.Minute})
		done <- result{g, err}
	}()
	time.Sleep(300 * time.Millisecond) // it looks at least once in vain
	startQEMU(t, "-m", "32", "-name", name)
	r := <-done
	if r.err != nil || r.g.Name() != name {
		t.Fatalf("AttachName = %v", r.err)
	}
	if err := r.g.Close(); err != nil {
		t.Error(err)
	}
}
