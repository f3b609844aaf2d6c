package syscalls

import (
	"cmp"
	"sync"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Memory reads the memory of the process that made the call. *vitrine.AddressSpace
// is one. Read returns how many bytes it filled, and an error if they are fewer
// than len(p).
type Memory interface {
	Read(p []byte, a arch.GVA) (int, error)
}

// Vectors is implemented by a Memory that holds lists of pointers to strings in
// a form of its own. Its methods are tried before Read, and report false for
// addresses of which they know nothing.
type Vectors interface {
	// Strings appends the strings of the list at a to dst. More says that there
	// are more, cut that the last one is not whole; an error is why there are not.
	Strings(dst [][]byte, a arch.GVA) (list [][]byte, more, cut bool, err error, ok bool)
	// Pointers returns how many pointers are in the list at a, limit for no fewer.
	Pointers(a arch.GVA, limit int) (int, bool)
}

// AtFDCWD is the descriptor that stands for the working directory.
const AtFDCWD = -100

// Resolver knows what the guest's operating system knows of the process that
// made the call.
type Resolver interface {
	// Path returns the path of an open file, as /proc/PID/fd has it, and that
	// of the working directory for AtFDCWD; false if it is not known. It is
	// asked in the middle of a traced call, so it has to be quick.
	Path(fd int) (string, bool)
}

// Options are limits on what a Decoder shows. The zero value of each field
// stands for its default.
type Options struct {
	Strings  int // bytes shown of a string or buffer; default 32, at most 4096
	Paths    int // bytes shown of a path or of one argument of execve; default 4096, at most 4096
	Elements int // elements shown of an array of structures; default 16, at most 1024
	Args     int // arguments shown of execve; default 128, at most 1024
}

// textLimit is how long one argument's text may get by arrays, in bytes; the
// element that crosses it is the last.
const textLimit = 64 << 10

func (o *Options) withDefaults() Options {
	if o == nil {
		o = &Options{}
	}
	limit := func(v, def, most int) int { return min(cmp.Or(max(v, 0), def), most) }
	return Options{
		Strings:  limit(o.Strings, 32, scratchSize),
		Paths:    limit(o.Paths, scratchSize, scratchSize),
		Elements: limit(o.Elements, 16, 1024),
		Args:     limit(o.Args, 128, 1024),
	}
}

// Call is one system call as it was seen in the guest. Its number and name stay
// once a Decoder has seen it.
type Call struct {
	NR       int    // number; not used if Name is set
	Name     string // name without prefix ("openat"), or empty
	Args     [6]uint64
	Ret      int64
	Returned bool // Ret is valid

	// What the table of has of it: a decoder looks it up once.
	of    *Table
	entry *entry
}

// Arg is one decoded argument.
type Arg struct {
	Name  string // as the kernel calls it: "dfd"
	Type  string // in C: "const char *"
	Value uint64 // as it stood in the register
	Text  string // as strace shows it
	// Err is why Text shows the raw value, or only the beginning of what is
	// there. It is nil if all is well.
	Err error
	// Out is set for arguments that point to what the kernel writes. Enter
	// shows the pointer, Return what was written.
	Out bool
}

// Decoder shows system calls in words. It may be used concurrently.
type Decoder struct {
	arch  arch.Arch
	table *Table
	opts  Options
	pool  sync.Pool
}

// NewDecoder makes a decoder for calls by the table's interface. Options may
// be nil.
func NewDecoder(t *Table, opts *Options) *Decoder {
	return &Decoder{
		arch:  t.arch,
		table: t,
		opts:  opts.withDefaults(),
		pool:  sync.Pool{New: func() any { return new(decoding) }},
	}
}

// Table returns the table that the decoder works from.
func (d *Decoder) Table() *Table { return d.table }

// Name returns the call's name without prefix: c.Name, or the table's for
// c.NR, or "syscall_0x1ff" for a number that nobody knows.
func (d *Decoder) Name(c *Call) string {
	if c.Name != "" {
		return c.Name
	}
	if e := d.table.lookup(c); e != unknownCall {
		return e.name
	}
	if n, ok := Name(d.arch, c.NR); ok {
		return n
	}
	return "syscall_" + string(appendHex(nil, uint64(uint32(c.NR))))
}

// scratchSize bounds what is read from the guest at once.
const scratchSize = 4096

// decoding is the state of one Enter or Return.
type decoding struct {
	d       *Decoder
	c       *Call
	e       *entry
	m       Memory
	r       Resolver
	buf     []byte // texts, one after the other
	ends    [maxArgs]int
	errs    [maxArgs]error
	scratch [scratchSize]byte
	small   [512]byte // one structure
	strings [][]byte
}

func (d *Decoder) start(c *Call, m Memory, r Resolver) *decoding {
	x := d.pool.Get().(*decoding)
	x.d, x.c, x.e, x.m, x.r, x.buf = d, c, d.table.lookup(c), m, r, x.buf[:0]
	x.errs = [maxArgs]error{}
	return x
}

func (x *decoding) release() {
	d := x.d
	x.d, x.c, x.e, x.m, x.r = nil, nil, nil, nil, nil
	clear(x.strings)
	if cap(x.buf) > 4*textLimit {
		x.buf = nil
	}
	d.pool.Put(x)
}

// Enter decodes the arguments from memory as it is when the call is entered,
// and appends them to dst. What the kernel will write (Arg.Out) stays a
// pointer until Return. Arguments that the call does not use are left out:
// open's mode without O_CREAT. The resolver may be nil.
func (d *Decoder) Enter(dst []Arg, c *Call, m Memory, r Resolver) []Arg {
	if len(d.table.lookup(c).params) == 0 {
		return dst
	}
	x := d.start(c, m, r)
	defer x.release()
	n := d.used(x.e, c)
	for i := range n {
		if k := x.e.kinds[i]; k.id.out() {
			x.buf = appendPtr(x.buf, x.value(i))
		} else {
			x.arg(i, k)
		}
		x.ends[i] = len(x.buf)
	}
	texts, from := string(x.buf), 0
	for i, p := range x.e.params[:n] {
		dst = append(dst, Arg{
			Name: p.Name, Type: p.Type, Value: c.Args[i],
			Text: texts[from:x.ends[i]], Err: x.errs[i], Out: x.e.kinds[i].id.out(),
		})
		from = x.ends[i]
	}
	return dst
}

// Return completes the arguments that Enter returned, from memory as it is
// when the call returns: what the kernel wrote, if it succeeded, and what
// could not be read at the entry because the page was not there yet. It does
// nothing if the call has not returned.
func (d *Decoder) Return(args []Arg, c *Call, m Memory, r Resolver) {
	if !c.Returned {
		return
	}
	ok := !IsError(d.result(c))
	if !anyIncomplete(args, ok) {
		return
	}
	x := d.start(c, m, r)
	defer x.release()
	if ok && (x.e.name == "execve" || x.e.name == "execveat") {
		return // the memory that the arguments were in is gone
	}
	for i := range args[:min(len(args), len(x.e.kinds))] {
		a := &args[i]
		if !a.incomplete(ok) {
			continue
		}
		x.buf = x.buf[:0]
		x.errs[i] = nil
		x.arg(i, x.e.kinds[i])
		a.Text, a.Err = string(x.buf), x.errs[i]
	}
}

// incomplete reports whether there is more to an argument when the call has
// returned, with success if ok is set.
func (a *Arg) incomplete(ok bool) bool { return a.Out && ok || !a.Out && a.Err != nil }

func anyIncomplete(args []Arg, ok bool) bool {
	for i := range args {
		if args[i].incomplete(ok) {
			return true
		}
	}
	return false
}

// result is the returned value in the interface's width.
func (d *Decoder) result(c *Call) int64 {
	if d.arch == arch.I386 {
		return int64(int32(c.Ret))
	}
	return c.Ret
}

// used is how many of a call's arguments mean something.
func (d *Decoder) used(e *entry, c *Call) int {
	n := len(e.params)
	switch e.name {
	case "open":
		return min(n, openArgs(d.arch, c.Args[1], 2))
	case "openat":
		return min(n, openArgs(d.arch, c.Args[2], 3))
	case "mq_open":
		return min(n, 2*openArgs(d.arch, c.Args[1], 2)-2)
	case "mknod":
		return min(n, mknodArgs(c.Args[1], 2))
	case "mknodat":
		return min(n, mknodArgs(c.Args[2], 3))
	case "fcntl", "fcntl64":
		return min(n, fcntlArgs(d.arch, c.Args[1]))
	case "mremap":
		if c.Args[3]&2 == 0 { // MREMAP_FIXED
			return min(n, 4)
		}
	case "futex", "futex_time64":
		return min(n, futexArgs(c.Args[1]))
	case "prctl":
		return min(n, prctlArgs(d.arch, c.Args[0]))
	}
	return n
}

// openArgs is n, or one more if there is a mode.
func openArgs(a arch.Arch, flags uint64, n int) int {
	for _, c := range famOpen.of(a) {
		if (c.name == "O_CREAT" || c.name == "O_TMPFILE") && flags&c.value == c.value {
			return n + 1
		}
	}
	return n
}

// mknodArgs is n, or one more if the file is a device.
func mknodArgs(mode uint64, n int) int {
	if t := mode & 0o170000; t == 0o020000 || t == 0o060000 {
		return n + 1
	}
	return n
}

func fcntlArgs(a arch.Arch, cmd uint64) int {
	switch name, _ := famFcntl.find(a, cmd&0xffffffff, ^uint64(0)); name {
	case "F_GETFD", "F_GETFL", "F_GETOWN", "F_GETSIG", "F_GETLEASE", "F_GETPIPE_SZ", "F_GET_SEALS":
		return 2
	}
	return 3
}

// futexArgs depends on the operation alone (futex(2)).
func futexArgs(op uint64) int {
	switch op & 127 {
	case 1, 2: // WAKE, FD
		return 3
	case 7, 8: // UNLOCK_PI, TRYLOCK_PI
		return 2
	case 0, 6, 13: // WAIT, LOCK_PI, LOCK_PI2
		return 4
	case 3: // REQUEUE
		return 5
	}
	return 6
}

func prctlArgs(a arch.Arch, option uint64) int {
	switch name, _ := famPrctl.find(a, option&0xffffffff, ^uint64(0)); name {
	case "PR_GET_DUMPABLE", "PR_GET_KEEPCAPS", "PR_GET_NO_NEW_PRIVS", "PR_GET_SECUREBITS", "PR_GET_TIMERSLACK":
		return 1
	case "PR_SET_NAME", "PR_GET_NAME", "PR_SET_PDEATHSIG", "PR_GET_PDEATHSIG", "PR_SET_DUMPABLE", "PR_SET_KEEPCAPS",
		"PR_CAPBSET_READ", "PR_CAPBSET_DROP", "PR_SET_CHILD_SUBREAPER", "PR_GET_CHILD_SUBREAPER":
		return 2
	}
	return 5
}
