package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine/event"
)

// recorder is a sink that waits for gate before each record, and fails after
// limit records if limit is not 0.
type recorder struct {
	gate  chan struct{} // nil: never waits
	limit int

	mu      sync.Mutex
	got     []string
	flushed int
	closed  bool
}

var errFull = errors.New("full")

func (r *recorder) Write(rec event.Record) error {
	if r.gate != nil {
		<-r.gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limit > 0 && len(r.got) >= r.limit {
		return errFull
	}
	switch rec := rec.(type) {
	case event.Module:
		r.got = append(r.got, rec.Name)
	case event.Lost:
		r.got = append(r.got, fmt.Sprintf("lost %d", rec.Count))
	}
	return nil
}

func (r *recorder) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushed++
	return nil
}

func (r *recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

func (r *recorder) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

func write(t *testing.T, f *Fanout, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := f.Write(t.Context(), event.Module{Name: n}); err != nil {
			t.Errorf("write %s: %v", n, err)
		}
	}
}

func TestFanoutGivesAllToAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &recorder{}, &recorder{}
		f := NewFanout(Output{Name: "a", Sink: a}, Output{Name: "b", Sink: b, Policy: Drop})
		write(t, f, "1", "2", "3")
		synctest.Wait()
		if a.flushed == 0 {
			t.Error("an idle output was not flushed")
		}
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*recorder{a, b} {
			if diff := cmp.Diff([]string{"1", "2", "3"}, r.names()); diff != "" || !r.closed {
				t.Errorf("closed %v (-want +got):\n%s", r.closed, diff)
			}
		}
		if err := f.Write(t.Context(), event.Module{}); !errors.Is(err, ErrClosed) {
			t.Errorf("Write after Close = %v", err)
		}
		if err := f.Close(t.Context()); err != nil {
			t.Errorf("second Close = %v", err)
		}
	})
}

func TestDropCountsAndTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &recorder{gate: make(chan struct{})}
		f := NewFanout(Output{Name: "slow", Sink: slow, Policy: Drop, Queue: 2})
		write(t, f, "1")
		synctest.Wait()                 // the sink holds 1
		write(t, f, "2", "3", "4", "5") // 4 and 5 find the queue full
		slow.gate <- struct{}{}         // 1
		synctest.Wait()                 // the sink holds 2
		write(t, f, "6", "7")           // 7 finds it full again
		if got := f.Stats()[0].Dropped; got != 3 {
			t.Errorf("dropped %d, want 3", got)
		}
		close(slow.gate)
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"1", "2", "3", "lost 2", "6", "lost 1"}, slow.names()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if s := f.Stats()[0]; s.Written != 4 || s.Dropped != 3 || s.Blocked != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestBlockWaitsAndCountsTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &recorder{gate: make(chan struct{})}
		f := NewFanout(Output{Name: "slow", Sink: slow, Queue: 1})
		go func() {
			for range 4 {
				time.Sleep(time.Second)
				slow.gate <- struct{}{}
			}
		}()
		write(t, f, "1", "2", "3", "4")
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"1", "2", "3", "4"}, slow.names()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		// 1 is with the sink, 2 waits in the queue, 3 and 4 wait for room.
		if s := f.Stats()[0]; s.Dropped != 0 || s.Blocked != 2*time.Second {
			t.Errorf("stats %+v, want 2s blocked and nothing dropped", s)
		}
	})
}

// A stuck output must not keep a trace from ending.
func TestBlockEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := &recorder{gate: make(chan struct{})}
		f := NewFanout(Output{Name: "stuck", Sink: stuck, Queue: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for i := range 5 {
			err := f.Write(ctx, event.Module{})
			if i == 4 && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Write = %v", err)
			}
		}
		if err := f.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close = %v", err)
		}
		if s := f.Stats()[0]; s.Dropped != 3 {
			t.Errorf("stats %+v, want 3 dropped", s)
		}
		close(stuck.gate) // let the goroutine end
	})
}

func TestCloseEndsAWaitingWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &recorder{gate: make(chan struct{})}
		f := NewFanout(Output{Name: "slow", Sink: slow, Queue: 1})
		write(t, f, "1")
		synctest.Wait()
		write(t, f, "2")
		result := make(chan error)
		go func() { result <- f.Write(context.Background(), event.Module{Name: "3"}) }()
		synctest.Wait()
		go close(slow.gate)
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := <-result
		lost := cmp.Diff([]string{"1", "2", "lost 1"}, slow.names()) == ""
		delivered := cmp.Diff([]string{"1", "2", "3"}, slow.names()) == ""
		if !(lost && errors.Is(err, ErrClosed) || delivered && err == nil) {
			t.Errorf("Write = %v, records %v", err, slow.names())
		}
	})
}

func TestFailedOutputs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, good := &recorder{limit: 1}, &recorder{}
		f := NewFanout(Output{Name: "bad", Sink: bad, Queue: 1}, Output{Name: "good", Sink: good})
		for _, n := range []string{"1", "2", "3", "4"} {
			write(t, f, n)
			synctest.Wait()
		}
		stats := f.Stats()
		if s := stats[0]; s.Written != 1 || s.Dropped != 3 || !errors.Is(s.Err, errFull) {
			t.Errorf("bad: %+v", s)
		}
		if s := stats[1]; s.Written != 4 || s.Err != nil {
			t.Errorf("good: %+v", s)
		}
		if err := f.Close(t.Context()); !errors.Is(err, errFull) || err.Error() != "write to bad: full" {
			t.Errorf("Close = %v", err)
		}
	})
}

func TestWriteFailsWhenNobodyListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFanout(Output{Name: "out", Sink: &recorder{limit: 1}})
		write(t, f, "1", "2")
		synctest.Wait()
		if err := f.Write(t.Context(), event.Module{}); !errors.Is(err, errFull) {
			t.Errorf("Write = %v, want %v", err, errFull)
		}
		if err := f.Close(t.Context()); !errors.Is(err, errFull) {
			t.Errorf("Close = %v", err)
		}
	})
}

func TestManyWriters(t *testing.T) {
	r := &recorder{}
	f := NewFanout(Output{Name: "a", Sink: r, Queue: 4}, Output{Name: "b", Sink: &recorder{}, Policy: Drop, Queue: 4})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 250 {
				write(t, f, "x")
			}
		})
	}
	wg.Wait()
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(r.names()); n != 1000 {
		t.Errorf("%d records, want 1000", n)
	}
	if s := f.Stats()[1]; s.Written+s.Dropped != 1000 {
		t.Errorf("written and dropped %+v, want 1000 together", s)
	}
}

func TestPolicyNames(t *testing.T) {
	if Block.String() != "block" || Drop.String() != "drop" {
		t.Errorf("%v, %v", Block, Drop)
	}
}
