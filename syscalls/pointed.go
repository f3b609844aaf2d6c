package syscalls

import (
	"slices"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Pointed is memory that an argument of a call points to and that a Decoder
// shows: what has to be copied when the call is made, or when it returns, for
// whoever decodes later.
type Pointed struct {
	Arg    int  // the argument
	String bool // up to a NUL
	Size   int  // bytes at most
	// Strings is a list of pointers to strings that ends with NULL; Pointers is
	// such a list of which only the number counts. Decoders read both through
	// Vectors.
	Strings, Pointers bool
	// Via, when not 0, is the position plus 1 of an earlier Pointed, in which the
	// pointer is at Offset.
	Via, Offset int
	// Length is where the number of bytes is: an argument's number plus 1, or one
	// of the Length constants; 0 where Size is all there is to say.
	Length int
	Unit   int  // bytes for each one that Length counts; 0 is 1
	Out    bool // written by the kernel: to be copied at the return
}

// Values of Pointed.Length.
const (
	LengthResult     = -1 // the call's result
	LengthNext       = -2 // with Via: the number behind the pointer, of 32 bits
	LengthNextResult = -3 // the lesser of the two
)

// Bounds on what is worth copying.
const (
	pointedPath   = 256
	pointedString = 64
	pointedName   = 112 // a socket's address: struct sockaddr_un has 110
	pointedOption = 16
	pointedArray  = 128
	pointedVector = 320
	pointedFDSet  = 32
	pointedIovecs = 3 // buffers of a list
)

// fixedSizes are the bytes of structures in 64-bit programs.
var fixedSizes = map[kindID]int{
	kindTimespec: 16, kindTimeval: 16, kindItimerspec: 32, kindItimerval: 32, kindTimespecs: 32, kindTimevals: 32,
	kindRlimit: 16, kindRlimit64: 16, kindSigset: 8, kindEpollEvent: 12, kindOpenHow: 24, kindCloneArgs: 88,
	kindSigaction: 32, kindOffset: 8,
	kindOutTimespec: 16, kindOutTimeval: 16, kindOutItimerspec: 32, kindOutItimerval: 32, kindOutRlimit: 16,
	kindOutRlimit64: 16, kindOutSigset: 8, kindOutStat: 144, kindOutStatx: 256, kindOutInts: 8, kindOutInt: 4,
	kindOutWait: 4, kindOutSigaction: 32, kindOutUname: 195, kindFDSet: pointedFDSet, kindOutOption: pointedOption,
	kindOutSockaddr: 64,
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
		if k.id == kindEnvp { // first: it is small, and argv takes all there is
			out = append(out, Pointed{Arg: i, Pointers: true, Size: 4})
		}
	}
	for i, k := range e.kinds {
		p := pointedBy(i, k)
		if p.Size == 0 {
			continue
		}
		out = append(out, p)
		if t.arch == arch.AMD64 {
			out = append(out, nested(k.id, len(out))...)
		}
	}
	return slices.Clip(out)
}

// pointedBy returns what argument i, which is of kind k, points to.
func pointedBy(i int, k kind) Pointed {
	p := Pointed{Arg: i, Out: k.id.out(), Size: fixedSizes[k.id]}
	switch k.id {
	case kindPath:
		p.String, p.Size = true, pointedPath
	case kindString:
		p.String, p.Size = true, pointedString
	case kindArgv:
		p.Strings, p.Size = true, pointedVector
	case kindBuf:
		p.Size, p.Length = pointedString, int(k.ref)+1
	case kindSockaddr:
		p.Size, p.Length = pointedName, int(k.ref)+1
	case kindOption:
		p.Size, p.Length = pointedOption, int(k.ref)+1
	case kindOutBuf, kindOutStr:
		p.Size, p.Length = pointedString, LengthResult
	case kindPollfds:
		p.Size, p.Length, p.Unit = pointedArray, int(k.ref)+1, 8
	case kindOutEvents:
		p.Size, p.Length, p.Unit = pointedArray/12*12, LengthResult, 12
	case kindIovec, kindOutIovec:
		p.Size, p.Length, p.Unit = pointedArray, int(k.ref)+1, 16
	case kindMsghdr, kindOutMsghdr:
		p.Size = 56
	}
	return p
}

// nested returns what is behind the pointers in what is at position at-1, of
// 64-bit programs.
func nested(k kindID, at int) []Pointed {
	length, out := LengthNext, k.out()
	if out {
		length = LengthNextResult
	}
	var list []Pointed
	switch k {
	case kindIovec, kindOutIovec:
		for i := range pointedIovecs {
			list = append(list, Pointed{Via: at, Offset: 16 * i, Length: length, Size: pointedString, Out: out})
		}
	case kindMsghdr, kindOutMsghdr:
		list = []Pointed{
			{Via: at, Length: LengthNext, Size: pointedName, Out: out},
			{Via: at, Offset: 16, Length: LengthNext, Unit: 16, Size: 2 * 16, Out: out},
			{Via: at + 2, Length: length, Size: pointedString, Out: out},
		}
	}
	return list
}
