package nttest

import (
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// typeNames are the object types that are made, at the index that they have in
// the array behind two that are none.
var typeNames = []string{"Type", "Directory", "Token", "Process", "Thread", "Event", "Mutant", "Section", "Device", "File", "Key", "ALPC Port"}

// makeTypes makes the object types and the array that lists them.
func (g *Guest) makeTypes() {
	table := g.reserve(uint64(len(typeNames)+4) * g.w)
	g.Word(table+arch.GVA(g.w), 0xbad0b0b0)
	for i, name := range typeNames {
		index := i + 2
		g.indices[name] = index
		at := g.object("", "", 0x1a0)
		g.types[name] = at
		g.str(at+g.At("_OBJECT_TYPE", "Name"), name)
		g.Kernel.PutUint(at+g.At("_OBJECT_TYPE", "Index"), uint64(index), 1)
		g.Word(table+arch.GVA(uint64(index)*g.w), uint64(at))
	}
	g.Word(g.Exports["PsProcessType"], uint64(g.types["Process"]))
	g.Word(g.Exports["PsThreadType"], uint64(g.types["Thread"]))
}

// object makes an object's header, with the object's name before it when it
// has one, and returns where its body begins.
func (g *Guest) object(typeName, name string, size uint64) arch.GVA {
	info := 4 * g.w
	body := g.At("_OBJECT_HEADER", "Body")
	at := g.Pool(info + uint64(body) + size)
	header := at + arch.GVA(info)
	mask := uint64(0)
	if name != "" {
		g.str(at+g.At("_OBJECT_HEADER_NAME_INFO", "Name"), name)
		mask = 2
	}
	if off, ok := g.has("_OBJECT_HEADER", "TypeIndex"); ok {
		index := byte(g.indices[typeName])
		if g.Cookie != 0 {
			index ^= g.Cookie ^ byte(header>>8)
		}
		g.Kernel.PutUint(header+off, uint64(index), 1)
		g.Kernel.PutUint(header+g.At("_OBJECT_HEADER", "InfoMask"), mask, 1)
	} else {
		g.set(header, "_OBJECT_HEADER", "Type", uint64(g.types[typeName]))
		if mask != 0 {
			g.Kernel.PutUint(header+g.At("_OBJECT_HEADER", "NameInfoOffset"), info, 1)
		}
	}
	return header + body
}

// device returns a device of this name.
func (g *Guest) device(name string) arch.GVA {
	if at, ok := g.devices[name]; ok {
		return at
	}
	at := g.object("Device", file(name), 0x150)
	g.devices[name] = at
	return at
}

// fileObject makes a FILE_OBJECT.
func (g *Guest) fileObject(device, path string, pos uint64) arch.GVA {
	at := g.object("File", "", 0xe0)
	g.Kernel.PutUint(at, 5, 2)
	if device != "" {
		g.set(at, "_FILE_OBJECT", "DeviceObject", uint64(g.device(device)))
	}
	g.str(at+g.At("_FILE_OBJECT", "FileName"), path)
	g.Kernel.PutUint64(at+g.At("_FILE_OBJECT", "CurrentByteOffset"), pos)
	return at
}

// keyBlock returns the key control block of a path such as \REGISTRY\MACHINE.
func (g *Guest) keyBlock(path string) arch.GVA {
	if path == "" {
		return 0
	}
	if at, ok := g.keys[path]; ok {
		return at
	}
	i := strings.LastIndexByte(path, '\\')
	parent, name := g.keyBlock(path[:i]), path[i+1:]
	at, names := g.Pool(0x140), g.Pool(0x80)
	g.set(at, "_CM_KEY_CONTROL_BLOCK", "ParentKcb", uint64(parent))
	g.set(at, "_CM_KEY_CONTROL_BLOCK", "NameBlock", uint64(names))
	g.Kernel.PutUint(names, 1, 1) // Compressed: one byte a character
	g.Kernel.PutUint(names+g.At("_CM_NAME_CONTROL_BLOCK", "NameLength"), uint64(len(name)), 2)
	g.Kernel.PutString(names+g.At("_CM_NAME_CONTROL_BLOCK", "Name"), name)
	g.keys[path] = at
	return at
}

// body makes the object of a handle.
func (g *Guest) body(h Handle) arch.GVA {
	switch h.Type {
	case "File":
		return g.fileObject(h.Device, h.Name, h.Pos)
	case "Key":
		at := g.object("Key", "", 0x80)
		g.Kernel.PutUint32(at, 0x6b793032)
		g.set(at, "_CM_KEY_BODY", "KeyControlBlock", uint64(g.keyBlock(h.Name)))
		return at
	case "Process":
		for _, p := range g.Processes {
			if p.Name == h.Name {
				return p.Task
			}
		}
	}
	return g.object(h.Type, h.Name, 0x60)
}

// handleTable makes the handle table of a process; of one with a handle above
// the first page's, one with two levels.
func (g *Guest) handleTable(p *Process) arch.GVA {
	at := g.Pool(0x100)
	if off, ok := g.has("_HANDLE_TABLE", "UniqueProcessId"); ok {
		g.Word(at+off, uint64(p.PID))
	}
	if off, ok := g.has("_HANDLE_TABLE", "QuotaProcess"); ok {
		g.Word(at+off, uint64(p.Task))
	}
	if off, ok := g.has("_HANDLE_TABLE", "HandleCount"); ok {
		g.Kernel.PutUint32(at+off, uint32(len(p.Handles)))
	}
	perPage := 4096 / int(2*g.w)
	pages := 1
	for _, h := range p.Handles {
		pages = max(pages, h.Value/4/perPage+1)
	}
	var tables []arch.GVA
	for range pages {
		t := (g.Pool(2*arch.PageSize) + arch.PageSize - 1).Page()
		tables = append(tables, t)
	}
	code := uint64(tables[0])
	if pages > 1 {
		top := (g.Pool(2*arch.PageSize) + arch.PageSize - 1).Page()
		for i, t := range tables {
			g.Word(top+arch.GVA(uint64(i)*g.w), uint64(t))
		}
		code = uint64(top) | 1
	}
	g.set(at, "_HANDLE_TABLE", "TableCode", code)
	if off, ok := g.has("_HANDLE_TABLE", "NextHandleNeedingPool"); ok {
		g.Kernel.PutUint32(at+off, uint32(4*perPage*pages))
	}
	for _, h := range p.Handles {
		n := h.Value / 4
		g.entry(tables[n/perPage]+arch.GVA(uint64(n%perPage)*2*g.w), h)
	}
	return at
}

// entry fills in a handle table entry.
func (g *Guest) entry(at arch.GVA, h Handle) {
	header := uint64(g.body(h) - g.At("_OBJECT_HEADER", "Body"))
	v := header | 1
	switch g.HandleBits {
	case 44:
		v = header<<16 | 1
	case 41:
		v = header>>4<<23 | 1
	case 29:
		v = header&^7 | 1
	}
	g.Word(at, v)
	g.Kernel.PutUint32(at+arch.GVA(g.w), h.Access)
}

// vads makes the tree of a process's mappings, balanced, and hangs it on root.
func (g *Guest) vads(p *Process, root arch.GVA) {
	sorted := slices.Clone(p.VADs)
	slices.SortFunc(sorted, func(a, b VAD) int { return int(int64(a.Start>>12) - int64(b.Start>>12)) })
	if g.InlineVAD {
		top := g.vadTree(sorted, root)
		g.Word(root, uint64(root))
		g.Word(root+2*arch.GVA(g.w), uint64(top))
		return
	}
	g.Word(root, uint64(g.vadTree(sorted, 0)))
}

func (g *Guest) vadTree(vads []VAD, parent arch.GVA) arch.GVA {
	if len(vads) == 0 {
		return 0
	}
	mid := len(vads) / 2
	at := g.Pool(0x100)
	left, right, up := g.vadLinks()
	g.Word(at+left, uint64(g.vadTree(vads[:mid], at)))
	g.Word(at+right, uint64(g.vadTree(vads[mid+1:], at)))
	g.Word(at+up, uint64(parent))
	g.vad(at, vads[mid])
	return at
}

// vadLinks returns where a node has its links.
func (g *Guest) vadLinks() (left, right, parent arch.GVA) {
	n := arch.GVA(g.w)
	if g.InlineVAD {
		return n, 2 * n, 0
	}
	if l, ok := g.has("_MMVAD_SHORT", "LeftChild"); ok {
		return l, g.At("_MMVAD_SHORT", "RightChild"), g.At("_MMVAD_SHORT", "Parent")
	}
	return 0, n, 2 * n
}

func (g *Guest) vad(at arch.GVA, v VAD) {
	start, end := uint64(v.Start>>12), uint64(v.End>>12)-1
	size := int(g.w)
	if _, ok := g.has("_MMVAD_SHORT", "VadNode"); ok {
		size = 4
	}
	g.Kernel.PutUint(at+g.At("_MMVAD_SHORT", "StartingVpn"), start, size)
	g.Kernel.PutUint(at+g.At("_MMVAD_SHORT", "EndingVpn"), end, size)
	if off, ok := g.has("_MMVAD_SHORT", "StartingVpnHigh"); ok && g.X64 {
		g.Kernel.PutUint(at+off, start>>32, 1)
		g.Kernel.PutUint(at+g.At("_MMVAD_SHORT", "EndingVpnHigh"), end>>32, 1)
	}
	bits := 4
	if size == 8 {
		bits = 8
	}
	g.Kernel.PutUint(at+g.At("_MMVAD_SHORT", "u"), v.Flags, bits)
	if v.Private {
		return
	}
	area, segment := g.Pool(0x90), g.Pool(0x50)
	g.Word(area, uint64(segment)) // _CONTROL_AREA.Segment and _SEGMENT.ControlArea are the first of all builds
	g.Word(segment, uint64(area))
	if off, ok := g.has("_MMVAD", "Subsection"); ok {
		sub := g.Pool(0x40)
		g.set(sub, "_SUBSECTION", "ControlArea", uint64(area))
		g.Word(at+off, uint64(sub))
	} else {
		g.set(at, "_MMVAD", "ControlArea", uint64(area))
	}
	if v.File != "" {
		g.set(area, "_CONTROL_AREA", "FilePointer", uint64(g.fileObject(v.Device, v.File, 0))|3)
	}
}
