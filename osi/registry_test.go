package osi

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/kernel"
)

type named struct {
	System
	name string
}

func provider(name string, fail error) Provider {
	return Provider{
		Name: name,
		Detect: func(context.Context, *vitrine.Guest, *kernel.Kernel) (string, error) {
			return "the mark of " + name, fail
		},
		Open: func(context.Context, *vitrine.Guest, *kernel.Kernel, *Options) (System, error) {
			return named{name: name}, nil
		},
	}
}

func TestOpenNeedsExactlyOneMatch(t *testing.T) {
	no := errors.New("no mark found")
	for _, tt := range []struct {
		name      string
		providers []Provider
		opts      *Options
		want      string   // provider
		err       error    // wrapped
		says      []string // in the error
	}{
		{"one", []Provider{provider("b", nil), provider("a", no)}, nil, "b", nil, nil},
		{"none registered", nil, nil, "", ErrNoProvider, []string{"none is registered"}},
		{"none matches", []Provider{provider("a", no), provider("b", no)}, nil, "", ErrNoProvider, []string{"a: no, no mark found", "b: no, no mark found"}},
		{"two match", []Provider{provider("a", nil), provider("b", nil), provider("c", no)}, nil, "", ErrAmbiguous,
			[]string{"a: yes, the mark of a", "b: yes, the mark of b", "c: no, no mark found"}},
		{"by name", []Provider{provider("a", nil), provider("b", nil)}, &Options{Provider: "b"}, "b", nil, nil},
		{"by name that does not accept", []Provider{provider("a", nil), provider("b", no)}, &Options{Provider: "b"}, "", ErrNoProvider, []string{"b: no, no mark found"}},
		{"by unknown name", []Provider{provider("a", nil)}, &Options{Provider: "z"}, "", ErrNoProvider, []string{`"z"`, "[a]"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r registry
			for _, p := range tt.providers {
				r.add(p)
			}
			sys, err := r.open(t.Context(), nil, nil, tt.opts)
			if !errors.Is(err, tt.err) {
				t.Fatalf("open: %v, want %v", err, tt.err)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("open: %q does not say %q", err, s)
				}
			}
			if err == nil && sys.(named).name != tt.want {
				t.Errorf("opened %q, want %q", sys.(named).name, tt.want)
			}
		})
	}
}

func TestOpenEndsWithContext(t *testing.T) {
	var r registry
	ctx, cancel := context.WithCancel(t.Context())
	p := provider("a", nil)
	p.Detect = func(context.Context, *vitrine.Guest, *kernel.Kernel) (string, error) {
		cancel()
		return "", errors.New("gave up")
	}
	r.add(p)
	if _, err := r.open(ctx, nil, nil, nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoProvider) {
		t.Errorf("open: %v, want the context's error", err)
	}
}

func TestRegisterRefuses(t *testing.T) {
	incomplete := provider("x", nil)
	incomplete.Open = nil
	for name, p := range map[string]Provider{"twice": provider("a", nil), "no name": provider("", nil), "incomplete": incomplete} {
		t.Run(name, func(t *testing.T) {
			var r registry
			r.add(provider("a", nil))
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			r.add(p)
		})
	}
}
