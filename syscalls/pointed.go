package syscalls

// Pointed is memory that an argument of a call points to and that a Decoder
// shows: what has to be copied when the call is made, or when it returns, for
// whoever decodes later.
type Pointed struct {
	Arg    int  // the argument
	String bool // up to a NUL
	Size   int  // bytes at most
	// Length is where the number of bytes is: LengthResult, or an argument's
	// number plus 1; 0 where Size is all there is to say.
	Length int
	Out    bool // written by the kernel: to be copied at the return
}

// LengthResult says that a call's result is the number of bytes.
const LengthResult = -1

// Bounds on what is worth copying.
const (
	pointedPath   = 256
	pointedString = 64
	pointedName   = 128 // a socket's address
)

// fixedSizes are the bytes of structures in 64-bit programs.
var fixedSizes = map[kindID]int{
	kindTimespec: 16, kindTimeval: 16, kindItimerspec: 32, kindItimerval: 32, kindTimespecs: 32, kindTimevals: 32,
	kindRlimit: 16, kindRlimit64: 16, kindSigset: 8, kindEpollEvent: 12, kindOpenHow: 24, kindCloneArgs: 88,
	kindSigaction: 32, kindOffset: 8,
	kindOutTimespec: 16, kindOutTimeval: 16, kindOutItimerspec: 32, kindOutItimerval: 32, kindOutRlimit: 16,
	kindOutRlimit64: 16, kindOutSigset: 8, kindOutStat: 144, kindOutStatx: 256, kindOutInts: 8, kindOutInt: 4,
	kindOutWait: 4, kindOutSigaction: 32,
}

// Pointed returns the memory that the call of that name takes and gives, as
// far as it can be said without looking at it: not what it is reached through
// other pointers, as argv is.
func (t *Table) Pointed(name string) []Pointed {
	e := t.byName[name]
	if e == nil {
		return nil
	}
	var out []Pointed
	for i, k := range e.kinds {
		p := Pointed{Arg: i, Out: k.id.out(), Size: fixedSizes[k.id]}
		switch k.id {
		case kindPath:
			p.String, p.Size = true, pointedPath
		case kindString:
			p.String, p.Size = true, pointedString
		case kindBuf:
			p.Size, p.Length = pointedString, int(k.ref)+1
		case kindSockaddr:
			p.Size, p.Length = pointedName, int(k.ref)+1
		case kindOutBuf, kindOutStr:
			p.Size, p.Length = pointedString, LengthResult
		}
		if p.Size > 0 {
			out = append(out, p)
		}
	}
	return out
}
