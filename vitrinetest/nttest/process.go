package nttest

import (
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/vitrinetest"
)

// Places in the user memory of every process that has one.
const (
	userPEB    = arch.GVA(0x7ffd8000)
	userPEB32  = arch.GVA(0x7efde000)
	userTEB    = arch.GVA(0x7ffde000)
	userLoader = arch.GVA(0x00240000) // loader data, parameters and their strings
	userSize   = 0x8000
)

func (g *Guest) makeProcess(p *Process) {
	size := uint64(0xc00)
	p.Task = g.object("Process", "", size)
	e := p.Task
	g.Kernel.PutUint(e, 3, 1) // DISPATCHER_HEADER.Type: a process
	p.Space = g.Kernel
	if p.Base != 0 {
		p.Space = g.NewSpace(g.Mode)
		p.Space.Share(g.Kernel)
		g.makeUser(p)
	}
	g.set(e, "_KPROCESS", "DirectoryTableBase", uint64(p.Space.Root()))
	g.set(e, "_EPROCESS", "UniqueProcessId", uint64(p.PID))
	g.set(e, "_EPROCESS", "InheritedFromUniqueProcessId", uint64(p.PPID))
	g.Kernel.PutString(e+g.At("_EPROCESS", "ImageFileName"), p.Name[:min(len(p.Name), 14)])
	g.Kernel.PutUint64(e+g.At("_EPROCESS", "CreateTime"), p.Created)
	if p.Exited {
		g.Kernel.PutUint64(e+g.At("_EPROCESS", "ExitTime"), p.Created+1)
	}
	g.set(e, "_EPROCESS", "SectionBaseAddress", uint64(p.Base))
	g.set(e, "_EPROCESS", "Token", uint64(g.token(p))|7)
	g.set(e, "_EPROCESS", "SeAuditProcessCreationInfo", uint64(g.auditName(p.Image)))
	g.set(e, "_EPROCESS", "ObjectTable", uint64(g.handleTable(p)))
	g.append(g.Kernel, g.ProcessHead, e+g.At("_EPROCESS", "ActiveProcessLinks"), g.w)
	if p.Base != 0 {
		g.set(e, "_EPROCESS", "Peb", uint64(p.PEB))
		g.makeWow64(p)
	}
	g.vads(p, e+g.At("_EPROCESS", "VadRoot"))
	g.makeThreads(p)
}

// auditName makes the OBJECT_NAME_INFORMATION of a path, its text behind it.
func (g *Guest) auditName(path string) arch.GVA {
	at := g.Pool(2*g.w + uint64(2*len(path)) + 2)
	if path != "" {
		unicode(g.Kernel, at, at+arch.GVA(2*g.w), path, g.w)
	}
	return at
}

func (g *Guest) token(p *Process) arch.GVA {
	at := g.object("Token", "", 0x4a0)
	g.Kernel.Put(at, []byte("User32  "))
	if p.PID == 4 {
		g.Kernel.Put(at, []byte("*SYSTEM*"))
	}
	groups, sid := g.Pool(0x20), g.Pool(0x40)
	user := p.SID
	if user == nil {
		user = []byte{1, 1, 0, 0, 0, 0, 0, 5, 18, 0, 0, 0} // S-1-5-18
	}
	g.Kernel.Put(sid, user)
	g.Word(groups, uint64(sid))
	g.set(at, "_TOKEN", "UserAndGroups", uint64(groups))
	g.Kernel.PutUint32(at+g.At("_TOKEN", "UserAndGroupCount"), 1)
	g.Kernel.PutUint32(at+g.At("_TOKEN", "SessionId"), p.Session)
	return at
}

func (g *Guest) makeThreads(p *Process) {
	head := p.Task + g.At("_EPROCESS", "ThreadListHead")
	g.emptyList(head)
	g.Kernel.PutUint32(p.Task+g.At("_EPROCESS", "ActiveThreads"), uint32(len(p.Threads)))
	for i := range p.Threads {
		t := &p.Threads[i]
		t.Task = g.thread(p.Task, p.PID, t.TID, t.State)
		g.Kernel.PutUint64(t.Task+g.At("_ETHREAD", "CreateTime"), p.Created+uint64(i))
		g.append(g.Kernel, head, t.Task+g.At("_ETHREAD", "ThreadListEntry"), g.w)
	}
	if g.idle == 0 {
		// The idle process is in no list; it and its thread lie in the image.
		idle := g.reserve(0xc00)
		g.Kernel.PutUint(idle, 3, 1)
		g.Kernel.PutString(idle+g.At("_EPROCESS", "ImageFileName"), "Idle")
		g.idle = g.thread(idle, 0, 0, 2)
	}
}

func (g *Guest) thread(process arch.GVA, pid, tid int, state byte) arch.GVA {
	at := g.object("Thread", "", 0x900)
	g.Kernel.PutUint(at, 6, 1)
	cid := at + g.At("_ETHREAD", "Cid")
	g.Word(cid, uint64(pid))
	g.Word(cid+arch.GVA(g.w), uint64(tid))
	if off, ok := g.has("_ETHREAD", "ThreadsProcess"); ok {
		g.Word(at+off, uint64(process))
	}
	if off, ok := g.has("_KTHREAD", "Process"); ok {
		g.Word(at+off, uint64(process))
	}
	g.Word(at+g.At("_KTHREAD", "ApcState")+g.At("_KAPC_STATE", "Process"), uint64(process))
	g.Kernel.PutUint(at+g.At("_KTHREAD", "State"), uint64(state), 1)
	if pid > 4 {
		g.set(at, "_KTHREAD", "Teb", uint64(userTEB))
	}
	return at
}

// user is a place in the user memory of a process that is being filled.
type user struct {
	s    *vitrinetest.Space
	next arch.GVA
	w    uint64
}

func (u *user) take(n uint64) arch.GVA {
	at := u.next
	u.next += arch.GVA(n+15) &^ 15
	return at
}

func (u *user) str(at arch.GVA, s string) {
	unicode(u.s, at, u.take(uint64(2*len(s)+2)), s, u.w)
}

func (g *Guest) makeUser(p *Process) {
	p.PEB = userPEB
	u := &user{p.Space, userLoader, g.w}
	u.s.Map(userLoader, userSize, vitrinetest.User|vitrinetest.Writable)
	u.s.Map(userPEB, arch.PageSize, vitrinetest.User|vitrinetest.Writable)
	u.s.Map(p.Base, arch.PageSize, vitrinetest.User)
	u.s.PutString(p.Base, "MZ")
	n := arch.GVA(g.w)
	u.s.PutUint(userPEB+2*n, uint64(p.Base), int(g.w))
	params := u.take(0x450)
	u.s.PutUint(userPEB+g.At("_PEB", "ProcessParameters"), uint64(params), int(g.w))
	u.str(params+g.At("_RTL_USER_PROCESS_PARAMETERS", "ImagePathName"), p.ImagePath)
	u.str(params+g.At("_RTL_USER_PROCESS_PARAMETERS", "CommandLine"), p.Command)
	u.str(params+g.At("_RTL_USER_PROCESS_PARAMETERS", "CurrentDirectory"), p.Cwd)
	u.s.PutUint(userPEB+g.At("_PEB", "Ldr"), uint64(g.loader(u, p.Libraries)), int(g.w))
}

// loader makes the three lists of loaded modules: PEB_LDR_DATA is the same in
// every build.
func (g *Guest) loader(u *user, libs []Module) arch.GVA {
	n, ldr := arch.GVA(u.w), u.take(0x60)
	heads := ldr + 8 + n
	for i := range arch.GVA(3) {
		h := heads + i*2*n
		u.s.PutUint(h, uint64(h), int(u.w))
		u.s.PutUint(h+n, uint64(h), int(u.w))
	}
	for i, m := range libs {
		at := u.take(0x80)
		g.fillLoaderEntry(u.s, at, m, u.w, u.str)
		for list := range arch.GVA(3) {
			if list == 2 && i == 0 {
				continue // the executable is not in the order of initialization
			}
			g.append(u.s, heads+list*2*n, at+list*2*n, u.w)
		}
	}
	return ldr
}

// makeWow64 makes the second, 32-bit PEB of a 32-bit process on x64.
func (g *Guest) makeWow64(p *Process) {
	off, ok := g.has("_EPROCESS", "WoW64Process")
	if !ok {
		off, ok = g.has("_EPROCESS", "Wow64Process")
	}
	if !ok || len(p.Libs32) == 0 {
		return
	}
	p.Space.Map(userPEB32, arch.PageSize, vitrinetest.User|vitrinetest.Writable)
	u := &user{p.Space, userLoader + userSize/2, 4}
	p.Space.PutUint32(userPEB32+0xc, uint32(g.loader(u, p.Libs32)))
	v := uint64(userPEB32)
	if _, indirect := g.has("_EWOW64PROCESS", "Peb"); indirect {
		at := g.Pool(0x20)
		g.Word(at, v)
		v = uint64(at)
	}
	g.Word(p.Task+off, v)
}
