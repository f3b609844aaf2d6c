package main

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

type constant struct {
	value uint64
	name  string
}

// family is one line of families.txt.
type family struct {
	name, kind string
	zero       string // flags: the name of none of them
	mask       uint64
	of         map[string][]constant // by architecture
}

// common reports whether all architectures have the same constants.
func (f *family) common() bool {
	for _, a := range arches[1:] {
		if !slices.Equal(f.of[a], f.of[arches[0]]) {
			return false
		}
	}
	return true
}

func loadFamilies(file string, set *constants) ([]*family, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load families: %w", err)
	}
	var out []*family
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(line)
		if len(w) == 0 || strings.HasPrefix(w[0], "#") {
			continue
		}
		f, err := parseFamily(w, set)
		if err != nil {
			return nil, fmt.Errorf("family %s: %w", w[0], err)
		}
		out = append(out, f)
	}
	return out, nil
}

func parseFamily(w []string, set *constants) (*family, error) {
	if len(w) < 3 {
		return nil, fmt.Errorf("no constants")
	}
	f := &family{name: w[0], of: map[string][]constant{}}
	kind, mask, masked := strings.Cut(w[1], "=")
	if f.kind = kind; kind != "enum" && kind != "flags" {
		return nil, fmt.Errorf("kind %q", kind)
	}
	var err error
	if masked {
		if f.mask, err = strconv.ParseUint(mask, 0, 64); err != nil {
			return nil, fmt.Errorf("mask: %w", err)
		}
	}
	for _, a := range arches {
		if f.of[a], err = collect(f, w[2:], set.values[a]); err != nil {
			return nil, fmt.Errorf("%s: %w", a, err)
		}
	}
	return f, nil
}

// collect returns the constants that the patterns choose, in the order in
// which they have to be tried.
func collect(f *family, patterns []string, values map[string]uint64) ([]constant, error) {
	chosen := map[string]uint64{}
	for _, p := range patterns {
		if name, v, ok := strings.Cut(p, "="); ok {
			n, err := strconv.ParseUint(v, 0, 64)
			if err != nil {
				return nil, err
			}
			if n == 0 && f.kind == "flags" && f.mask == 0 {
				f.zero = name
				continue
			}
			chosen[name] = n
			continue
		}
		p, remove := strings.CutPrefix(p, "-")
		for name, v := range values {
			if ok, _ := path.Match(p, name); !ok {
				continue
			}
			if remove {
				delete(chosen, name)
			} else {
				chosen[name] = v
			}
		}
	}
	return order(f, chosen)
}

func order(f *family, chosen map[string]uint64) ([]constant, error) {
	seen := map[uint64]string{}
	var out []constant
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		v := chosen[name]
		if f.kind == "flags" && v == 0 && f.mask == 0 {
			continue // a name for "no flag" would match anything
		}
		if other, dup := seen[v]; dup {
			return nil, fmt.Errorf("%s and %s are both %#x", other, name, v)
		}
		seen[v] = name
		out = append(out, constant{v, name})
	}
	slices.SortFunc(out, func(a, b constant) int {
		if f.kind == "flags" { // O_SYNC before O_DSYNC, which is one of its bits
			if c := cmp.Compare(width(f, b), width(f, a)); c != 0 {
				return c
			}
		}
		return cmp.Compare(a.value, b.value)
	})
	return out, nil
}

// width is how many bits a flag has, at least 1; members of an enumeration
// among the flags have none.
func width(f *family, c constant) int {
	if c.value&^f.mask == 0 {
		return 1
	}
	return bits.OnesCount64(c.value)
}
