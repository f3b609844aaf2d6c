package syscalls

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// UnknownError is returned by ParseSet when a set names calls that the guest
// does not have.
type UnknownError struct {
	Names   []string            // as given, in order
	Nearest map[string][]string // known names that look like them, best first; may be empty
}

// Error lists the unknown names, each with the nearest known ones.
func (e *UnknownError) Error() string {
	var b strings.Builder
	for i, n := range e.Names {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "unknown system call %q", n)
		if near := e.Nearest[n]; len(near) > 0 {
			fmt.Fprintf(&b, " (did you mean %s?)", strings.Join(near, ", "))
		}
	}
	return b.String()
}

// ParseSet reads a set of system calls: names without prefix, separated by
// commas ("openat,close"), or "all". Known are the names to choose from, as
// Names or Table.Names return them. The result is in the order given, without
// repetitions. It returns an *UnknownError for names that are not known.
func ParseSet(set string, known []string) ([]string, error) {
	var out []string
	unknown := &UnknownError{Nearest: map[string][]string{}}
	for _, name := range strings.Split(set, ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "all":
			out = append(out, known...)
		case name == "":
			return nil, fmt.Errorf("parse set %q: empty name", set)
		case slices.Contains(known, name):
			out = append(out, name)
		default:
			unknown.Names = append(unknown.Names, name)
			unknown.Nearest[name] = Nearest(name, known)
		}
	}
	if len(unknown.Names) > 0 {
		return nil, unknown
	}
	return unique(out), nil
}

// unique removes repetitions and keeps the order.
func unique(names []string) []string {
	seen := make(map[string]bool, len(names))
	return slices.DeleteFunc(names, func(n string) bool {
		if seen[n] {
			return true
		}
		seen[n] = true
		return false
	})
}

// Nearest returns up to three of the known names that a mistyped or prefixed
// name may have meant, best first.
func Nearest(name string, known []string) []string {
	name = trimPrefix(strings.ToLower(name))
	if name == "" || len(name) > 64 {
		return nil
	}
	type match struct {
		name string
		far  int
	}
	var near []match
	for _, k := range known {
		far := distance(name, k)
		if strings.HasPrefix(k, name) || strings.HasPrefix(name, k) && len(k) > 2 {
			far = min(far, 1) // "exec" may have meant "execve"
		}
		if far <= 1+len(name)/4 {
			near = append(near, match{k, far})
		}
	}
	slices.SortFunc(near, func(a, b match) int {
		return cmp.Or(cmp.Compare(a.far, b.far), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	var out []string
	for _, m := range near[:min(3, len(near))] {
		out = append(out, m.name)
	}
	return out
}

// distance is how many characters have to be inserted, deleted, replaced or
// swapped with their neighbour to make b of a.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
