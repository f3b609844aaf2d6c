package syscalls

import (
	"strings"
	"sync"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Objects knows what the handles of the process that made a call lead to.
type Objects interface {
	// Object returns the type of the object that a handle of the caller leads to
	// ("File", "Key") and its name, which may be empty; false if it is not known.
	Object(handle uint64) (kind, name string, ok bool)
}

// NTCall is one call of a service of an NT kernel, as it was seen.
type NTCall struct {
	Name     string   // "NtCreateFile"
	Args     []uint64 // as many as could be read
	Status   uint32   // the NTSTATUS that it returned
	Returned bool     // Status is valid
}

// NTDecoder shows calls of an NT kernel's services in words: NtCreateFile and
// its like, whose signatures are public. It knows no numbers of system calls,
// which are different in every build. It does not change and may be used
// concurrently.
type NTDecoder struct {
	word int // bytes of a pointer
	opts Options
}

// NewNTDecoder makes a decoder for a kernel whose pointers have so many bytes,
// 4 or 8. Options may be nil.
func NewNTDecoder(pointerSize int, opts *Options) *NTDecoder {
	return &NTDecoder{word: pointerSize, opts: opts.withDefaults()}
}

// ntCall is a service's signature.
type ntCall struct {
	name   string
	params []ntParam
}

// ntParam is a parameter and how it is shown.
type ntParam struct {
	name string
	kind ntKind
	dir  ntDir
	fam  string // of constants: their family; of an access mask: the type of the object
	ref  int    // the argument that holds a length or a count; -1 for none
}

// ntDir says who fills in what a parameter points to.
type ntDir uint8

const (
	ntIn    ntDir = iota
	ntOut         // the kernel: it is shown at the return
	ntInOut       // both: it is shown as it was and as it became
)

// ntCalls returns the signatures by name.
var ntCalls = sync.OnceValue(func() map[string]*ntCall {
	out := map[string]*ntCall{}
	for line := range strings.Lines(ntSignatures) {
		if words := strings.Fields(line); len(words) > 0 {
			c := &ntCall{name: words[0]}
			for _, w := range words[1:] {
				c.params = append(c.params, parseNTParam(w))
			}
			out[c.name] = c
		}
	}
	return out
})

// parseNTParam reads a word of ntSignatures: a name and a kind, joined by ':' for
// what goes in, '>' for what comes out and '+' for both; then, where the kind
// wants it, '.' and a family, or '@' and the number of another argument.
func parseNTParam(w string) ntParam {
	p := ntParam{ref: -1}
	i := strings.IndexAny(w, ":>+")
	if i < 0 {
		panic("signature of an NT call: " + w)
	}
	p.name, p.dir = w[:i], map[byte]ntDir{':': ntIn, '>': ntOut, '+': ntInOut}[w[i]]
	kind := w[i+1:]
	if before, ref, ok := strings.Cut(kind, "@"); ok {
		kind, p.ref = before, int(ref[0]-'0')
	}
	kind, p.fam, _ = strings.Cut(kind, ".")
	k, ok := ntKinds[kind]
	if !ok {
		panic("kind of an NT call's argument: " + w)
	}
	p.kind = k
	return p
}

// NTNames returns the names of the calls whose signatures are known, in no order.
func NTNames() []string {
	var out []string
	for n := range ntCalls() {
		out = append(out, n)
	}
	return out
}

// NTArgs returns how many arguments a call takes, and false when its signature
// is not known.
func NTArgs(name string) (n int, ok bool) {
	c, ok := ntCalls()[name]
	if !ok {
		return 0, false
	}
	return len(c.params), true
}

// ntReturnless are the calls that end what makes them, or go on elsewhere, when
// the handle in their first argument is one of those; none means any.
var ntReturnless = map[string][]int32{
	"NtTerminateProcess": {-1}, "NtTerminateThread": {-2, 0}, "NtContinue": nil, "NtContinueEx": nil, "NtCallbackReturn": nil,
}

// NTReturns reports whether a call returns to its caller, if it succeeds.
func NTReturns(c *NTCall) bool {
	handles, listed := ntReturnless[c.Name]
	if !listed || len(c.Args) == 0 {
		return !listed
	}
	for _, h := range handles {
		if int32(c.Args[0]) == h {
			return false
		}
	}
	return len(handles) > 0
}

// unknownNT shows raw arguments.
var unknownNT = func() *ntCall {
	c := &ntCall{}
	for i := range ntMaxArgs {
		c.params = append(c.params, ntParam{name: "arg" + string('0'+rune(i/10)) + string('0'+rune(i%10)), kind: ntHex, ref: -1})
		if i < 10 {
			c.params[i].name = "arg" + string('0'+rune(i))
		}
	}
	return c
}()

// ntMaxArgs bounds the arguments of a call: none has more than 17.
const ntMaxArgs = 20

func (d *NTDecoder) signature(c *NTCall) *ntCall {
	if s, ok := ntCalls()[c.Name]; ok {
		return s
	}
	return unknownNT
}

// Enter decodes the arguments from memory as it is when the call is entered, and
// appends them to dst. What the kernel will write (Arg.Out) stays a pointer
// until Return. Calls with an unknown signature have their arguments shown raw,
// as many as there are in c. Objects may be nil.
func (d *NTDecoder) Enter(dst []Arg, c *NTCall, m Memory, o Objects) []Arg {
	s := d.signature(c)
	x := &ntDecoding{d: d, c: c, m: m, o: o}
	for i := range s.params[:min(len(s.params), len(c.Args))] {
		p := &s.params[i]
		a := Arg{Name: p.name, Type: ntTypes[p.kind], Value: d.cut(c.Args[i]), Out: p.dir != ntIn}
		x.b = x.b[:0]
		if p.dir == ntOut {
			x.pointer(a.Value)
		} else {
			a.Err = x.show(p, a.Value)
		}
		a.Text = string(x.b)
		dst = append(dst, a)
	}
	return dst
}

// Return completes the arguments that Enter returned, from memory as it is when
// the call returns. It does nothing if the call has not returned.
func (d *NTDecoder) Return(args []Arg, c *NTCall, m Memory, o Objects) {
	if !c.Returned {
		return
	}
	s := d.signature(c)
	x := &ntDecoding{d: d, c: c, m: m, o: o}
	for i := range args[:min(len(args), len(s.params))] {
		a, p := &args[i], &s.params[i]
		x.b = x.b[:0]
		switch {
		case p.dir == ntIn && a.Err != nil && pointsToMemory(p.kind): // its page may have come in meanwhile
			a.Err = x.show(p, a.Value)
			a.Text = string(x.b)
		case p.dir == ntIn || !ntWritten(c.Status, p.kind) || a.Value == 0:
		default:
			a.Err = x.show(p, a.Value)
			a.Text = ntBecame(p, a.Text, string(x.b))
		}
	}
}

// ntBecame joins what was there with what is there now.
func ntBecame(p *ntParam, before, now string) string {
	if p.dir == ntOut || before == now {
		return now
	}
	return before + " => " + now
}

// cut returns a value in the kernel's width.
func (d *NTDecoder) cut(v uint64) uint64 {
	if d.word == 4 {
		return v & 0xffffffff
	}
	return v
}

// ntWritten reports whether a call that returned status has written what its
// arguments of a kind point to. A call that is pending has not told how it
// ends; one that fails with an error writes nothing that can be relied on.
func ntWritten(status uint32, k ntKind) bool {
	if status == statusPending && (k == ntStatusBlock || k == ntReadBuffer) {
		return false
	}
	return status < 0xc0000000
}

// Result decodes what a call returned: text "0xc0000034
// (STATUS_OBJECT_NAME_NOT_FOUND)", and as errno the name of a status that is an
// error or a warning, "0xc0001234" for one without a name.
func (d *NTDecoder) Result(c *NTCall) Result {
	if !c.Returned {
		return Result{Text: "?"}
	}
	b := appendHex(nil, uint64(c.Status))
	number, name := string(b), NTStatus(c.Status)
	r := Result{Text: number}
	if name != "" {
		r.Text += " (" + name + ")"
	}
	if c.Status >= 0x80000000 {
		if r.Errno = name; name == "" {
			r.Errno = number
		}
	}
	return r
}

// ntDecoding is the state of one Enter or Return.
type ntDecoding struct {
	d *NTDecoder
	c *NTCall
	m Memory
	o Objects
	b []byte
}

func (x *ntDecoding) text(s string) { x.b = append(x.b, s...) }

func (x *ntDecoding) pointer(v uint64) { x.b = appendPtr(x.b, v) }

// read fills p from a process's memory.
func (x *ntDecoding) read(p []byte, a uint64) error {
	if x.m == nil {
		return errNoMemory
	}
	n, err := x.m.Read(p, arch.GVA(x.d.cut(a)))
	if err == nil && n < len(p) {
		err = errShortRead
	}
	return err
}
