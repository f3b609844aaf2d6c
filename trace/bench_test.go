package trace

import (
	"io"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/sink"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// user is a process's memory: a path and zeros.
type user struct{}

func (user) Read(p []byte, a arch.GVA) (int, error) {
	n := copy(p, "/usr/share/zoneinfo/Europe/Zurich"[min(a&0xff, 33):])
	clear(p[n:])
	return len(p), nil
}

// benchCaller returns a caller that gives its records to emit.
func benchCaller(emit func(*event.Call) error) *caller {
	c := newCaller(nil, nil, &CallsOptions{Reuse: true}, emit)
	c.decoders = &decoders{tables: map[arch.Arch]*syscalls.Table{arch.AMD64: syscalls.Fallback(arch.AMD64)}}
	c.decoders.limits(nil)
	return c
}

// one makes a call from its entry to its return.
func (c *caller) one(t *traced, args [6]uint64, ret int64, at time.Time) {
	c.moment = moment{time: at, cpu: 1, thread: &probe.Thread{PID: 1234, TID: 1235, PPID: 1, Comm: "worker"}, memory: user{}}
	f := c.take(t)
	f.call.Args = args
	if !c.entered(f) {
		c.moment.time, c.moment.ran = at.Add(time.Microsecond), c.moment.ran+time.Microsecond
		c.returned(f, ret)
	}
}

func BenchmarkCalls(b *testing.B) {
	calls := []struct {
		name string
		args [6]uint64
		ret  int64
	}{
		{"getppid", [6]uint64{}, 1234},
		{"close", [6]uint64{3}, 0},
		{"openat", [6]uint64{0xffffff9c, 0x7f0000000000, 0x80000, 0}, 3},
		{"openat", [6]uint64{0xffffff9c, 0x7f0000000000, 0x80000, 0}, -2},
		{"newfstatat", [6]uint64{3, 0x7f0000000000, 0x7f0000001000, 0x1000}, 0},
	}
	outputs := []struct {
		name string
		sink sink.Sink
	}{{"decode", nil}, {"json", sink.NewJSON(io.Discard)}, {"text", sink.NewText(io.Discard, &sink.TextOptions{Time: true})}}
	for _, o := range outputs {
		for _, k := range calls {
			name := o.name + "/" + k.name
			if k.ret < 0 {
				name += "-fails"
			}
			b.Run(name, func(b *testing.B) {
				c := benchCaller(func(r *event.Call) error {
					if o.sink == nil {
						return nil
					}
					return o.sink.Write(r)
				})
				t := c.traced(entry{symbol: "__x64_sys_" + k.name, name: k.name, abi: arch.AMD64})
				at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
				b.ReportAllocs()
				for b.Loop() {
					at = at.Add(3217 * time.Nanosecond)
					c.one(t, k.args, k.ret, at)
				}
			})
		}
	}
}
