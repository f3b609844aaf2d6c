package probe

import (
	"maps"
	"time"
)

// Stats are counters of a session, over all its runs.
type Stats struct {
	Engine     Engine            // the one in use, never Auto
	Delivery   Delivery          // the one in use
	Entries    uint64            // entry hits that passed a filter
	Returns    uint64            // return hits delivered
	Filtered   uint64            // entry hits that no filter let pass
	Unreturned uint64            // calls whose return was wanted and never seen: the thread ended in it, or Run did
	Stray      uint64            // stops of the guest that belonged to no call of interest
	Lost       uint64            // hits lost: by a lossy session, or in a stall
	Stalls     uint64            // how often callbacks took so long that the guest's threads went on without them (implants: 2 s)
	Stopped    time.Duration     // how long the guest stood still for us, as seen from here
	Planting   time.Duration     // the part of it for putting implants in
	Removing   time.Duration     // and for taking them out
	Notes      []string          // what is not as one might expect: why Auto chose what it did, what it could not hook by an implant
	PerFunc    map[string]uint64 // entry hits that passed a filter, per kernel function
}

// Add adds the counters of o to s; the engine and the delivery become those of
// o where it has them.
func (s *Stats) Add(o Stats) {
	if o.Engine != "" {
		s.Engine, s.Delivery, s.Notes = o.Engine, o.Delivery, o.Notes
	}
	s.Entries += o.Entries
	s.Returns += o.Returns
	s.Filtered += o.Filtered
	s.Unreturned += o.Unreturned
	s.Stray += o.Stray
	s.Lost += o.Lost
	s.Stalls += o.Stalls
	s.Stopped += o.Stopped
	s.Planting += o.Planting
	s.Removing += o.Removing
	sum := maps.Clone(s.PerFunc)
	if sum == nil {
		sum = make(map[string]uint64, len(o.PerFunc))
	}
	for f, n := range o.PerFunc {
		sum[f] += n
	}
	s.PerFunc = sum
}
