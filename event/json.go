package event

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// object writes one JSON object without reflection. Keys are ours and plain.
type object []byte

func begin(b []byte) object { return append(b, '{') }

func (o object) end() []byte { return append(o, '}') }

func (o object) key(k string) object {
	if o[len(o)-1] != '{' {
		o = append(o, ',')
	}
	o = append(o, '"')
	o = append(o, k...)
	return append(o, '"', ':')
}

func (o object) str(k, v string) object { return AppendString(o.key(k), v) }

func (o object) int(k string, v int64) object { return strconv.AppendInt(o.key(k), v, 10) }

func (o object) uint(k string, v uint64) object { return strconv.AppendUint(o.key(k), v, 10) }

func (o object) bool(k string, v bool) object { return strconv.AppendBool(o.key(k), v) }

func (o object) addr(k string, v Addr) object {
	return append(v.append(append(o.key(k), '"')), '"')
}

func (o object) time(k string, t time.Time) object {
	return append(appendTime(append(o.key(k), '"'), t), '"')
}

// appendTime appends a time in UTC as time.RFC3339Nano has it, some times faster
// than package time does.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	if year < 1000 || year > 9999 {
		return t.AppendFormat(b, time.RFC3339Nano)
	}
	hour, minute, second := t.Clock()
	b = append2(append2(b, year/100), year%100)
	b = append2(append(b, '-'), int(month))
	b = append2(append(b, '-'), day)
	b = append2(append(b, 'T'), hour)
	b = append2(append(b, ':'), minute)
	b = append2(append(b, ':'), second)
	if n := t.Nanosecond(); n > 0 {
		b = append(b, '.')
		for digit := 100_000_000; n > 0; digit /= 10 {
			b = append(b, byte('0'+n/digit))
			n %= digit
		}
	}
	return append(b, 'Z')
}

// append2 appends two digits.
func append2(b []byte, n int) []byte { return append(b, byte('0'+n/10), byte('0'+n%10)) }

func (o object) strs(k string, v []string) object {
	b := append(o.key(k), '[')
	for i, s := range v {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendString(b, s)
	}
	return append(b, ']')
}

// AppendJSON implements Record.
func (g Guest) AppendJSON(b []byte) []byte {
	return begin(b).str("name", g.Name).int("pid", int64(g.PID)).str("accel", g.Accel).
		uint("memory_bytes", g.MemoryBytes).int("vcpus", int64(g.VCPUs)).str("qmp", g.QMP).end()
}

// AppendJSON implements Record.
func (i Info) AppendJSON(b []byte) []byte {
	o := begin(b).str("os", i.OS).str("release", i.Release).str("banner", i.Banner).
		str("arch", i.Arch).str("paging", i.Paging).addr("slide", i.Slide).
		int("vcpus", int64(i.VCPUs)).key("facts")
	facts := begin(o)
	for _, k := range slices.Sorted(maps.Keys(i.Facts)) {
		facts = facts.dynamicKey(k)
		facts = AppendString(facts, i.Facts[k])
	}
	return object(facts.end()).strs("missing", i.Missing).end()
}

// dynamicKey is key for names that are not ours.
func (o object) dynamicKey(k string) object {
	if o[len(o)-1] != '{' {
		o = append(o, ',')
	}
	return append(AppendString(o, k), ':')
}

// AppendJSON implements Record.
func (p Process) AppendJSON(b []byte) []byte {
	return begin(b).int("pid", int64(p.PID)).int("ppid", int64(p.PPID)).int("tgid", int64(p.TGID)).
		str("name", p.Name).str("exe", p.Exe).strs("args", p.Args).
		uint("uid", uint64(p.UID)).uint("gid", uint64(p.GID)).str("state", p.State).
		bool("kthread", p.KThread).int("threads", int64(p.Threads)).time("start_time", p.StartTime).
		addr("asid", p.ASID).addr("task", p.Task).
		str("command_line", p.CommandLine).str("user", p.User).int("session", int64(p.Session)).
		bool("wow64", p.WOW64).int("handles", int64(p.Handles)).
		bool("compat", p.Compat).end()
}

// AppendJSON implements Record.
func (c Current) AppendJSON(b []byte) []byte {
	return begin(b).int("vcpu", int64(c.VCPU)).int("pid", int64(c.PID)).int("tid", int64(c.TID)).
		str("name", c.Name).addr("task", c.Task).end()
}

// AppendJSON implements Record.
func (m Module) AppendJSON(b []byte) []byte {
	return begin(b).str("name", m.Name).addr("base", m.Base).uint("size", m.Size).
		str("file", m.File).end()
}

// AppendJSON implements Record.
func (l Library) AppendJSON(b []byte) []byte {
	return begin(b).str("name", l.Name).str("path", l.Path).addr("base", l.Base).
		uint("size", l.Size).end()
}

// AppendJSON implements Record.
func (m Mapping) AppendJSON(b []byte) []byte {
	return begin(b).addr("start", m.Start).addr("end", m.End).str("perms", m.Perms).
		uint("offset", m.Offset).str("name", m.Name).end()
}

// AppendJSON implements Record.
func (f File) AppendJSON(b []byte) []byte {
	return begin(b).int("fd", int64(f.FD)).str("path", f.Path).int("pos", f.Pos).
		str("flags", f.Flags).str("type", f.Type).end()
}

// AppendJSON implements Record.
func (l Life) AppendJSON(b []byte) []byte {
	return begin(b).time("time", l.Time).str("event", string(l.Event)).int("pid", int64(l.PID)).
		int("ppid", int64(l.PPID)).int("tid", int64(l.TID)).str("name", l.Name).str("exe", l.Exe).
		strs("args", l.Args).uint("uid", uint64(l.UID)).int("exit_code", int64(l.ExitCode)).
		str("id", l.ID).str("parent_id", l.ParentID).int("vcpu", int64(l.VCPU)).end()
}

// AppendJSON implements Record. It does not allocate when b has room.
func (c Call) AppendJSON(b []byte) []byte { return c.append(b) }

// append is written out, because traces make hundreds of thousands of these a
// second.
func (c *Call) append(b []byte) []byte {
	b = appendTime(append(b, `{"time":"`...), c.Time)
	b = strconv.AppendUint(append(b, `","seq":`...), c.Seq, 10)
	b = strconv.AppendInt(append(b, `,"vcpu":`...), int64(c.VCPU), 10)
	b = strconv.AppendInt(append(b, `,"pid":`...), int64(c.PID), 10)
	b = strconv.AppendInt(append(b, `,"tid":`...), int64(c.TID), 10)
	b = strconv.AppendInt(append(b, `,"ppid":`...), int64(c.PPID), 10)
	b = AppendString(append(b, `,"comm":`...), c.Comm)
	b = strconv.AppendUint(append(b, `,"uid":`...), uint64(c.UID), 10)
	b = AppendString(append(b, `,"event":`...), string(c.Event))
	b = AppendString(append(b, `,"func":`...), c.Func)
	b = AppendString(append(b, `,"name":`...), c.Name)
	b = append(b, `,"args":[`...)
	for i := range c.Args {
		if i > 0 {
			b = append(b, ',')
		}
		b = c.Args[i].append(b)
	}
	b = strconv.AppendInt(append(b, `],"ret":`...), c.Ret, 10)
	b = AppendString(append(b, `,"ret_text":`...), c.RetText)
	if c.Errno != "" {
		b = AppendString(append(b, `,"errno":`...), c.Errno)
	}
	if c.Kernel {
		b = append(b, `,"kernel":true`...)
	}
	b = strconv.AppendInt(append(b, `,"duration_ns":`...), int64(c.Duration), 10)
	return append(b, '}')
}

// AppendJSON appends the argument as a JSON object.
func (a Arg) AppendJSON(b []byte) []byte { return a.append(b) }

func (a *Arg) append(b []byte) []byte {
	b = AppendString(append(b, `{"name":`...), a.Name)
	b = strconv.AppendUint(append(b, `,"value":"`...), a.Value, 10)
	b = AppendString(append(b, `","text":`...), a.Text)
	return append(b, '}')
}

// AppendJSON implements Record. The object begins with "event":"stats", which
// tells it from the calls before it.
func (s Stats) AppendJSON(b []byte) []byte {
	o := begin(b).str("event", "stats").uint("events", s.Events).uint("lost", s.Lost).
		int("guest_stopped_ns", int64(s.GuestStopped)).
		int("planting_ns", int64(s.Planting)).int("removing_ns", int64(s.Removing)).uint("stalls", s.Stalls).int("output_wait_ns", int64(s.OutputWait)).
		strs("notes", s.Notes).str("engine", s.Engine).
		str("delivery", s.Delivery).int("duration_ns", int64(s.Duration)).key("per_func")
	per := begin(o)
	for _, k := range slices.Sorted(maps.Keys(s.PerFunc)) {
		per = per.dynamicKey(k)
		per = strconv.AppendUint(per, s.PerFunc[k], 10)
	}
	return object(per.end()).end()
}

// AppendJSON implements Record. The object begins with "event":"lost".
func (l Lost) AppendJSON(b []byte) []byte {
	return begin(b).str("event", "lost").time("time", l.Time).uint("count", l.Count).end()
}
