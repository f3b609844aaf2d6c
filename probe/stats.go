package probe

import "time"

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
	PerFunc    map[string]uint64 // entry hits that passed a filter, per kernel function
}
