package syscalls

import (
	"encoding/binary"
	"strconv"
	"time"
	"unicode/utf16"
)

// ntKind is how an argument of an NT call is shown.
type ntKind uint8

const (
	ntHex     ntKind = iota // a number of the kernel's width, hexadecimal
	ntPointer               // the same, NULL when 0
	ntHex32                 // 32 bits, hexadecimal
	ntUint                  // 32 bits, decimal
	ntInt                   // 32 bits, signed
	ntBool                  // BOOLEAN: 8 bits
	ntHandle
	ntAccess // ACCESS_MASK
	ntConst  // constants of a family
	ntCode   // NTSTATUS
	ntIOCtl  // I/O control code

	// From here on arguments are pointers, and what is behind is shown.
	ntHandlePtr
	ntWordPtr // of the kernel's width
	ntUintPtr
	ntConstPtr
	ntLarge // LARGE_INTEGER
	ntTime  // LARGE_INTEGER that is a time to wait
	ntAttributes
	ntString // UNICODE_STRING
	ntClientID
	ntStatusBlock
	ntBuffer     // bytes; ref: length
	ntReadBuffer // bytes, as many as the IO_STATUS_BLOCK among the arguments says
	ntHandles    // an array; ref: count
	ntPortMessage
	ntParameters // RTL_USER_PROCESS_PARAMETERS
)

// ntKinds are the words for kinds in ntSignatures.
var ntKinds = map[string]ntKind{
	"n": ntHex, "p": ntPointer, "x": ntHex32, "u": ntUint, "i": ntInt, "b": ntBool, "h": ntHandle, "access": ntAccess, "c": ntConst,
	"status": ntCode, "ioctl": ntIOCtl, "ph": ntHandlePtr, "pw": ntWordPtr, "pu": ntUintPtr, "pc": ntConstPtr, "li": ntLarge,
	"time": ntTime, "oa": ntAttributes, "us": ntString, "cid": ntClientID, "iosb": ntStatusBlock, "buf": ntBuffer, "rbuf": ntReadBuffer,
	"hs": ntHandles, "msg": ntPortMessage, "params": ntParameters,
}

// ntTypes are the types in C.
var ntTypes = map[ntKind]string{
	ntHex: "ULONG_PTR", ntPointer: "PVOID", ntHex32: "ULONG", ntUint: "ULONG", ntInt: "LONG", ntBool: "BOOLEAN", ntHandle: "HANDLE",
	ntAccess: "ACCESS_MASK", ntConst: "ULONG", ntCode: "NTSTATUS", ntIOCtl: "ULONG", ntHandlePtr: "PHANDLE", ntWordPtr: "PULONG_PTR",
	ntUintPtr: "PULONG", ntConstPtr: "PULONG", ntLarge: "PLARGE_INTEGER", ntTime: "PLARGE_INTEGER", ntAttributes: "POBJECT_ATTRIBUTES",
	ntString: "PUNICODE_STRING", ntClientID: "PCLIENT_ID", ntStatusBlock: "PIO_STATUS_BLOCK", ntBuffer: "PVOID", ntReadBuffer: "PVOID",
	ntHandles: "PHANDLE", ntPortMessage: "PPORT_MESSAGE", ntParameters: "PRTL_USER_PROCESS_PARAMETERS",
}

func pointsToMemory(k ntKind) bool { return k >= ntHandlePtr }

// show appends an argument in words. What can't be read is shown raw with the
// reason, which is returned.
func (x *ntDecoding) show(p *ntParam, v uint64) error {
	if !pointsToMemory(p.kind) {
		x.number(p, v)
		return nil
	}
	if v == 0 {
		x.text("NULL")
		return nil
	}
	start := len(x.b)
	if err := x.pointed(p, v); err != nil {
		x.b = appendUnreadable(x.b[:start], v, err)
		return err
	}
	return nil
}

// number appends what is in the argument itself.
func (x *ntDecoding) number(p *ntParam, v uint64) {
	switch p.kind {
	case ntPointer:
		x.pointer(v)
	case ntHex32:
		x.b = appendHex(x.b, uint64(uint32(v)))
	case ntUint:
		x.b = strconv.AppendUint(x.b, uint64(uint32(v)), 10)
	case ntInt:
		x.b = strconv.AppendInt(x.b, int64(int32(v)), 10)
	case ntBool:
		x.text(map[bool]string{true: "TRUE", false: "FALSE"}[uint8(v) != 0])
	case ntHandle:
		x.handle(v)
	case ntAccess:
		x.text(NTAccess(p.fam, uint32(v)))
	case ntConst:
		x.text(ntFamily(p.fam, uint32(v)))
	case ntCode:
		x.b = appendHex(x.b, uint64(uint32(v)))
		if name := NTStatus(uint32(v)); name != "" && v != 0 {
			x.text(" (" + name + ")")
		}
	case ntIOCtl:
		x.ioctl(uint32(v))
	default:
		x.b = appendHex(x.b, v)
	}
}

// ioctl takes a control code apart as CTL_CODE puts it together (ntddk.h).
func (x *ntDecoding) ioctl(v uint32) {
	x.b = appendHex(x.b, uint64(v))
	method := [4]string{"METHOD_BUFFERED", "METHOD_IN_DIRECT", "METHOD_OUT_DIRECT", "METHOD_NEITHER"}[v&3]
	x.text(" /* device ")
	x.b = appendHex(x.b, uint64(v>>16))
	x.text(", function ")
	x.b = appendHex(x.b, uint64(v>>2&0xfff))
	x.text(", " + method + " */")
}

// Handles that stand for objects without being in a table.
var ntPseudoHandles = map[int64]string{-1: "NtCurrentProcess()", -2: "NtCurrentThread()",
	-4: "NtCurrentProcessToken()", -5: "NtCurrentThreadToken()", -6: "NtCurrentThreadEffectiveToken()"}

// handle appends a handle and, where it is known, what it leads to.
func (x *ntDecoding) handle(v uint64) {
	signed := int64(v)
	if x.d.word == 4 {
		signed = int64(int32(v))
	}
	if name, ok := ntPseudoHandles[signed]; ok {
		x.text(name)
		return
	}
	x.b = appendHex(x.b, v)
	if x.o == nil || v == 0 {
		return
	}
	kind, name, ok := x.o.Object(v)
	if !ok {
		return
	}
	x.text("<")
	x.wide(kind, '>')
	if name != "" {
		x.text(" ")
		x.wide(name[:min(len(name), scratchSize)], '>')
	}
	x.text(">")
}

// pointed appends what an argument points to.
func (x *ntDecoding) pointed(p *ntParam, v uint64) error {
	switch p.kind {
	case ntAttributes:
		return x.attributes(v)
	case ntString:
		return x.quoted(v)
	case ntClientID:
		return x.clientID(v)
	case ntStatusBlock:
		return x.statusBlock(v)
	case ntBuffer:
		return x.buffer(v, uint64(uint32(x.arg(p.ref))))
	case ntReadBuffer:
		return x.readBuffer(v)
	case ntHandles:
		return x.handles(v, uint64(uint32(x.arg(p.ref))))
	case ntPortMessage:
		return x.portMessage(v)
	case ntParameters:
		return x.parameters(v)
	case ntTime:
		return x.time(v)
	}
	return x.cell(p, v)
}

// cell appends a single number in brackets.
func (x *ntDecoding) cell(p *ntParam, v uint64) error {
	size := map[ntKind]int{ntHandlePtr: x.d.word, ntWordPtr: x.d.word, ntLarge: 8}[p.kind]
	if size == 0 {
		size = 4
	}
	n, err := x.uint(v, size)
	if err != nil {
		return err
	}
	x.text("[")
	switch p.kind {
	case ntHandlePtr:
		x.handle(n)
	case ntUintPtr:
		x.b = strconv.AppendUint(x.b, n, 10)
	case ntConstPtr:
		x.text(ntFamily(p.fam, uint32(n)))
	case ntLarge:
		x.b = strconv.AppendInt(x.b, int64(n), 10)
	default:
		x.b = appendHex(x.b, n)
	}
	x.text("]")
	return nil
}

// arg returns another argument, 0 when there is none.
func (x *ntDecoding) arg(i int) uint64 {
	if i < 0 || i >= len(x.c.Args) {
		return 0
	}
	return x.d.cut(x.c.Args[i])
}

// uint reads a number of size bytes.
func (x *ntDecoding) uint(a uint64, size int) (uint64, error) {
	var b [8]byte
	if err := x.read(b[:size], a); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// word reads the i-th word of the kernel's width at a.
func (x *ntDecoding) wordAt(a uint64, i int) (uint64, error) {
	return x.uint(a+uint64(i*x.d.word), x.d.word)
}

// attributes appends an OBJECT_ATTRIBUTES: Length, RootDirectory, ObjectName,
// Attributes and more, each in a word of its own.
func (x *ntDecoding) attributes(v uint64) error {
	var words [4]uint64
	for i := range words {
		var err error
		if words[i], err = x.wordAt(v, i); err != nil {
			return err
		}
	}
	x.text("{")
	if words[1] != 0 {
		x.text("RootDirectory=")
		x.handle(words[1])
		x.text(", ")
	}
	x.text("ObjectName=")
	if words[2] == 0 {
		x.text("NULL")
	} else {
		start := len(x.b)
		if err := x.quoted(words[2]); err != nil {
			x.b = appendUnreadable(x.b[:start], words[2], err)
			x.text("}")
			return nil // the rest is told
		}
	}
	if a := uint32(words[3]); a != 0 {
		x.text(", Attributes=" + ntFamily("obj", a))
	}
	x.text("}")
	return nil
}

// quoted appends a UNICODE_STRING.
func (x *ntDecoding) quoted(v uint64) error {
	length, err := x.uint(v, 2)
	if err != nil {
		return err
	}
	buffer, err := x.wordAt(v, 1)
	if err != nil {
		return err
	}
	length &^= 1
	shown := min(length, uint64(x.d.opts.Paths)&^1)
	b := make([]byte, shown)
	if shown > 0 {
		if err := x.read(b, buffer); err != nil {
			return err
		}
	}
	u := make([]uint16, shown/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	x.text(`"`)
	x.wide(string(utf16.Decode(u)), '"')
	x.text(`"`)
	if shown < length {
		x.text("...")
	}
	return nil
}

// wide appends text of the guest. Backslashes, of which paths are full, stand
// for themselves; what is not printable, and the closing character, is a \u
// escape.
func (x *ntDecoding) wide(s string, closing rune) {
	for _, r := range s {
		if r != closing && strconv.IsPrint(r) && r != '\uFFFD' {
			x.b = append(x.b, string(r)...)
			continue
		}
		x.text(`\u`)
		hex := strconv.FormatUint(uint64(r), 16)
		for range 4 - len(hex) {
			x.text("0")
		}
		x.text(hex)
	}
}

func (x *ntDecoding) clientID(v uint64) error {
	pid, err := x.wordAt(v, 0)
	if err != nil {
		return err
	}
	tid, err := x.wordAt(v, 1)
	if err != nil {
		return err
	}
	x.text("{UniqueProcess=" + strconv.FormatUint(pid, 10) + ", UniqueThread=" + strconv.FormatUint(tid, 10) + "}")
	return nil
}

func (x *ntDecoding) statusBlock(v uint64) error {
	status, err := x.uint(v, 4)
	if err != nil {
		return err
	}
	info, err := x.wordAt(v, 1)
	if err != nil {
		return err
	}
	x.text("{Status=")
	if name := NTStatus(uint32(status)); name != "" {
		x.text(name)
	} else {
		x.b = appendHex(x.b, status)
	}
	x.text(", Information=")
	x.b = appendHex(x.b, info)
	x.text("}")
	return nil
}

// buffer appends the first of n bytes.
func (x *ntDecoding) buffer(v, n uint64) error {
	b := make([]byte, min(n, uint64(x.d.opts.Strings)))
	if len(b) > 0 {
		if err := x.read(b, v); err != nil {
			return err
		}
	}
	x.b = appendBytes(x.b, b, uint64(len(b)) < n)
	return nil
}

// readBuffer appends what a call says that it has read.
func (x *ntDecoding) readBuffer(v uint64) error {
	params := x.d.signature(x.c).params
	for i := range params {
		if params[i].kind != ntStatusBlock {
			continue
		}
		n, err := x.wordAt(x.arg(i), 1)
		if err != nil {
			return err
		}
		return x.buffer(v, n)
	}
	x.pointer(v)
	return nil
}

func (x *ntDecoding) handles(v, n uint64) error {
	x.text("[")
	for i := range min(n, uint64(x.d.opts.Elements)) {
		h, err := x.wordAt(v, int(i))
		if err != nil {
			return err
		}
		if i > 0 {
			x.text(", ")
		}
		x.handle(h)
	}
	if n > uint64(x.d.opts.Elements) {
		x.text(", ...")
	}
	x.text("]")
	return nil
}

// portMessage appends the head of a PORT_MESSAGE: two lengths, a type, and
// behind the client's id the message's.
func (x *ntDecoding) portMessage(v uint64) error {
	var b [6]byte
	if err := x.read(b[:], v); err != nil {
		return err
	}
	id, err := x.uint(v+8+2*uint64(x.d.word), 4)
	if err != nil {
		return err
	}
	x.text("{DataLength=" + strconv.Itoa(int(int16(binary.LittleEndian.Uint16(b[0:])))))
	x.text(", TotalLength=" + strconv.Itoa(int(int16(binary.LittleEndian.Uint16(b[2:])))))
	x.text(", Type=")
	x.b = appendHex(x.b, uint64(binary.LittleEndian.Uint16(b[4:])))
	x.text(", MessageId=" + strconv.FormatUint(id, 10) + "}")
	return nil
}

// parameters appends what a new process is started with. The place of both
// strings has been the same in all builds.
func (x *ntDecoding) parameters(v uint64) error {
	image, command := uint64(0x38), uint64(0x40)
	if x.d.word == 8 {
		image, command = 0x60, 0x70
	}
	x.text("{ImagePathName=")
	if err := x.quoted(v + image); err != nil {
		return err
	}
	x.text(", CommandLine=")
	if err := x.quoted(v + command); err != nil {
		return err
	}
	x.text("}")
	return nil
}

// filetimeEpoch is how many units of 100 ns lie between 1601 and 1970.
const filetimeEpoch = 116444736000000000

// time appends a time to wait: negative from now on, in 100 ns, else until that
// time since 1601.
func (x *ntDecoding) time(v uint64) error {
	n, err := x.uint(v, 8)
	if err != nil {
		return err
	}
	t := int64(n)
	x.text("[" + strconv.FormatInt(t, 10))
	switch {
	case t == -1<<63:
		x.text(" /* for ever */")
	case t < 0 && t > -1<<56:
		x.text(" /* " + (time.Duration(-t) * 100).String() + " */")
	case t > filetimeEpoch && t < 3*filetimeEpoch:
		since := t - filetimeEpoch
		x.text(" /* " + time.Unix(since/1e7, since%1e7*100).UTC().Format(time.RFC3339) + " */")
	}
	x.text("]")
	return nil
}
