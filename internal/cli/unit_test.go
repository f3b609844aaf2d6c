package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"":               "",
		"plain-1.2/x":    "plain-1.2/x",
		"grün":           "grün",
		"a b":            `"a b"`,
		"\x1b[2J":        `"\x1b[2J"`,
		"q\"":            `"q\""`,
		`back\slash`:     `"back\\slash"`,
		"\xff":           `"\xff"`,
		"\u202eexe":      `"\u202eexe"`,
		"nl\n":           `"nl\n"`,
		"nbsp\u00a0here": `"nbsp\u00a0here"`,
		"\ufffd":         "\ufffd",
	} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s, want %s", in, got, want)
		}
	}
	if got := quoteAll([]string{"sh", "-c", "", "a b"}); got != `sh -c "" "a b"` {
		t.Errorf("quoteAll = %s", got)
	}
}

func FuzzQuote(f *testing.F) {
	f.Add("a\x1b\xff\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		for _, got := range []string{quote(s), quoteLines(s), printable(s)} {
			for i, r := range got {
				if r != '\n' && r != '\t' && !strconv.IsPrint(r) || invalidAt(got, i) && r == 0xfffd {
					t.Fatalf("%q became %q, which holds %U", s, got, r)
				}
			}
		}
		if q := quote(s); strings.ContainsAny(q, " \n\t") && q[0] != '"' {
			t.Fatalf("quote(%q) = %s", s, q)
		}
	})
}

func TestQuoteLinesKeepsLines(t *testing.T) {
	if got, want := quoteLines("a\n\tb \"c\" \\ \x1b[1m\x80\u202e"), "a\n\tb \"c\" \\ \\x1b[1m\\x80\\u202e"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExitCode(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("list: %w", err) }
	interrupted := wrap(context.Canceled)
	left := wrap(outputError(syscall.EPIPE))
	for _, c := range []struct {
		err  error
		sig  os.Signal
		want int
	}{
		{nil, nil, 0},
		{nil, os.Interrupt, 0}, // it was done already
		{wrap(errors.New("x")), nil, 1},
		{interrupted, os.Interrupt, 130},
		{interrupted, syscall.SIGTERM, 143},
		{interrupted, syscall.SIGHUP, 129},
		{interrupted, syscall.SIGQUIT, 131},
		{wrap(errors.New("x")), os.Interrupt, 1}, // it failed on its own
		{interrupted, nil, 1},
		{usagef("x"), nil, 2},
		{wrap(app.ErrTarget), nil, 2},
		{wrap(app.ErrUnknownCall), nil, 2},
		{wrap(vitrine.ErrNotFound), nil, 3},
		{wrap(vitrine.ErrNotUnderstood), nil, 4},
		{wrap(vitrine.ErrNotBooted), nil, 4},
		{wrap(syscall.EPIPE), nil, 1}, // of the monitor's socket
		{wrap(left), nil, 0},
		{errors.Join(left, left), nil, 0},
		{errors.Join(interrupted, left), os.Interrupt, 0},
		{errors.Join(interrupted, errAbandoned), os.Interrupt, 130},
		{fmt.Errorf("%w: %w", vitrine.ErrNotBooted, context.Canceled), os.Interrupt, 130}, // one error, of two kinds
		{errors.Join(interrupted, errors.New("detach failed")), os.Interrupt, 1},
		{wrap(errors.Join(errors.New("detach failed"), interrupted)), os.Interrupt, 1},
		{errors.Join(left, errors.New("detach failed")), nil, 1},
	} {
		if got := exitCode(c.err, c.sig); got != c.want {
			t.Errorf("exitCode(%v, %v) = %d, want %d", c.err, c.sig, got, c.want)
		}
	}
}

// outputError is what a command returns when standard output fails with err.
func outputError(err error) error {
	p := newPrinter(brokenWriter{err}, false, false)
	p.line("x")
	return p.flush()
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: w.err}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "64": 64, "0x40": 64, "4K": 4096, "16M": 16 << 20, "1G": 1 << 30, "0x2K": 2048,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "K", "-1", "1k", "1KB", "4K4", "18446744073709551615K", "1.5M"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1 << 10: "1 KiB", 512 << 20: "512 MiB", 5 << 30: "5 GiB", 1536 << 20: "1.5 GiB", 1<<64 - 1: "16 EiB",
	} {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	tab := newTable(">PID", "NAME", "PATH")
	tab.add(1, "ü", "/a")
	tab.add(12345, "longer", "")
	var b bytes.Buffer
	p := newPrinter(&b, false, false)
	if err := errors.Join(tab.print(p), p.flush()); err != nil {
		t.Fatal(err)
	}
	want := "  PID  NAME    PATH\n    1  ü       /a\n12345  longer\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestProgressStaysSilentForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := newProgress(&b, false)
		p.step("one")
		time.Sleep(900 * time.Millisecond)
		p.step("two")
		p.done()
		time.Sleep(time.Minute)
		if b.Len() > 0 {
			t.Errorf("printed %q", b.String())
		}
		p.step("three\x1b")
		time.Sleep(1100 * time.Millisecond)
		p.step("four")
		time.Sleep(2 * time.Second)
		p.done()
		if got, want := b.String(), "vitrine: three\\x1b\nvitrine: four\n"; got != want {
			t.Errorf("printed %q, want %q", got, want)
		}
	})
}

func TestProgressOnTerminalCleansUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := newProgress(&b, true)
		p.step("one")
		time.Sleep(3 * time.Second)
		p.done()
		if got := b.String(); !strings.Contains(got, "one (2 s)") || !strings.HasSuffix(got, "\r\x1b[K") {
			t.Errorf("printed %q", got)
		}
	})
}
