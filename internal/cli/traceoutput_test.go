package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
)

// stuckWriter blocks for ever, as a pager does that nobody pages.
type stuckWriter struct{}

func (stuckWriter) Write([]byte) (int, error) { select {} }

func call(n int) *event.Call {
	return &event.Call{Seq: uint64(n), Comm: "cat", PID: 7, TID: 7, Event: event.Joined, Name: "close", RetText: "0"}
}

func TestStuckReaderDoesNotKeepATraceFromEnding(t *testing.T) {
	e := newEnv(strings.NewReader(""), stuckWriter{}, io.Discard)
	ctx, cancel := context.WithCancel(t.Context())
	_, out := e.newTraceOutput(ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	var err error
	for n := 0; err == nil; n++ { // it gets stuck when the queue is full, until the context ends
		if n > 1<<20 {
			t.Fatal("the queue takes a million records")
		}
		err = out.write(call(n))
	}
	start := time.Now()
	if cerr := out.close(); !errors.Is(err, context.Canceled) || !errors.Is(cerr, context.Canceled) {
		t.Errorf("write: %v, close: %v; want both canceled", err, cerr)
	}
	if d := time.Since(start); d > 3*traceGrace {
		t.Errorf("close took %v", d)
	}
}

// TestStuckReaderDoesNotKeepTheProgramFromEnding covers what comes behind a
// trace: the summary and the last flush, while a write is still stuck.
func TestStuckReaderDoesNotKeepTheProgramFromEnding(t *testing.T) {
	r, w, err := os.Pipe() // nobody reads r
	if err != nil {
		t.Fatal(err)
	}
	e := newEnv(strings.NewReader(""), w, io.Discard)
	e.json = true
	ctx, cancel := context.WithCancel(t.Context())
	tctx, out := e.newTraceOutput(ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	var n uint64
	for err == nil {
		n++
		err = out.write(call(int(n)))
	}
	ended := make(chan error)
	go func() {
		err := e.endTrace(out, &event.Stats{Events: n}, context.Cause(tctx), true)
		ended <- errors.Join(err, e.out.flush())
	}()
	select {
	case err := <-ended:
		if code := exitCode(err, os.Interrupt); code != 130 {
			t.Errorf("exit status %d of %v, want 130", code, err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the program does not end")
	}
	w.Close() // lets the stuck write go
	r.Close()
}

func TestReaderThatLeavesHidesNoFailure(t *testing.T) {
	failed := errors.New("a breakpoint could not be taken out")
	for _, c := range []struct {
		trace error
		want  int
	}{{nil, 0}, {context.Canceled, 0}, {failed, 1}, {errors.Join(context.Canceled, failed), 1}} {
		e := newEnv(strings.NewReader(""), brokenWriter{syscall.EPIPE}, io.Discard)
		ctx, out := e.newTraceOutput(t.Context())
		_ = out.write(call(1)) // an error means that the output has failed already
		<-ctx.Done()
		err := e.endTrace(out, &event.Stats{}, c.trace, false)
		if code := exitCode(err, nil); code != c.want || c.want != 0 && !errors.Is(err, failed) {
			t.Errorf("trace error %v: status %d of %v, want %d", c.trace, code, err, c.want)
		}
	}
}

func TestFailedOutputEndsTheTraceAtOnce(t *testing.T) {
	e := newEnv(strings.NewReader(""), failingWriter{}, io.Discard)
	ctx, out := e.newTraceOutput(t.Context())
	if err := out.write(call(1)); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done() // without another write
	if !errors.Is(context.Cause(ctx), errWrite) {
		t.Errorf("cause %v, want %v", context.Cause(ctx), errWrite)
	}
	if err := out.close(); !errors.Is(err, errWrite) {
		t.Errorf("close: %v, want %v", err, errWrite)
	}
}

func TestSlowReaderLosesNothing(t *testing.T) {
	for _, json := range []bool{false, true} {
		r, w := io.Pipe()
		e := newEnv(strings.NewReader(""), w, io.Discard)
		e.json = json
		var got []byte
		read := make(chan struct{})
		go func() {
			defer close(read)
			got, _ = io.ReadAll(r)
		}()
		_, out := e.newTraceOutput(context.Background())
		const n = 5000
		for i := range n {
			if err := out.write(call(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := out.close(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		<-read
		if lines := strings.Count(string(got), "\n"); lines != n {
			t.Errorf("json %v: %d lines, want %d", json, lines, n)
		}
		if want := fmt.Sprintf(`"seq":%d,`, n-1); json && !strings.Contains(string(got[max(0, len(got)-400):]), want) {
			t.Errorf("the last line lacks %s", want)
		}
	}
}
