package probe

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStatsAdd(t *testing.T) {
	first := map[string]uint64{"f": 1, "g": 2}
	sum := Stats{Engine: Trap, Delivery: Sync, Entries: 3, Stopped: time.Second, PerFunc: first}
	sum.Add(Stats{Engine: Implant, Delivery: Stream, Entries: 4, Returns: 1, Filtered: 2, Unreturned: 3, Stray: 4, Lost: 5,
		Stalls: 6, Stopped: time.Second, PerFunc: map[string]uint64{"g": 3, "h": 4}})
	sum.Add(Stats{})
	want := Stats{Engine: Implant, Delivery: Stream, Entries: 7, Returns: 1, Filtered: 2, Unreturned: 3, Stray: 4, Lost: 5,
		Stalls: 6, Stopped: 2 * time.Second, PerFunc: map[string]uint64{"f": 1, "g": 5, "h": 4}}
	if diff := cmp.Diff(want, sum); diff != "" {
		t.Errorf("sum (-want +got):\n%s", diff)
	}
	if len(first) != 2 || first["g"] != 2 {
		t.Errorf("the map that was added to has changed: %v", first)
	}
}
