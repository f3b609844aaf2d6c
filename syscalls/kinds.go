package syscalls

import (
	"slices"
	"strconv"
	"strings"

	"github.com/vitrine-vmi/vitrine/arch"
)

// kind is how an argument is shown.
type kind struct {
	id  kindID
	fam family // of kindConst
	ref int8   // the argument that holds a length, or that decides
}

type kindID uint8

// Kinds of numbers.
const (
	kindHex     kindID = iota // address-sized, hexadecimal
	kindPtr                   // pointer, NULL when 0
	kindInt                   // C int: 32 bits, signed
	kindUint                  // 32 bits, unsigned
	kindLong                  // address-sized, signed
	kindUlong                 // address-sized, unsigned decimal
	kindHex32                 // 32 bits, hexadecimal
	kindUID                   // 32 bits, -1 stands for "no change"
	kindMode                  // octal file mode
	kindFD                    // file descriptor
	kindDirFD                 // the same, or AT_FDCWD
	kindSignal                // signal number
	kindConst                 // constants of a family
	kindClone                 // clone flags with the exit signal in the low byte
	kindIoctl                 // ioctl request
	kindFcntl                 // third argument of fcntl; ref is the command's
	kindSockOpt               // option name; ref is the level's
	kindProto                 // protocol; ref is the domain's
	kindDevice                // device number
)

// Kinds that read memory. Those from kindOut on are written by the kernel and
// are decoded at the return.
const (
	kindPath kindID = iota + 64
	kindString
	kindBuf // ref: length
	kindArgv
	kindEnvp
	kindIovec    // ref: count
	kindSockaddr // ref: length
	kindTimespec
	kindTimeval
	kindItimerspec
	kindItimerval
	kindTimespecs // two of them, as utimensat takes
	kindTimevals
	kindRlimit
	kindRlimit64
	kindSigset // ref: size
	kindFDSet  // ref: the first argument, nfds
	kindPollfds
	kindEpollEvent
	kindOpenHow
	kindCloneArgs
	kindSigaction
	kindOffset
	kindMsghdr
	kindOption // value of a socket option; ref: length

	kindOut
	kindOutBuf   // length is the result
	kindOutStr   // NUL-terminated within the result's length
	kindOutIovec // ref: count; bytes are the result
	kindOutSockaddr
	kindOutTimespec
	kindOutTimeval
	kindOutItimerspec
	kindOutItimerval
	kindOutRlimit
	kindOutRlimit64
	kindOutSigset
	kindOutStat
	kindOutStatx
	kindOutInts // two ints
	kindOutInt
	kindOutWait
	kindOutUname
	kindOutEvents // epoll events, count is the result
	kindOutSigaction
	kindOutMsghdr
	kindOutOption // ref: where the length is
)

func (k kindID) out() bool { return k > kindOut }

var kindWords = map[string]kindID{
	"hex": kindHex, "ptr": kindPtr, "int": kindInt, "uint": kindUint, "long": kindLong, "ulong": kindUlong,
	"hex32": kindHex32, "uid": kindUID, "mode": kindMode, "fd": kindFD, "dfd": kindDirFD, "sig": kindSignal,
	"clone": kindClone, "ioctl": kindIoctl, "fcntl": kindFcntl, "sockopt": kindSockOpt, "proto": kindProto,
	"dev": kindDevice, "path": kindPath, "str": kindString, "buf": kindBuf, "argv": kindArgv, "envp": kindEnvp,
	"iov": kindIovec, "sa": kindSockaddr, "ts": kindTimespec, "tv": kindTimeval, "its": kindItimerspec,
	"itv": kindItimerval, "ts2": kindTimespecs, "tv2": kindTimevals, "rlim": kindRlimit, "rlim64": kindRlimit64,
	"sigset": kindSigset, "fdset": kindFDSet, "pollfds": kindPollfds, "epev": kindEpollEvent,
	"openhow": kindOpenHow, "cloneargs": kindCloneArgs, "sigact": kindSigaction, "off": kindOffset, "msghdr": kindMsghdr,
	"obuf": kindOutBuf, "ostr": kindOutStr, "oiov": kindOutIovec, "osa": kindOutSockaddr, "ots": kindOutTimespec,
	"otv": kindOutTimeval, "oits": kindOutItimerspec, "oitv": kindOutItimerval, "orlim": kindOutRlimit,
	"orlim64": kindOutRlimit64, "osigset": kindOutSigset, "ostat": kindOutStat, "ostatx": kindOutStatx,
	"oints": kindOutInts, "oint": kindOutInt, "owait": kindOutWait, "ouname": kindOutUname, "oevents": kindOutEvents,
	"osigact": kindOutSigaction, "omsghdr": kindOutMsghdr, "opt": kindOption, "oopt": kindOutOption,
}

// parseKind reads a word of specs: a kind ("fd"), a kind with the number of the
// argument it refers to ("buf:2"), or a family of constants ("=open"). It
// returns false for "-", which leaves the choice to the argument's type.
func parseKind(word string) (kind, bool) {
	if name, ok := strings.CutPrefix(word, "="); ok {
		for f, info := range families {
			if info.name == name {
				return kind{id: kindConst, fam: family(f)}, true
			}
		}
		return kind{}, false
	}
	word, ref, _ := strings.Cut(word, ":")
	id, ok := kindWords[word]
	n, _ := strconv.Atoi(ref)
	return kind{id: id, ref: int8(n)}, ok && n >= 0 && n < maxArgs
}

// specFor returns the words for a call's arguments. Calls of 32-bit x86 that
// exist only for wider arguments are shown as the call they widen.
func specFor(a arch.Arch, name string) []string {
	if a == arch.I386 {
		if s, ok := specsI386[name]; ok {
			return strings.Fields(s)
		}
		if s, ok := specs[name]; ok {
			return strings.Fields(s)
		}
		name = narrow(name)
	}
	return strings.Fields(specs[name])
}

// narrow strips what 32-bit calls with wider arguments have at the end of
// their names.
func narrow(name string) string {
	for _, suffix := range []string{"_time64", "64", "32"} {
		if s, ok := strings.CutSuffix(name, suffix); ok {
			return s
		}
	}
	return name
}

var intTypes = map[string]kindID{
	"int": kindInt, "pid_t": kindInt, "key_t": kindInt, "mqd_t": kindInt, "timer_t": kindInt, "__s32": kindInt,
	"key_serial_t": kindInt, "qid_t": kindInt, "rwf_t": kindHex32, "s32": kindInt,
	"unsigned int": kindUint, "unsigned": kindUint, "u32": kindUint, "__u32": kindUint, "uint32_t": kindUint,
	"uid_t": kindUID, "gid_t": kindUID, "umode_t": kindMode, "mode_t": kindMode,
	"long": kindLong, "loff_t": kindLong, "off_t": kindLong, "ssize_t": kindLong,
	"size_t": kindUlong, "u64": kindUlong, "__u64": kindUlong, "uint64_t": kindUlong, "bool": kindInt,
}

// kindOf chooses by type and name, for calls and arguments that specs does not
// mention.
func kindOf(p Param) kind {
	typ := strings.TrimPrefix(p.Type, "const ")
	if strings.HasSuffix(typ, "*") || strings.HasSuffix(typ, "*const") {
		return kind{id: pointerKind(p)}
	}
	switch typ {
	case "clockid_t":
		return kind{id: kindConst, fam: famClock}
	case "int", "unsigned int":
		if id, ok := descriptorKind(p.Name); ok {
			return kind{id: id}
		}
		if strings.Contains(p.Name, "flags") {
			return kind{id: kindHex32}
		}
	case "unsigned long":
		if slices.Contains([]string{"len", "count", "nr", "size", "vlen", "maxnode", "nr_pages", "nr_segments"}, p.Name) {
			return kind{id: kindUlong}
		}
	}
	return kind{id: intTypes[typ]} // kindHex if it is not there
}

func pointerKind(p Param) kindID {
	if p.Type != "const char *" {
		return kindPtr
	}
	for _, s := range []string{"path", "filename", "file", "oldname", "newname"} {
		if strings.Contains(p.Name, s) {
			return kindPath
		}
	}
	return kindString
}

func descriptorKind(name string) (kindID, bool) {
	switch {
	case strings.HasSuffix(name, "dfd"):
		return kindDirFD, true
	case name == "fd" || name == "fildes" || strings.HasSuffix(name, "_fd"):
		return kindFD, true
	}
	return 0, false
}
