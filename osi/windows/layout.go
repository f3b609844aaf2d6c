package windows

import (
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
)

// member is where a member lies; a missing one has ok unset.
type member struct {
	off arch.GVA
	ok  bool
}

// layout is where the kernel keeps what the provider reads. All members but
// the required ones may be missing.
type layout struct {
	process struct {
		pid, links, name, parent, peb, created, exited, objects, token, threads, active, vads, audit, base, wow64 member
		table, exitStatus                                                                                         member
		size                                                                                                      int
	}
	thread struct {
		pid, tid, link, process, created, state, wait, teb, processor, start, exited, exitStatus member
		size                                                                                     int
	}
	loader struct{ base, size, full, short member }
	peb    struct{ loader, params, heap member }
	params struct{ image, command, cwd member }
	handle struct {
		code, count, limit member
		object, bits       member
		width              uint64 // of bits
		entry              arch.GVA
	}
	header  struct{ body, kind, index, info, nameOffset member }
	kind    struct{ name member }
	names   struct{ name, directory member }
	token   struct{ users, session member }
	vad     vadLayout
	area    struct{ file, viaSubsection member }
	file    struct{ name, device, related, pos member }
	key     struct{ block, parent, names, length, text member }
	inWow64 member
}

// find resolves members, and remembers what is required and missing.
type finder struct {
	types *kernel.Types
	errs  []error
}

func (f *finder) get(structName string, paths ...string) member {
	for _, p := range paths {
		if at, err := f.types.Field(structName, p); err == nil {
			return member{arch.GVA(at.Offset), true}
		}
	}
	return member{}
}

func (f *finder) need(structName string, paths ...string) member {
	m := f.get(structName, paths...)
	if !m.ok {
		f.errs = append(f.errs, fmt.Errorf("no member %s.%s", structName, paths[0]))
	}
	return m
}

func newLayout(k *kernel.Kernel) (*layout, error) {
	f := &finder{types: k.Types()}
	l := &layout{}
	l.findProcess(f)
	l.findThread(f)
	l.findUser(f)
	l.findObjects(f, k)
	l.vad = findVAD(f, k)
	if err := errors.Join(f.errs...); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *layout) findProcess(f *finder) {
	p := &l.process
	p.pid = f.need("_EPROCESS", "UniqueProcessId")
	p.links = f.need("_EPROCESS", "ActiveProcessLinks")
	p.name = f.need("_EPROCESS", "ImageFileName")
	p.table = f.need("_KPROCESS", "DirectoryTableBase")
	p.parent = f.get("_EPROCESS", "InheritedFromUniqueProcessId")
	p.peb = f.get("_EPROCESS", "Peb")
	p.created = f.get("_EPROCESS", "CreateTime")
	p.exited = f.get("_EPROCESS", "ExitTime")
	p.exitStatus = f.get("_EPROCESS", "ExitStatus")
	p.objects = f.get("_EPROCESS", "ObjectTable")
	p.token = f.get("_EPROCESS", "Token")
	p.threads = f.get("_EPROCESS", "ThreadListHead")
	p.active = f.get("_EPROCESS", "ActiveThreads")
	p.vads = f.get("_EPROCESS", "VadRoot")
	p.audit = f.get("_EPROCESS", "SeAuditProcessCreationInfo")
	p.base = f.get("_EPROCESS", "SectionBaseAddress")
	p.wow64 = f.get("_EPROCESS", "WoW64Process", "Wow64Process") // renamed in 10 1511
	p.size = 0x400
	for _, m := range []member{p.pid, p.links, p.name, p.table, p.parent, p.peb, p.created, p.exited, p.exitStatus, p.objects, p.token, p.threads, p.active, p.audit, p.base, p.wow64} {
		if m.ok {
			p.size = max(p.size, int(m.off)+16)
		}
	}
}

func (l *layout) findThread(f *finder) {
	t := &l.thread
	t.pid = f.get("_ETHREAD", "Cid.UniqueProcess")
	t.tid = f.get("_ETHREAD", "Cid.UniqueThread")
	t.link = f.get("_ETHREAD", "ThreadListEntry")
	// Until 2003 a member of ETHREAD's own; since Vista KTHREAD.Process.
	if t.process = f.get("_ETHREAD", "ThreadsProcess"); !t.process.ok {
		t.process = f.get("_KTHREAD", "Process")
	}
	t.created = f.get("_ETHREAD", "CreateTime")
	t.start = f.get("_ETHREAD", "Win32StartAddress")
	t.exited = f.get("_ETHREAD", "ExitTime")
	t.exitStatus = f.get("_ETHREAD", "ExitStatus")
	t.state = f.get("_KTHREAD", "State")
	t.wait = f.get("_KTHREAD", "WaitReason")
	t.teb = f.get("_KTHREAD", "Teb")
	t.processor = f.get("_KTHREAD", "NextProcessor")
	t.size = 0x200
	for _, m := range []member{t.pid, t.tid, t.link, t.process, t.created, t.state, t.wait, t.teb, t.processor, t.exited, t.exitStatus} {
		if m.ok {
			t.size = max(t.size, int(m.off)+16)
		}
	}
}

func (l *layout) findUser(f *finder) {
	l.loader.base = f.get("_LDR_DATA_TABLE_ENTRY", "DllBase")
	l.loader.size = f.get("_LDR_DATA_TABLE_ENTRY", "SizeOfImage")
	l.loader.full = f.get("_LDR_DATA_TABLE_ENTRY", "FullDllName")
	l.loader.short = f.get("_LDR_DATA_TABLE_ENTRY", "BaseDllName")
	l.peb.loader = f.get("_PEB", "Ldr")
	l.peb.params = f.get("_PEB", "ProcessParameters")
	l.peb.heap = f.get("_PEB", "ProcessHeap")
	l.params.image = f.get("_RTL_USER_PROCESS_PARAMETERS", "ImagePathName")
	l.params.command = f.get("_RTL_USER_PROCESS_PARAMETERS", "CommandLine")
	l.params.cwd = f.get("_RTL_USER_PROCESS_PARAMETERS", "CurrentDirectory.DosPath", "CurrentDirectory")
	l.token.users = f.get("_TOKEN", "UserAndGroups")
	l.token.session = f.get("_TOKEN", "SessionId")
}

func (l *layout) findObjects(f *finder, k *kernel.Kernel) {
	w := arch.GVA(k.PointerSize())
	l.handle.code = f.get("_HANDLE_TABLE", "TableCode")
	l.handle.count = f.get("_HANDLE_TABLE", "HandleCount") // until 7; since 8 each free list has its own
	l.handle.limit = f.get("_HANDLE_TABLE", "NextHandleNeedingPool")
	l.handle.object = f.get("_HANDLE_TABLE_ENTRY", "Object")
	if bits, err := k.Types().Field("_HANDLE_TABLE_ENTRY", "ObjectPointerBits"); err == nil { // since 8
		l.handle.bits, l.handle.width = member{arch.GVA(bits.Offset), true}, uint64(bits.BitSize)
	}
	l.handle.entry = 2 * w
	if n, err := k.Types().Size("_HANDLE_TABLE_ENTRY"); err == nil {
		l.handle.entry = arch.GVA(n)
	}
	l.header.body = f.get("_OBJECT_HEADER", "Body")
	l.header.kind = f.get("_OBJECT_HEADER", "Type") // until Vista
	l.header.index = f.get("_OBJECT_HEADER", "TypeIndex")
	l.header.info = f.get("_OBJECT_HEADER", "InfoMask")
	l.header.nameOffset = f.get("_OBJECT_HEADER", "NameInfoOffset") // until Vista
	l.kind.name = f.get("_OBJECT_TYPE", "Name")
	l.names.name = f.get("_OBJECT_HEADER_NAME_INFO", "Name")
	l.names.directory = f.get("_OBJECT_HEADER_NAME_INFO", "Directory")
	l.area.file = f.get("_CONTROL_AREA", "FilePointer")
	l.area.viaSubsection = f.get("_SUBSECTION", "ControlArea")
	l.file.name = f.get("_FILE_OBJECT", "FileName")
	l.file.device = f.get("_FILE_OBJECT", "DeviceObject")
	l.file.related = f.get("_FILE_OBJECT", "RelatedFileObject")
	l.file.pos = f.get("_FILE_OBJECT", "CurrentByteOffset")
	l.key.block = f.get("_CM_KEY_BODY", "KeyControlBlock")
	l.key.parent = f.get("_CM_KEY_CONTROL_BLOCK", "ParentKcb")
	l.key.names = f.get("_CM_KEY_CONTROL_BLOCK", "NameBlock")
	l.key.length = f.get("_CM_NAME_CONTROL_BLOCK", "NameLength")
	l.key.text = f.get("_CM_NAME_CONTROL_BLOCK", "Name")
	l.inWow64 = f.get("_EWOW64PROCESS", "Peb")
}
