package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// table is what was measured.
type table struct{ rows []row }

// row is one measurement. Goal is what the project wants to reach, empty where
// there is none.
type row struct{ what, value, goal, note string }

func (t *table) add(what, value, goal, note string) {
	t.rows = append(t.rows, row{what, value, goal, note})
}

// print writes the table with aligned columns.
func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "WHAT\tMEASURED\tGOAL\tNOTE")
	for _, r := range t.rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", r.what, r.value, dash(r.goal), r.note)
	}
	return tw.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// times are several measurements of one thing.
type times []time.Duration

// median is what is reported: a loaded machine makes some of them slow.
func (t times) median() time.Duration {
	s := slices.Sorted(slices.Values(t))
	return s[len(s)/2]
}

func (t times) String() string {
	return fmt.Sprintf("%v to %v, %d times", short(slices.Min(t)), short(slices.Max(t)), len(t))
}

// short rounds to three digits.
func short(d time.Duration) time.Duration {
	for unit := time.Duration(1); ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit)
		}
	}
}

// count writes a rate with a unit prefix.
func count(v float64) string {
	switch {
	case v >= 1e9:
		return fmt.Sprintf("%.2f G", v/1e9)
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 10e3:
		return fmt.Sprintf("%.1f k", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f ", v)
	}
	return fmt.Sprintf("%.1f ", v)
}
