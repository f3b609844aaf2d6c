package osi

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// LibraryByName returns the first library of a process whose name or whole
// path is name. It reads no further than that. Entries that could not be read
// are passed over; if the search then fails, the first of their errors is told.
func LibraryByName(ctx context.Context, sys System, h Handle, name string) (Library, error) {
	var first error
	for l, err := range sys.Libraries(ctx, h) {
		switch {
		case err != nil:
			first = firstOf(first, err)
		case l.Name == name || l.Path == name:
			return l, nil
		}
	}
	return Library{}, notFound("library", name, first)
}

// BaseByName returns the lowest address at which a process has mapped the file
// of this name (the last element of its path, or the whole).
func BaseByName(ctx context.Context, sys System, h Handle, name string) (arch.GVA, error) {
	m, err := findMapping(ctx, sys, h, name, func(m Mapping) bool {
		return m.Name == name || path.Base(m.Name) == name
	})
	return m.Start, err
}

// MappingByPrefix returns the first mapping of a process whose file name (last
// element of its path) begins with prefix, such as "libc.so".
func MappingByPrefix(ctx context.Context, sys System, h Handle, prefix string) (Mapping, error) {
	return findMapping(ctx, sys, h, prefix, func(m Mapping) bool {
		return m.Name != "" && strings.HasPrefix(path.Base(m.Name), prefix)
	})
}

// InSharedObject reports whether a lies in a file mapped by the process that
// is not its own executable.
func InSharedObject(ctx context.Context, sys System, h Handle, a arch.GVA) (bool, error) {
	m, err := sys.MappingAt(ctx, h, a)
	if err != nil || m.Kind != MappingFile {
		return false, err
	}
	p, err := sys.Process(ctx, h)
	return err == nil && m.Name != p.Exe, err
}

func findMapping(ctx context.Context, sys System, h Handle, name string, is func(Mapping) bool) (Mapping, error) {
	var first error
	for m, err := range sys.Mappings(ctx, h) {
		switch {
		case err != nil:
			first = firstOf(first, err)
		case is(m):
			return m, nil
		}
	}
	return Mapping{}, notFound("mapping", name, first)
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func notFound(what, name string, cause error) error {
	if cause != nil {
		return fmt.Errorf("find %s %q: %w", what, name, cause)
	}
	return fmt.Errorf("find %s %q: %w", what, name, ErrNotFound)
}
