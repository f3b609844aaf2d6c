package implant

import "github.com/vitrine-vmi/vitrine/arch"

// calls pairs entries with returns. A thread's calls nest on its stack, so an
// entry at or above the place of an earlier one proves that the earlier call is
// over: it ended with its thread, or its return was lost.
type calls struct {
	byTask map[arch.GVA][]call
	open   int
	lost   uint64 // calls given up
}

type call struct {
	index uint64 // of the entry's record
	sp    arch.GVA
	value any
}

// maxOpen bounds the calls remembered. Tasks come from a slab that the kernel
// reuses; more than this many at once are forged.
const maxOpen = 1 << 20

// prune gives up calls of the task that cannot return any more, now that one
// at sp has begun.
func (c *calls) prune(task, sp arch.GVA) {
	s := c.byTask[task]
	n := len(s)
	for n > 0 && s[n-1].sp <= sp {
		n--
	}
	c.drop(task, s, n)
}

// enter remembers a call whose return is wanted.
func (c *calls) enter(task arch.GVA, k call) {
	if c.byTask == nil || c.open >= maxOpen {
		c.lost += uint64(c.open)
		c.byTask, c.open = map[arch.GVA][]call{}, 0
	}
	c.byTask[task] = append(c.byTask[task], k)
	c.open++
}

// leave returns the value of the call that was entered as record index.
func (c *calls) leave(task arch.GVA, index uint64) (any, bool) {
	s := c.byTask[task]
	for n := len(s) - 1; n >= 0; n-- {
		if s[n].index == index {
			v := s[n].value
			c.drop(task, s, n)
			c.lost-- // this one was not given up
			return v, true
		}
	}
	return nil, false
}

// giveUp forgets all calls.
func (c *calls) giveUp() {
	c.lost += uint64(c.open)
	c.byTask, c.open = nil, 0
}

// drop cuts the task's calls s down to n.
func (c *calls) drop(task arch.GVA, s []call, n int) {
	if n == len(s) {
		return
	}
	c.lost += uint64(len(s) - n)
	c.open -= len(s) - n
	clear(s[n:])
	c.byTask[task] = s[:n]
}
