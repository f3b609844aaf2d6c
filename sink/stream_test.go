package sink

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/event"
)

func TestStreamWritesWhatASinkWrites(t *testing.T) {
	records := []event.Record{openat(), event.Stats{Events: 3, Engine: "trap"}, event.Lost{Count: 2}}
	for _, enc := range []func(io.Writer) interface {
		Sink
		Encoder
	}{
		func(w io.Writer) interface {
			Sink
			Encoder
		} {
			return NewJSON(w)
		},
		func(w io.Writer) interface {
			Sink
			Encoder
		} {
			return NewText(w, &TextOptions{Color: true, Time: true})
		},
	} {
		var want, got bytes.Buffer
		direct := enc(&want)
		s := NewStream(&got, enc(nil), nil)
		for range 2000 {
			for _, r := range records {
				if err := errors.Join(direct.Write(r), s.Write(t.Context(), r)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := errors.Join(direct.Close(), s.Close(t.Context())); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want.Bytes(), got.Bytes()) {
			t.Errorf("%d bytes by a stream, %d by a sink", got.Len(), want.Len())
		}
		if st := s.Stats(); st.Written != 6000 {
			t.Errorf("%+v", st)
		}
	}
}

// A record is there soon though no other follows.
func TestStreamDoesNotHoldBack(t *testing.T) {
	r, w := io.Pipe()
	s := NewStream(w, NewJSON(nil), nil)
	if err := s.Write(t.Context(), openat()); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	if n, err := r.Read(b); err != nil || !strings.HasSuffix(string(b[:n]), "}\n") {
		t.Errorf("%q, %v", b[:n], err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestStreamWaitsForItsWriter(t *testing.T) {
	r, w := io.Pipe()
	s := NewStream(w, NewJSON(nil), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var err error
	n := uint64(0)
	for ; err == nil; n++ {
		if err = s.Write(ctx, openat()); n > 1<<20 {
			t.Fatal("there is no limit")
		}
	}
	if st := s.Stats(); !errors.Is(err, context.DeadlineExceeded) || st.Blocked <= 0 || st.Written != n-1 {
		t.Errorf("%v after %d records; %+v", err, n, st)
	}
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close of what is stuck = %v", err)
	}
	lines := make(chan int)
	go func() {
		b, _ := io.ReadAll(r)
		lines <- bytes.Count(b, []byte("\n"))
	}()
	err = s.Close(t.Context()) // again, now that there is a reader
	w.Close()
	if got := <-lines; err != nil || uint64(got) != n-1 {
		t.Errorf("%d of %d lines, %v", got, n-1, err)
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestStreamFails(t *testing.T) {
	bad := errors.New("bad")
	failed := make(chan error, 1)
	s := NewStream(brokenWriter{bad}, NewJSON(nil), func(err error) { failed <- err })
	if err := s.Write(t.Context(), openat()); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, bad) {
		t.Errorf("failed with %v", err)
	}
	if err := s.Write(t.Context(), openat()); !errors.Is(err, bad) {
		t.Errorf("Write = %v", err)
	}
	if err := s.Close(t.Context()); !errors.Is(err, bad) {
		t.Errorf("Close = %v", err)
	}
}

func BenchmarkStream(b *testing.B) {
	for _, enc := range []struct {
		name string
		enc  Encoder
	}{{"json", NewJSON(nil)}, {"text", NewText(nil, &TextOptions{Time: true})}} {
		b.Run(enc.name, func(b *testing.B) {
			s := NewStream(io.Discard, enc.enc, nil)
			r := openat()
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Write(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Close(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
	}
}
