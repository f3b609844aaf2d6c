package osi

import (
	"strconv"
	"time"

	"github.com/vitrine-vmi/vitrine/arch"
)

// Handle names a process, or a thread, by its task structure in the kernel.
// The task address alone is enough for every method that takes a Handle; it is
// reused by the guest after the process has ended, so a Handle that was kept
// may come to mean another process: compare Process.ID.
type Handle struct {
	Task arch.GVA // task_struct on Linux
	ASID arch.GPA // physical address of the user page-table root; 0 where there is none (kernel threads)
}

// State is a process state by the letter that the guest itself shows, on Linux
// that of /proc/PID/stat: R running, S sleeping, D uninterruptible, T stopped,
// t traced, Z zombie, X dead, P parked, I idle. It is 0 when unknown.
type State byte

// String returns the letter, "?" when the state is unknown.
func (s State) String() string {
	if s == 0 {
		return "?"
	}
	return string(rune(s))
}

// Thread is one thread of a process: what can be read of it at once, without
// following more than its credentials and its parent.
type Thread struct {
	Handle
	TID       int       // the thread's own id
	PID       int       // of its process (tgid on Linux)
	PPID      int       // process id of the parent, 0 if it has none
	Name      string    // the thread's short name (comm), at most 15 bytes on Linux
	UID, GID  uint32    // real ids, as the kernel keeps them: those of the initial user namespace
	State     State     // see State
	KThread   bool      // it runs kernel code only
	StartTime time.Time // guest wall-clock time; zero where the provider can't tell
	VCPU      int       // the virtual processor that it runs on, or ran on last
	ID        string    // see Process.ID
}

// Process is one process.
type Process struct {
	Handle
	PID       int       // process id
	PPID      int       // process id of the parent, 0 if it has none
	Name      string    // short name (comm), at most 15 bytes on Linux
	FullName  string    // Name without that limit where the kernel keeps more (kernel threads), else equal to it
	Exe       string    // path of the executable from the root of its mount namespace; empty for kernel threads
	Args      []string  // the command line, as the process itself last set it; nil for kernel threads
	UID, GID  uint32    // real ids, as the kernel keeps them: those of the initial user namespace
	State     State     // see State
	KThread   bool      // it runs kernel code only
	Threads   int       // number of threads, at least 1
	StartTime time.Time // guest wall-clock time of its creation; zero where the provider can't tell
	Compat    bool      // a 32-bit process of a 64-bit system

	// Of NT only.
	CommandLine string // as it stands in the process, of which Args are the parts
	User        string // SID of the user, "S-1-5-18"; "" when it can't be told
	Session     int    // terminal session
	WOW64       bool   // it runs on WOW64; Compat says the same
	Handles     int    // open handles

	// ID tells this process from every other one that the guest ever ran, also
	// from one with the same pid. It stays the same through exec. It is made of
	// the pid and the time of creation since boot; do not take it apart.
	ID string
}

// MakeID returns the ID of the process or thread that was created with this
// id, the given time after boot. It is for providers.
func MakeID(id int, sinceBoot time.Duration) string {
	return strconv.Itoa(id) + "-" + strconv.FormatInt(int64(sinceBoot), 36)
}

// Range is a range of virtual addresses.
type Range struct {
	Start, End arch.GVA // End is the first address behind the range
}

// Contains reports whether a lies in the range.
func (r Range) Contains(a arch.GVA) bool { return r.Start <= a && a < r.End }

// Size returns the length of the range in bytes.
func (r Range) Size() uint64 { return uint64(r.End - r.Start) }

// Module is one loaded kernel module or driver.
type Module struct {
	Name   string   // "virtio_net"
	Base   arch.GVA // start of its code
	Size   uint64   // bytes of all its parts together, as the guest itself tells
	File   string   // path of the file it came from; empty where the guest does not keep it (Linux)
	Ranges []Range  // all its parts, in the kernel's order; the first holds Base
}

// Library is one shared object that a process has loaded: a file of which at
// least one mapping is executable, other than the executable of the process.
type Library struct {
	Name string   // last element of Path
	Path string   // from the root of its mount namespace
	Base arch.GVA // lowest address at which the file is mapped
	Size uint64   // bytes from Base to the end of the file's highest mapping
}

// MappingKind says what a mapping holds.
type MappingKind uint8

// Mapping kinds.
const (
	MappingUnknown MappingKind = iota // anonymous memory and whatever else
	MappingFile                       // a file
	MappingHeap                       // the brk heap
	MappingStack                      // the main thread's stack
)

var mappingKinds = [...]string{"unknown", "file", "heap", "stack"}

// String returns the kind in lower case.
func (k MappingKind) String() string {
	if int(k) < len(mappingKinds) {
		return mappingKinds[k]
	}
	return "MappingKind(" + strconv.Itoa(int(k)) + ")"
}

// Mapping is one range of a process's address space.
type Mapping struct {
	Range
	Perms  string      // as in /proc/PID/maps: "r-xp"; of NT "p" is copy on write or private
	Offset uint64      // bytes into the file, 0 for anonymous memory
	Name   string      // path, "[heap]", "[stack]", "[vdso]", ... or empty
	Kind   MappingKind // see MappingKind
	Inode  uint64      // of the file, 0 for anonymous memory
}

// File is one open file of a process.
type File struct {
	FD        int
	Path      string // or "pipe:[1234]", "socket:[1234]", "anon_inode:[eventfd]"
	Pos       int64  // offset of the next read or write
	Flags     uint32 // flags of open(2) by the guest's numbers, close-on-exec included
	FlagNames string // Flags in words: "O_RDWR|O_CLOEXEC"
	Inode     uint64

	// Type is the type of the object that a handle of NT leads to: "File",
	// "Key", "Mutant", ... Path is then the object's name, "" when it has none,
	// and Flags is the access that was granted. Empty on Linux.
	Type   string
	Object arch.GVA // address of that object
}

// PagedOut stands in the place of a text that the guest has paged out.
const PagedOut = "(paged out)"

// ProcMem is the layout of a process's memory as the kernel keeps it.
type ProcMem struct {
	Code, Data, Args, Env Range
	StartBrk, Brk         arch.GVA // bounds of the brk heap
	StartStack            arch.GVA // bottom of the main thread's stack
}

// Page is one resident page of a process.
type Page struct {
	Start    arch.GVA
	Size     uint64 // bytes
	Addr     arch.GPA
	Writable bool // by the page tables, not by the mapping: a page not yet copied on write is read-only
	Exec     bool
}
