package windows

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// user returns the SID and the session of a process, from its token: "" and 0
// when they can't be read.
func (s *system) user(as *vitrine.AddressSpace, p *process) (sid string, session int) {
	token := p.ptr(s.l.process.token) &^ (2*s.w - 1) // EX_FAST_REF: its lowest bits count
	if !s.nt.KernelAddress(token) {
		return "", 0
	}
	if s.l.token.session.ok {
		if n, err := as.ReadUint32(token + s.l.token.session.off); err == nil {
			session = int(int32(n))
		}
	}
	if !s.l.token.users.ok {
		return "", session
	}
	groups, err := s.word(as, token+s.l.token.users.off)
	if err != nil || !s.nt.KernelAddress(groups) {
		return "", session
	}
	at, err := s.word(as, groups) // SID_AND_ATTRIBUTES of the user comes first
	if err != nil || !s.nt.KernelAddress(at) {
		return "", session
	}
	return readSID(as, at), session
}

// maxParts is how many sub-authorities a SID has at most.
const maxParts = 15

// readSID reads a SID and returns it as Windows writes it, "S-1-5-18"; "" when
// there is none.
func readSID(as *vitrine.AddressSpace, at arch.GVA) string {
	var b [8 + 4*maxParts]byte
	n, err := as.Read(b[:8], at)
	if err != nil || n < 8 || b[0] != 1 || b[1] > maxParts {
		return ""
	}
	parts := b[8 : 8+4*int(b[1])]
	if _, err := as.Read(parts, at+8); err != nil {
		return ""
	}
	authority := uint64(binary.BigEndian.Uint16(b[2:]))<<32 | uint64(binary.BigEndian.Uint32(b[4:]))
	var out strings.Builder
	fmt.Fprintf(&out, "S-1-%d", authority)
	for ; len(parts) > 0; parts = parts[4:] {
		fmt.Fprintf(&out, "-%d", binary.LittleEndian.Uint32(parts))
	}
	return out.String()
}

// right is a bit of an access mask.
type right struct {
	bit  uint32
	name string
}

// Rights that every object has (winnt.h), and those of some types.
var (
	commonRights = []right{{1 << 16, "DELETE"}, {1 << 17, "READ_CONTROL"}, {1 << 18, "WRITE_DAC"}, {1 << 19, "WRITE_OWNER"}, {1 << 20, "SYNCHRONIZE"}}
	typeRights   = map[string][]right{
		"File": {{1, "FILE_READ_DATA"}, {2, "FILE_WRITE_DATA"}, {4, "FILE_APPEND_DATA"}, {8, "FILE_READ_EA"}, {0x10, "FILE_WRITE_EA"}, {0x20, "FILE_EXECUTE"},
			{0x40, "FILE_DELETE_CHILD"}, {0x80, "FILE_READ_ATTRIBUTES"}, {0x100, "FILE_WRITE_ATTRIBUTES"}},
		"Key": {{1, "KEY_QUERY_VALUE"}, {2, "KEY_SET_VALUE"}, {4, "KEY_CREATE_SUB_KEY"}, {8, "KEY_ENUMERATE_SUB_KEYS"}, {0x10, "KEY_NOTIFY"}, {0x20, "KEY_CREATE_LINK"}},
		"Process": {{1, "PROCESS_TERMINATE"}, {2, "PROCESS_CREATE_THREAD"}, {4, "PROCESS_SET_SESSIONID"}, {8, "PROCESS_VM_OPERATION"}, {0x10, "PROCESS_VM_READ"},
			{0x20, "PROCESS_VM_WRITE"}, {0x40, "PROCESS_DUP_HANDLE"}, {0x80, "PROCESS_CREATE_PROCESS"}, {0x100, "PROCESS_SET_QUOTA"},
			{0x200, "PROCESS_SET_INFORMATION"}, {0x400, "PROCESS_QUERY_INFORMATION"}, {0x800, "PROCESS_SUSPEND_RESUME"}, {0x1000, "PROCESS_QUERY_LIMITED_INFORMATION"}},
		"Mutant":  {{1, "MUTANT_QUERY_STATE"}},
		"Event":   {{1, "EVENT_QUERY_STATE"}, {2, "EVENT_MODIFY_STATE"}},
		"Section": {{1, "SECTION_QUERY"}, {2, "SECTION_MAP_WRITE"}, {4, "SECTION_MAP_READ"}, {8, "SECTION_MAP_EXECUTE"}, {0x10, "SECTION_EXTEND_SIZE"}},
	}
)

// accessNames returns an access mask in words; bits without a name stay numbers.
func accessNames(kind string, mask uint32) string {
	var names []string
	for _, r := range append(append([]right(nil), typeRights[kind]...), commonRights...) {
		if mask&r.bit != 0 {
			names = append(names, r.name)
			mask &^= r.bit
		}
	}
	if mask != 0 || len(names) == 0 {
		names = append(names, fmt.Sprintf("%#x", mask))
	}
	return strings.Join(names, "|")
}
