package syscalls

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/arch"
)

// fakeObjects resolves handles.
type fakeObjects map[uint64][2]string

func (f fakeObjects) Object(h uint64) (kind, name string, ok bool) {
	o, ok := f[h]
	return o[0], o[1], ok
}

// ntMemory is the memory of a process of a kernel of some width.
type ntMemory struct {
	fakeMemory
	w int
}

func (m ntMemory) word(v uint64) []byte {
	return binary.LittleEndian.AppendUint64(nil, v)[:m.w]
}

func (m ntMemory) wordsAt(a arch.GVA, v ...uint64) {
	for i, v := range v {
		m.put(a+arch.GVA(i*m.w), m.word(v))
	}
}

// unicode writes a UNICODE_STRING at a, and its text at text.
func (m ntMemory) unicode(a, text arch.GVA, s string) {
	u := utf16.Encode([]rune(s))
	m.put(a, pack(uint16(2*len(u)), uint16(2*len(u)+2)))
	m.put(a+arch.GVA(m.w), m.word(uint64(text)))
	m.put(text, pack(u))
}

// attributes writes an OBJECT_ATTRIBUTES at a.
func (m ntMemory) attributes(a arch.GVA, root, name uint64, flags uint32) {
	m.wordsAt(a, uint64(6*m.w), root, name)
	m.put(a+arch.GVA(3*m.w), pack(flags))
}

// ntLine is a whole call as a trace shows it; between runs what the kernel does.
func ntLine(d *NTDecoder, c *NTCall, m Memory, o Objects, between func()) string {
	args := d.Enter(nil, c, m, o)
	if between != nil {
		between()
	}
	d.Return(args, c, m, o)
	var b bytes.Buffer
	b.WriteString(c.Name + "(")
	for i, a := range args {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.Name + "=" + a.Text)
	}
	b.WriteString(") = " + d.Result(c).Text)
	return b.String()
}

const (
	atAttributes, atString, atText, atOut, atBlock = 0x10100, 0x10200, 0x10300, 0x10800, 0x10900
	atAbsent                                       = 0x7700000
)

func TestNTCalls(t *testing.T) {
	objects := fakeObjects{4: {"File", `\Device\HarddiskVolume2\a`}, 8: {"Key", `\REGISTRY\MACHINE`}, 12: {"Event", ""}}
	for _, w := range []int{4, 8} {
		m := ntMemory{fakeMemory{}, w}
		m.unicode(atString, atText, `\??\C:\wörk\x`)
		m.attributes(atAttributes, 0, atString, 0x40)
		m.attributes(atAttributes+0x40, 8, atString, 0x240)
		m.attributes(atAttributes+0x80, 0, atAbsent, 0)
		m.wordsAt(atOut, 0, 0x2000)
		m.put(atOut+0x20, pack(int64(-300000000)))
		m.put(atOut+0x28, pack(uint32(2)))
		m.wordsAt(atOut+0x30, 4, 12)
		m.put(atText+0x200, []byte("hello\x00world"))
		m.put(atBlock, make([]byte, 64))
		all := uint64(1)<<(8*w) - 1
		for _, c := range []struct {
			call    NTCall
			between func()
			want    string
		}{
			{NTCall{Name: "NtCreateFile", Args: []uint64{atOut, 0x120089, atAttributes, atBlock, 0, 0x80, 3, 1, 0x60, 0, 0}, Returned: true},
				func() { m.wordsAt(atOut, 4); m.wordsAt(atBlock, 0, 1) },
				`NtCreateFile(FileHandle=[0x4<File \Device\HarddiskVolume2\a>], DesiredAccess=FILE_GENERIC_READ, ObjectAttributes={ObjectName="\??\C:\wörk\x", Attributes=OBJ_CASE_INSENSITIVE}, ` +
					`IoStatusBlock={Status=STATUS_SUCCESS, Information=0x1}, AllocationSize=NULL, FileAttributes=FILE_ATTRIBUTE_NORMAL, ShareAccess=FILE_SHARE_READ|FILE_SHARE_WRITE, ` +
					`CreateDisposition=FILE_OPEN, CreateOptions=FILE_SYNCHRONOUS_IO_NONALERT|FILE_NON_DIRECTORY_FILE, EaBuffer=NULL, EaLength=0) = 0 (STATUS_SUCCESS)`},
			{NTCall{Name: "NtOpenFile", Args: []uint64{atOut, 0x100001, atAttributes + 0x40, atBlock, 7, 1}, Status: 0xc0000034, Returned: true}, nil,
				`NtOpenFile(FileHandle=0x10800, DesiredAccess=FILE_READ_DATA|SYNCHRONIZE, ObjectAttributes={RootDirectory=0x8<Key \REGISTRY\MACHINE>, ObjectName="\??\C:\wörk\x", ` +
					`Attributes=OBJ_CASE_INSENSITIVE|OBJ_KERNEL_HANDLE}, IoStatusBlock=0x10900, ShareAccess=FILE_SHARE_READ|FILE_SHARE_WRITE|FILE_SHARE_DELETE, OpenOptions=FILE_DIRECTORY_FILE) = 0xc0000034 (STATUS_OBJECT_NAME_NOT_FOUND)`},
			{NTCall{Name: "NtOpenKey", Args: []uint64{atOut, 0x80000019, atAttributes + 0x80}, Status: 0xc0000005, Returned: true}, nil,
				`NtOpenKey(KeyHandle=0x10800, DesiredAccess=KEY_QUERY_VALUE|KEY_ENUMERATE_SUB_KEYS|KEY_NOTIFY|GENERIC_READ, ObjectAttributes={ObjectName=0x7700000 /* page not present */}) = 0xc0000005 (STATUS_ACCESS_VIOLATION)`},
			{NTCall{Name: "NtClose", Args: []uint64{12}, Returned: true}, nil, `NtClose(Handle=0xc<Event>) = 0 (STATUS_SUCCESS)`},
			{NTCall{Name: "NtClose", Args: []uint64{0x1234}}, nil, `NtClose(Handle=0x1234) = ?`},
			{NTCall{Name: "NtAllocateVirtualMemory", Args: []uint64{all, atBlock + 16, 0, atBlock + 24, 0x3000, 0x104}, Returned: true},
				func() { m.wordsAt(atBlock+16, 0x500000); m.wordsAt(atBlock+24, 0x1000) },
				`NtAllocateVirtualMemory(ProcessHandle=NtCurrentProcess(), BaseAddress=[0] => [0x500000], ZeroBits=0, RegionSize=[0] => [0x1000], AllocationType=MEM_COMMIT|MEM_RESERVE, Protect=PAGE_READWRITE|PAGE_GUARD) = 0 (STATUS_SUCCESS)`},
			{NTCall{Name: "NtWaitForMultipleObjects", Args: []uint64{2, atOut + 0x30, 1, 1, atOut + 0x20}, Status: 0x102, Returned: true}, nil,
				`NtWaitForMultipleObjects(Count=2, Handles=[0x4<File \Device\HarddiskVolume2\a>, 0xc<Event>], WaitType=WaitAny, Alertable=TRUE, Timeout=[-300000000 /* 30s */]) = 0x102 (STATUS_TIMEOUT)`},
			{NTCall{Name: "NtWriteFile", Args: []uint64{4, 0, 0, 0, atAbsent, atText + 0x200, 11, 0, 0}, Status: 0x103, Returned: true}, nil,
				`NtWriteFile(FileHandle=0x4<File \Device\HarddiskVolume2\a>, Event=0, ApcRoutine=NULL, ApcContext=NULL, IoStatusBlock=0x7700000, Buffer="hello\0world", Length=11, ByteOffset=NULL, Key=NULL) = 0x103 (STATUS_PENDING)`},
			{NTCall{Name: "NtSetValueKey", Args: []uint64{8, atString, 0, 4, atOut + 0x28, 4}, Returned: true}, nil,
				`NtSetValueKey(KeyHandle=0x8<Key \REGISTRY\MACHINE>, ValueName="\??\C:\wörk\x", TitleIndex=0, Type=REG_DWORD, Data="\2\0\0\0", DataSize=4) = 0 (STATUS_SUCCESS)`},
			{NTCall{Name: "NtOpenProcess", Args: []uint64{atAbsent, 0x1fffff, atAbsent, atOut + 0x30}, Status: 0xc0001234, Returned: true}, nil,
				`NtOpenProcess(ProcessHandle=0x7700000, DesiredAccess=PROCESS_ALL_ACCESS, ObjectAttributes=0x7700000 /* page not present */, ClientId={UniqueProcess=4, UniqueThread=12}) = 0xc0001234`},
			{NTCall{Name: "NtDeviceIoControlFile", Args: []uint64{4, 0, 0, 0, 0, 0x70000, 0, 0, 0, 0}, Status: 0x80000005, Returned: true}, nil,
				`NtDeviceIoControlFile(FileHandle=0x4<File \Device\HarddiskVolume2\a>, Event=0, ApcRoutine=NULL, ApcContext=NULL, IoStatusBlock=NULL, IoControlCode=0x70000 /* device 0x7, function 0, METHOD_BUFFERED */, ` +
					`InputBuffer=NULL, InputBufferLength=0, OutputBuffer=NULL, OutputBufferLength=0) = 0x80000005 (STATUS_BUFFER_OVERFLOW)`},
			{NTCall{Name: "NtSecret", Args: []uint64{1, 0xffff}, Returned: true}, nil, `NtSecret(arg0=0x1, arg1=0xffff) = 0 (STATUS_SUCCESS)`},
		} {
			m.wordsAt(atBlock+16, 0, 0)
			if d := cmp.Diff(c.want, ntLine(NewNTDecoder(w, nil), &c.call, m, objects, c.between)); d != "" {
				t.Errorf("%d bytes (-want +got):\n%s", w, d)
			}
		}
	}
}

// A read shows what was read, and no more; a message its head; a new process what it is started with.
func TestNTStructures(t *testing.T) {
	for _, w := range []int{4, 8} {
		m := ntMemory{fakeMemory{}, w}
		m.wordsAt(atBlock, 0, 5)
		m.str(atText, "hello and what was there before")
		m.put(atOut, pack(uint16(8), uint16(48), uint16(0x1001), uint16(0)))
		m.put(atOut+8+arch.GVA(2*w), pack(uint32(77)))
		image, command := arch.GVA(0x38), arch.GVA(0x40)
		if w == 8 {
			image, command = 0x60, 0x70
		}
		m.unicode(0x20000+image, 0x20200, `C:\a.exe`)
		m.unicode(0x20000+command, 0x20300, "a.exe \"b\"\n\u202e\x00")
		for _, c := range []struct {
			call  NTCall
			index int
			want  string
		}{
			{NTCall{Name: "NtReadFile", Args: []uint64{4, 0, 0, 0, atBlock, atText, 400, 0, 0}, Returned: true}, 5, `"hello"`},
			{NTCall{Name: "NtReadFile", Args: []uint64{4, 0, 0, 0, atBlock, atText, 400, 0, 0}, Status: 0x103, Returned: true}, 5, `0x10300`},
			{NTCall{Name: "NtAlpcSendWaitReceivePort", Args: []uint64{4, 0, atOut, 0, 0, 0, 0, 0}}, 2, `{DataLength=8, TotalLength=48, Type=0x1001, MessageId=77}`},
			{NTCall{Name: "NtCreateUserProcess", Args: []uint64{0, 0, 0, 0, 0, 0, 0, 0, 0x20000, 0, 0}}, 8,
				`{ImagePathName="C:\a.exe", CommandLine="a.exe \u0022b\u0022\u000a\u202e\u0000"}`},
			{NTCall{Name: "NtReplyWaitReceivePort", Args: []uint64{4, 0, atAbsent, atOut}, Returned: true}, 3, `{DataLength=8, TotalLength=48, Type=0x1001, MessageId=77}`},
			{NTCall{Name: "NtTerminateProcess", Args: []uint64{4, 0xc0000005}}, 1, `0xc0000005 (STATUS_ACCESS_VIOLATION)`},
		} {
			d := NewNTDecoder(w, nil)
			args := d.Enter(nil, &c.call, m, nil)
			d.Return(args, &c.call, m, nil)
			if got := args[c.index].Text; got != c.want {
				t.Errorf("%d bytes: %s: %s, want %s", w, c.call.Name, got, c.want)
			}
		}
	}
}

// What was not there at the entry is shown when it is at the return.
func TestNTLatePage(t *testing.T) {
	m := ntMemory{fakeMemory{}, 8}
	d := NewNTDecoder(8, nil)
	c := &NTCall{Name: "NtDeleteFile", Args: []uint64{atAttributes}}
	args := d.Enter(nil, c, m, nil)
	if args[0].Err == nil || args[0].Text != "0x10100 /* page not present */" {
		t.Fatalf("%+v", args[0])
	}
	m.unicode(atString, atText, "x")
	m.attributes(atAttributes, 0, atString, 0)
	c.Returned = true
	d.Return(args, c, m, nil)
	if args[0].Err != nil || args[0].Text != `{ObjectName="x"}` {
		t.Errorf("%+v", args[0])
	}
}

// Limits bound what is shown of long strings and arrays.
func TestNTLimits(t *testing.T) {
	m := ntMemory{fakeMemory{}, 8}
	m.unicode(atString, 0x30000, strings.Repeat("y", 30000))
	m.attributes(atAttributes, 0, atString, 0)
	for i := range 200 {
		m.wordsAt(arch.GVA(0x50000+8*i), uint64(4*i))
	}
	d := NewNTDecoder(8, &Options{Paths: 7, Elements: 2})
	args := d.Enter(nil, &NTCall{Name: "NtDeleteFile", Args: []uint64{atAttributes}}, m, nil)
	if want := `{ObjectName="yyy"...}`; args[0].Text != want {
		t.Errorf("%s, want %s", args[0].Text, want)
	}
	args = d.Enter(nil, &NTCall{Name: "NtWaitForMultipleObjects", Args: []uint64{0xffffffff, 0x50000, 0, 0, 0}}, m, nil)
	if want := "[0, 0x4, ...]"; args[1].Text != want {
		t.Errorf("%s, want %s", args[1].Text, want)
	}
	args = NewNTDecoder(8, nil).Enter(nil, &NTCall{Name: "NtDeleteFile", Args: []uint64{atAttributes}}, m, nil)
	if len(args[0].Text) > 2100 {
		t.Errorf("%d bytes of text", len(args[0].Text))
	}
}

func TestNTTimes(t *testing.T) {
	for v, want := range map[int64]string{
		-10000: "[-10000 /* 1ms */]", -1 << 63: "[-9223372036854775808 /* for ever */]", 0: "[0]",
		132539328000000000: "[132539328000000000 /* 2021-01-01T00:00:00Z */]", -1 << 62: "[-4611686018427387904]", 7: "[7]",
	} {
		m := fakeMemory{}
		m.put(atOut, pack(v))
		args := NewNTDecoder(8, nil).Enter(nil, &NTCall{Name: "NtDelayExecution", Args: []uint64{0, atOut}}, m, nil)
		if args[1].Text != want {
			t.Errorf("%s, want %s", args[1].Text, want)
		}
	}
}

func TestNTReturns(t *testing.T) {
	for _, c := range []struct {
		name string
		arg  uint64
		want bool
	}{
		{"NtTerminateProcess", 0xffffffff, false}, {"NtTerminateProcess", ^uint64(0), false}, {"NtTerminateProcess", 0, true},
		{"NtTerminateProcess", 0x40, true}, {"NtTerminateThread", 0, false}, {"NtContinue", 0x1000, false}, {"NtClose", 0, true},
	} {
		if got := NTReturns(&NTCall{Name: c.name, Args: []uint64{c.arg}}); got != c.want {
			t.Errorf("%s(%#x) returns: %v", c.name, c.arg, got)
		}
	}
}

// The table is whole: each signature can be read, refers to what it has, and
// names families and types that exist.
func TestNTSignatures(t *testing.T) {
	calls := ntCalls()
	if lines := strings.Count(ntSignatures, "\nNt"); len(calls) != lines || lines < 150 {
		t.Errorf("%d calls of %d lines", len(calls), lines)
	}
	for name, c := range calls {
		if len(c.params) > ntMaxArgs {
			t.Errorf("%s has %d arguments", name, len(c.params))
		}
		for _, p := range c.params {
			switch {
			case p.ref >= len(c.params) || (p.kind == ntBuffer || p.kind == ntHandles) && p.ref < 0:
				t.Errorf("%s: %s refers to argument %d", name, p.name, p.ref)
			case (p.kind == ntConst || p.kind == ntConstPtr) && ntFamilies[p.fam] == nil:
				t.Errorf("%s: %s is of no family %q", name, p.name, p.fam)
			case p.kind == ntAccess && p.fam != "" && ntRights[p.fam] == nil:
				t.Errorf("%s: %s has rights to no %q", name, p.name, p.fam)
			case p.dir != ntIn && !pointsToMemory(p.kind):
				t.Errorf("%s: %s comes out of no pointer", name, p.name)
			case ntTypes[p.kind] == "":
				t.Errorf("%s: %s has no type", name, p.name)
			}
		}
	}
	if n, ok := NTArgs("NtCreateFile"); n != 11 || !ok || len(NTNames()) != len(calls) {
		t.Errorf("NtCreateFile takes %d arguments, %v", n, ok)
	}
	if _, ok := NTArgs("NtNoSuchCall"); ok {
		t.Error("a call that there is not")
	}
	for name, f := range ntFamilies {
		for i, c := range f.names {
			if c.value&(c.value-1) != 0 || i > 0 && c.value <= f.names[i-1].value {
				t.Errorf("%s: %s is out of order, or no single bit", name, c.name)
			}
		}
	}
}

func TestNTAccess(t *testing.T) {
	for _, c := range []struct {
		kind string
		mask uint32
		want string
	}{
		{"File", 0x1f01ff, "FILE_ALL_ACCESS"}, {"File", 0x120089, "FILE_GENERIC_READ"}, {"File", 0x89, "FILE_READ_DATA|FILE_READ_EA|FILE_READ_ATTRIBUTES"},
		{"Key", 0x2020019, "KEY_QUERY_VALUE|KEY_ENUMERATE_SUB_KEYS|KEY_NOTIFY|READ_CONTROL|MAXIMUM_ALLOWED"}, {"", 0, "0"}, {"Nothing", 0x10007, "DELETE|0x7"},
		{"Process", 0x1400, "PROCESS_QUERY_INFORMATION|PROCESS_QUERY_LIMITED_INFORMATION"}, {"Token", 0x8, "TOKEN_QUERY"},
	} {
		if got := NTAccess(c.kind, c.mask); got != c.want {
			t.Errorf("%s %#x: %s, want %s", c.kind, c.mask, got, c.want)
		}
	}
}

// FuzzNTDecode shows any call with any arguments over any memory.
func FuzzNTDecode(f *testing.F) {
	m := ntMemory{fakeMemory{}, 8}
	m.unicode(atString, atText, `\??\C:\x`)
	m.attributes(atAttributes, 4, atString, 0x40)
	page := m.fakeMemory[0x10000]
	f.Add("NtCreateFile", true, uint32(0), pack([]uint64{atOut, 0x120089, atAttributes, atBlock, 0, 0x80, 3, 1, 0x60, 0, 0}), page)
	f.Add("NtReadFile", false, uint32(0), pack([]uint64{4, 0, 0, 0, atBlock, atText, 1 << 31, 0, 0}), page)
	f.Add("NtWaitForMultipleObjects", true, uint32(0x80), pack([]uint64{1 << 31, atText, 0, 0, atOut}), page)
	f.Add("NtCreateUserProcess", true, uint32(0xc0000022), pack([]uint64{0, 0, 0, 0, 0, 0, 0, 0, 0x10000, 0, 0}), page)
	f.Fuzz(func(t *testing.T, name string, x64 bool, status uint32, args, memory []byte) {
		size := 4
		if x64 {
			size = 8
		}
		m := fakeMemory{}
		m.put(0x10000, memory[:min(len(memory), 2*arch.PageSize)])
		c := &NTCall{Name: name, Status: status, Returned: true}
		for ; len(args) >= 8 && len(c.Args) < 2*ntMaxArgs; args = args[8:] {
			c.Args = append(c.Args, binary.LittleEndian.Uint64(args))
		}
		d := NewNTDecoder(size, nil)
		out := d.Enter(nil, c, m, fakeObjects{4: {"File", "a\x00\xff"}})
		d.Return(out, c, m, nil)
		if len(out) > len(c.Args) || len(out) > ntMaxArgs {
			t.Fatalf("%d arguments of %d", len(out), len(c.Args))
		}
		for _, a := range out {
			if len(a.Text) > textLimit || !utf8.ValidString(a.Text) || strings.ContainsFunc(a.Text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%s: %d bytes: %.100q", a.Name, len(a.Text), a.Text)
			}
			if a.Err != nil && !strings.Contains(a.Text, "/*") {
				t.Errorf("%s failed with %v and shows %q", a.Name, a.Err, a.Text)
			}
		}
		if r := d.Result(c); (r.Errno != "") != (status >= 0x80000000) {
			t.Errorf("status %#x: %+v", status, r)
		}
	})
}
