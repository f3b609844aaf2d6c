package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table is what was measured.
type table struct {
	setting  string // guest and host
	rows     []row
	compared []*comparison
}

// row is one measurement. Goal is what the project wants to reach, empty where
// there is none.
type row struct {
	What  string `json:"what"`
	Value string `json:"measured"`
	Goal  string `json:"goal,omitempty"`
	Note  string `json:"note,omitempty"`
}

func (t *table) add(what, value, goal, note string) {
	t.rows = append(t.rows, row{what, value, goal, note})
}

// addCompared adds the comparisons that were made, or cannot be.
func (t *table) addCompared(all []*comparison) {
	for _, c := range all {
		if len(c.rates) > 0 || c.Note != "" {
			c.finish()
			t.compared = append(t.compared, c)
		}
	}
}

// addStops adds how long the guest stands still while implants come and go.
func (t *table) addStops() {
	var in, out []float64
	for _, c := range t.compared {
		in, out = append(in, c.Planted...), append(out, c.Removed...)
	}
	for _, r := range []struct {
		what string
		ms   []float64
	}{{"implants in all system calls: guest stopped to plant them", in}, {"implants in all system calls: guest stopped to take them out", out}} {
		if len(r.ms) > 0 {
			t.add(r.what, fmt.Sprintf("%.0f ms", median(r.ms)), "<= 150 ms", fmt.Sprintf("%.0f to %.0f ms, %d times", slices.Min(r.ms), slices.Max(r.ms), len(r.ms)))
		}
	}
}

// writeJSON writes an object for the setting and for each row of each table.
func (t *table) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // goals have signs that are none
	err := e.Encode(map[string]string{"setting": t.setting})
	for _, r := range t.rows {
		err = errors.Join(err, e.Encode(r))
	}
	for _, c := range t.compared {
		err = errors.Join(err, e.Encode(c))
	}
	return err
}

// print writes the tables with aligned columns.
func (t *table) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\n\n", t.setting)
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if len(t.rows) > 0 {
		fmt.Fprintln(tw, "WHAT\tMEASURED\tGOAL\tNOTE")
	}
	for _, r := range t.rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", r.What, r.Value, dash(r.Goal), r.Note)
	}
	if len(t.compared) == 0 {
		return tw.Flush()
	}
	fmt.Fprintln(tw)
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(tw, "LOOP\tTRACER OF ALL CALLS\tRATE\tSLOWER\tSPREAD\tGOAL\tQEMU CPU\tRECORDS\tLOST\tHOST CPU\tNOTE")
	for _, c := range t.compared {
		fmt.Fprintln(tw, strings.Join(c.cells(), "\t"))
	}
	return tw.Flush()
}

// goals are what the project wants of how much slower a loop goes.
var goals = map[string]string{
	"getppid/implant, stream": "<= 2.5x", "getppid/implant, stream, filtered out": "<= 1.3x",
	"open+close/implant, stream": "<= 1.3x", "tar/implant, stream": "<= 1.2x",
}

func (c *comparison) cells() []string {
	cells := []string{c.Loop, c.Tracer, "-", "-", "-", dash(goals[c.Loop+"/"+c.Tracer]), "-", "-", "-", "-", c.Note}
	if len(c.rates) == 0 {
		return cells
	}
	bound := map[bool]string{true: ">"}[c.AtLeast]
	cells[2] = map[bool]string{true: "<"}[c.AtLeast] + count(c.Rate) + c.Thing + "/s"
	cells[3] = bound + factor(c.Slower)
	if len(c.Ratios) > 1 {
		cells[4] = fmt.Sprintf("%s to %s, %d times", factor(slices.Min(c.Ratios)), factor(slices.Max(c.Ratios)), len(c.Ratios))
	}
	if c.Work > 0 {
		cells[6] = factor(c.Work)
	}
	if c.Counts != "" {
		cells[7], cells[8] = count(c.Records)+"/s", fmt.Sprint(c.Lost)
	}
	if c.Tracer != "untraced" && !c.Inside {
		cells[9] = fmt.Sprintf("%.0f%%", c.CPU)
	}
	return cells
}

// factor writes a ratio.
func factor(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2fx", v)
	}
	return fmt.Sprintf("%.0fx", v)
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
