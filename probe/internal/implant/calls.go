package implant

import (
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

// calls pairs entries with returns. A thread's calls nest on its stack, so an
// entry at or above the place of an earlier one proves that the earlier call is
// over: it ended with its thread, or its return was lost.
type calls struct {
	byTask map[arch.GVA]*threadCalls
	recent [64]*threadCalls // those used last, by some bits of their task's address
	open   int
	lost   uint64 // calls given up
}

// threadCalls is a thread of the guest: a task, for as long as nothing else
// takes its address.
type threadCalls struct {
	task arch.GVA
	open []call // outermost first
	comm [16]byte
	name string // comm, as a string
}

// call is a call whose return is wanted.
type call struct {
	index uint64 // of the entry's record
	sp    arch.GVA
	who   engine.Thread // at entry
	root  arch.GPA      // at entry
	value any
}

// maxOpen bounds the calls and the threads remembered. Tasks come from a slab
// that the kernel reuses; more than this many at once are forged.
const maxOpen = 1 << 20

// of returns the thread of a task.
func (c *calls) of(task arch.GVA) *threadCalls {
	slot := &c.recent[(task>>6^task>>12)%arch.GVA(len(c.recent))]
	if t := *slot; t != nil && t.task == task {
		return t
	}
	t := c.byTask[task]
	if t == nil {
		if c.byTask == nil || len(c.byTask) >= maxOpen {
			c.giveUp()
			c.byTask = map[arch.GVA]*threadCalls{}
		}
		t = &threadCalls{task: task}
		c.byTask[task] = t
	}
	*slot = t
	return t
}

// called returns the thread's name, given its bytes.
func (t *threadCalls) called(comm *[16]byte) string {
	if t.comm != *comm || t.name == "" {
		t.comm, t.name = *comm, nameOf(comm)
	}
	return t.name
}

// prune gives up calls of the thread that cannot return any more, now that one
// at sp has begun.
func (c *calls) prune(t *threadCalls, sp arch.GVA) {
	n := len(t.open)
	for n > 0 && t.open[n-1].sp <= sp {
		n--
	}
	if n < len(t.open) {
		c.lost += uint64(len(t.open) - n)
		c.drop(t, n)
	}
}

// enter remembers a call whose return is wanted.
func (c *calls) enter(t *threadCalls, k call) {
	if c.open >= maxOpen {
		c.giveUp()
		t = c.of(t.task)
	}
	t.open = append(t.open, k)
	c.open++
}

// leave returns the call of the thread that was entered as record index.
func (c *calls) leave(t *threadCalls, index uint64) (k call, ok bool) {
	for n := len(t.open) - 1; n >= 0; n-- {
		if t.open[n].index == index {
			k = t.open[n]
			c.lost += uint64(len(t.open) - n - 1) // inside of it, without a return
			c.drop(t, n)
			return k, true
		}
	}
	return call{}, false
}

// giveUp forgets all calls.
func (c *calls) giveUp() {
	c.lost += uint64(c.open)
	c.byTask, c.open = nil, 0
	clear(c.recent[:])
}

// drop cuts the thread's calls down to n.
func (c *calls) drop(t *threadCalls, n int) {
	c.open -= len(t.open) - n
	clear(t.open[n:])
	t.open = t.open[:n]
}
