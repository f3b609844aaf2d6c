package ntguest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// The layouts that the tests of this project boot. Any other file of data/nt-layouts can be tried by its name.
const (
	XP2003  = "5.2.3790.3959-x86"    // i386, two-level paging
	Win7x86 = "6.1.7601.17514-x86"   // i386, PAE
	Win7    = "6.1.7601.17514-x64"   // x86-64
	Win10   = "10.0.19045.2965-x64"  // x86-64, handle table and tree of mappings of 8 and later
	Win11   = "10.0.22631.2428-x64"  // x86-64
	dataEnv = "VITRINE_TEST_NT_DATA" // a folder with nt-layouts and nt-syscalls
)

// Layouts lists the layouts that the tests boot.
func Layouts() []string { return []string{XP2003, Win7x86, Win7, Win10, Win11} }

// ErrNoData is returned when the folder with the layouts of real builds is not on this machine.
var ErrNoData = errors.New("no folder shared/data beside or above the module, and " + dataEnv + " names none")

// DataDir returns the folder that has nt-layouts and nt-syscalls: the one that VITRINE_TEST_NT_DATA names, else shared/data
// beside a folder above this package's sources.
func DataDir() (string, error) {
	if dir := os.Getenv(dataEnv); dir != "" {
		return dir, nil
	}
	_, file, _, _ := runtime.Caller(0)
	for dir := filepath.Dir(file); filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		data := filepath.Join(dir, "shared", "data")
		if _, err := os.Stat(filepath.Join(data, "nt-layouts")); err == nil {
			return data, nil
		}
	}
	return "", ErrNoData
}

// layout is one file of nt-layouts.
type layout struct {
	Arch, Build string
	Structs     map[string]struct {
		Size   int
		Fields map[string]json.RawMessage // an offset, or [offset, bits]
	}

	name                string
	major, minor, build int
	services            map[string]int
}

// releases says which system calls a build has. Between two releases of nt-syscalls a build has those of the earlier.
var releases = []struct {
	build int
	name  string
}{
	{2600, "Windows XP / SP3"}, {3790, "Windows Server 2003 / SP2"}, {6000, "Windows Vista / SP0"}, {6001, "Windows Vista / SP1"},
	{6002, "Windows Vista / SP2"}, {7600, "Windows 7 / SP0"}, {7601, "Windows 7 / SP1"}, {9200, "Windows 8 / 8.0"}, {9600, "Windows 8 / 8.1"},
	{10240, "Windows 10 / 1507"}, {10586, "Windows 10 / 1511"}, {14393, "Windows 10 / 1607"}, {15063, "Windows 10 / 1703"},
	{16299, "Windows 10 / 1709"}, {17134, "Windows 10 / 1803"}, {17763, "Windows 10 / 1809"}, {18362, "Windows 10 / 1903"},
	{19041, "Windows 10 / 2004"}, {19045, "Windows 10 / 22H2"}, {22000, "Windows 11 and Server / 11 21H2"},
	{22621, "Windows 11 and Server / 11 22H2"}, {22631, "Windows 11 and Server / 11 23H2"},
}

func readLayout(data, name string) (*layout, error) {
	text, err := os.ReadFile(filepath.Join(data, "nt-layouts", name+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read layout: there is none of %q in %s", name, data)
	} else if err != nil {
		return nil, fmt.Errorf("read layout: %w", err)
	}
	l := &layout{name: name}
	if err := json.Unmarshal(text, l); err != nil {
		return nil, fmt.Errorf("read layout %s: %w", name, err)
	}
	if _, err := fmt.Sscanf(l.Build, "%d.%d.%d", &l.major, &l.minor, &l.build); err != nil {
		return nil, fmt.Errorf("read layout %s: build %q: %w", name, l.Build, err)
	}
	return l, l.readServices(data)
}

func (l *layout) readServices(data string) error {
	text, err := os.ReadFile(filepath.Join(data, "nt-syscalls", l.Arch+".json"))
	if err != nil {
		return fmt.Errorf("read system calls: %w", err)
	}
	var all map[string]map[string]int
	if err := json.Unmarshal(text, &all); err != nil {
		return fmt.Errorf("read system calls: %w", err)
	}
	for _, r := range releases {
		if s, ok := all[r.name]; ok && r.build <= l.build {
			l.services = s
		}
	}
	if l.services == nil {
		return fmt.Errorf("read system calls: none of build %d in nt-syscalls", l.build)
	}
	return nil
}

// pae says whether an x86 kernel of the build is the one for PAE: that of Vista and later, which came with it on.
func (l *layout) pae() bool { return l.Arch == "x86" && l.build >= 6000 }

func (l *layout) pdb() string {
	if l.pae() {
		return "ntkrpamp.pdb"
	}
	return "ntkrnlmp.pdb"
}

// header returns layout.h: the build, its structures' sizes and offsets, and what else of it is fixed.
func (l *layout) header() []byte {
	var b bytes.Buffer
	id := sha256.Sum256([]byte("vitrine ntguest " + l.name))
	fmt.Fprintf(&b, "// Made by ntguest of data/nt-layouts/%s.json. DO NOT EDIT.\n", l.name)
	fmt.Fprintf(&b, "#define LAYOUT %q\n#define BUILD %d\n#define MAJOR %d\n#define MINOR %d\n", l.name, l.build, l.major, l.minor)
	fmt.Fprintf(&b, "#define PDB %q\n#define STAMP %#x\n#define GUID %s\n", l.pdb(), binary.LittleEndian.Uint32(id[16:])&0x7fffffff, initializer(id[:16]))
	fmt.Fprintf(&b, "#define KERNEL_PAE %d\n#define KDBG_ENCODED %d\n", number(l.pae()), number(l.Arch == "x64" && l.build >= 9200))
	top := 0
	for _, nr := range l.services {
		top = max(top, nr)
	}
	fmt.Fprintf(&b, "#define NSERVICES %d\n", top+1)
	for _, s := range slices.Sorted(maps.Keys(l.Structs)) {
		name := strings.TrimPrefix(s, "_")
		fmt.Fprintf(&b, "#define %s__size %#x\n", name, l.Structs[s].Size)
		for _, f := range slices.Sorted(maps.Keys(l.Structs[s].Fields)) {
			offset, bits := field(l.Structs[s].Fields[f])
			fmt.Fprintf(&b, "#define %s_%s %#x\n", name, f, offset)
			if bits > 0 {
				fmt.Fprintf(&b, "#define %s_%s__bits %d\n", name, f, bits)
			}
		}
	}
	return b.Bytes()
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func initializer(b []byte) string {
	var s []string
	for _, v := range b {
		s = append(s, strconv.Itoa(int(v)))
	}
	return "{" + strings.Join(s, ",") + "}"
}

// field returns where a field is, and its width if it is one of bits.
func field(raw json.RawMessage) (offset, bits int) {
	var pair []int
	if json.Unmarshal(raw, &offset) == nil {
		return offset, 0
	}
	if json.Unmarshal(raw, &pair) == nil && len(pair) == 2 {
		return pair[0], pair[1]
	}
	return 0, 0
}
