package osi

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// Provider knows one family of operating systems. To write one, fill this
// structure, call Register from the package's init, and run the suite of
// package vitrinetest/providertest against a real guest.
type Provider struct {
	// Name is the name by which Options choose the provider, and what
	// System.OS returns: "linux".
	Name string
	// Detect tells whether the guest runs what the provider knows: in saw, on
	// what evidence; or in err, what it looked for and what it found instead.
	Detect func(ctx context.Context, g *vitrine.Guest, k *kernel.Kernel) (saw string, err error)
	// Open returns the system of a guest that Detect has accepted.
	Open func(ctx context.Context, g *vitrine.Guest, k *kernel.Kernel, opts *Options) (System, error)
}

// Options change how Open works. The zero value and nil mean the defaults.
type Options struct {
	// Provider names the provider to use; "" means the one that detects the
	// guest. A named provider must still accept the guest.
	Provider string
}

// registry holds the providers of a program.
type registry struct {
	mu        sync.Mutex
	providers []Provider // protected by mu; sorted by name
}

var registered registry

// Register makes a provider known to Open. It is called from the init of the
// provider's package and panics when the provider is incomplete or its name is
// taken.
func Register(p Provider) { registered.add(p) }

// Providers returns the names of the registered providers, sorted.
func Providers() []string {
	var out []string
	for _, p := range registered.all() {
		out = append(out, p.Name)
	}
	return out
}

// Open returns the operating system of the guest. Exactly one provider must
// accept it: the error wraps ErrNoProvider or ErrAmbiguous otherwise and lists
// what each one saw.
func Open(ctx context.Context, g *vitrine.Guest, k *kernel.Kernel, opts *Options) (System, error) {
	return registered.open(ctx, g, k, opts)
}

func (r *registry) add(p Provider) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, taken := slices.BinarySearchFunc(r.providers, p.Name, func(q Provider, name string) int {
		return strings.Compare(q.Name, name)
	})
	if p.Name == "" || p.Detect == nil || p.Open == nil || taken {
		panic(fmt.Sprintf("osi: provider %q is incomplete or registered twice", p.Name))
	}
	r.providers = slices.Insert(r.providers, at, p)
}

func (r *registry) all() []Provider {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.providers)
}

func (r *registry) open(ctx context.Context, g *vitrine.Guest, k *kernel.Kernel, opts *Options) (System, error) {
	if opts == nil {
		opts = &Options{}
	}
	var matches []Provider
	var reports []string
	for _, p := range r.all() {
		if opts.Provider != "" && opts.Provider != p.Name {
			continue
		}
		saw, err := p.Detect(ctx, g, k)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("detect operating system: %w", ctx.Err())
		}
		if err != nil {
			reports = append(reports, fmt.Sprintf("%s: no, %v", p.Name, err))
			continue
		}
		matches = append(matches, p)
		reports = append(reports, fmt.Sprintf("%s: yes, %s", p.Name, saw))
	}
	if err := judge(len(matches), reports, opts.Provider, r.all()); err != nil {
		return nil, err
	}
	return matches[0].Open(ctx, g, k, opts)
}

// judge returns nil for exactly one match, and else why that is not so. Both
// errors are a guest that is not understood.
func judge(matches int, reports []string, wanted string, known []Provider) error {
	switch {
	case matches == 1:
		return nil
	case matches > 1:
		return fmt.Errorf("detect operating system: %w (%s): %w", ErrAmbiguous, strings.Join(reports, "; "), vitrine.ErrNotUnderstood)
	case len(reports) > 0:
		return fmt.Errorf("detect operating system: %w (%s): %w", ErrNoProvider, strings.Join(reports, "; "), vitrine.ErrNotUnderstood)
	}
	var names []string
	for _, p := range known {
		names = append(names, p.Name)
	}
	if wanted != "" {
		return fmt.Errorf("detect operating system: %w: none is called %q; there are [%s]", ErrNoProvider, wanted, strings.Join(names, " "))
	}
	return fmt.Errorf("detect operating system: %w: none is registered; import osi/linux", ErrNoProvider)
}
