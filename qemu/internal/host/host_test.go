//go:build linux

package host

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const maps = `55d3a0a00000-55d3a0b00000 r-xp 00001000 fe:00 9978209                    /usr/bin/qemu system
7fe46bfff000-7fe5abfff000 rw-s 00000000 00:01 1031                       /memfd:memory-backend-memfd (deleted)
7fe5ac000000-7fe5ac021000 rw-p 00000000 00:00 0
7ffd1c9f1000-7ffd1ca12000 rw-p 00000000 00:00 0                          [stack]
`

func TestParseMaps(t *testing.T) {
	got, err := ParseMaps(strings.NewReader(maps))
	if err != nil {
		t.Fatal(err)
	}
	want := []VMA{
		{0x55d3a0a00000, 0x55d3a0b00000, "r-xp", 0x1000, "fe:00", 9978209, "/usr/bin/qemu system"},
		{0x7fe46bfff000, 0x7fe5abfff000, "rw-s", 0, "00:01", 1031, "/memfd:memory-backend-memfd (deleted)"},
		{0x7fe5ac000000, 0x7fe5ac021000, "rw-p", 0, "00:00", 0, ""},
		{0x7ffd1c9f1000, 0x7ffd1ca12000, "rw-p", 0, "00:00", 0, "[stack]"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, line := range []string{"x", "1-2 rw-p 0 0:0", "2-1 rw-p 0 0:0 0", "1-2 rw 0 0:0 0", "1-2 rw-p z 0:0 0", "1 rw-p 0 0:0 0"} {
		if got, err := ParseMaps(strings.NewReader(line)); err == nil {
			t.Errorf("%q: got %v", line, got)
		}
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add(maps)
	f.Fuzz(func(t *testing.T, text string) {
		vmas, err := ParseMaps(strings.NewReader(text))
		if err != nil && vmas != nil {
			t.Errorf("%v and %v", vmas, err)
		}
		for _, v := range vmas {
			if v.End <= v.Start {
				t.Errorf("%+v", v)
			}
		}
	})
}

func TestCovering(t *testing.T) {
	s := func(start, end, off, inode uint64) VMA { return VMA{start, end, "rw-s", off, "0:1", inode, "/x"} }
	private := VMA{0x3000, 0x4000, "rw-p", 0x2000, "0:1", 7, "/x"}
	for _, tt := range []struct {
		name string
		vmas []VMA
		ok   bool
	}{
		{"one", []VMA{s(0, 0x9000, 0, 7)}, true},
		{"neighbours of one file", []VMA{s(0x1000, 0x3000, 0, 7), s(0x3000, 0x8000, 0x2000, 7)}, true},
		{"another file", []VMA{s(0x1000, 0x3000, 0, 7), s(0x3000, 0x8000, 0x2000, 8)}, false},
		{"another place", []VMA{s(0x1000, 0x3000, 0, 7), s(0x3000, 0x8000, 0x5000, 7)}, false},
		{"a gap", []VMA{s(0x1000, 0x3000, 0, 7), s(0x4000, 0x8000, 0x3000, 7)}, false},
		{"a private part", []VMA{s(0x1000, 0x3000, 0, 7), private, s(0x4000, 0x8000, 0x3000, 7)}, false},
		{"too short", []VMA{s(0x1000, 0x3000, 0, 7)}, false},
		{"no file", []VMA{s(0, 0x9000, 0, 0)}, false},
		{"nothing", nil, false},
	} {
		v, err := covering(tt.vmas, 0x2000, 0x4000)
		if (err == nil) != tt.ok || err == nil && v != tt.vmas[0] || err != nil && !errors.Is(err, ErrNotShared) {
			t.Errorf("%s: %+v, %v", tt.name, v, err)
		}
	}
}

// mapped maps a fresh file of three pages and returns its address.
func mapped(t *testing.T, flags int) (b []byte, addr uint64, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ram")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(3 * 4096); err != nil {
		t.Fatal(err)
	}
	b, err = unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b, uint64(uintptr(unsafe.Pointer(&b[0]))), path
}

func TestMapSharedShowsTheSameMemory(t *testing.T) {
	for _, remove := range []bool{false, true} {
		theirs, addr, path := mapped(t, unix.MAP_SHARED)
		self := Process(os.Getpid())
		if remove {
			os.Remove(path)
		}
		vmas, err := self.Maps()
		if err != nil {
			t.Fatal(err)
		}
		m, err := self.MapShared(vmas, addr+4096, 2*4096)
		if err != nil {
			if remove && os.Geteuid() != 0 {
				t.Skipf("a removed file that is not open needs CAP_CHECKPOINT_RESTORE: %v", err)
			}
			t.Fatal(err)
		}
		theirs[4096], m.Bytes[4096] = 42, 43
		if m.Bytes[0] != 42 || theirs[2*4096] != 43 || !m.Writable || m.Offset != 4096 || len(m.Bytes) != 2*4096 {
			t.Errorf("mapping = %+v", m)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What was never written to is a hole, in files as RAM is kept in.
func TestNextData(t *testing.T) {
	const page = 4096
	fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "ram")
	defer f.Close()
	if err := f.Truncate(64 * page); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{10*page + 5, 40 * page} {
		if _, err := f.WriteAt([]byte{1}, at); err != nil {
			t.Fatal(err)
		}
	}
	m, err := mapFile(f, 8*page, 40*page, false)
	if err != nil {
		t.Fatal(err)
	}
	for off, want := range map[uint64]uint64{0: 2 * page, 2*page + 7: 2*page + 7, 3 * page: 32 * page, 32 * page: 32 * page, 33 * page: 40 * page} {
		if got := m.NextData(off); got != want {
			t.Errorf("NextData(%#x) = %#x, want %#x", off, got, want)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Blocks*512 > 2*page {
		t.Errorf("looking has allocated: %d bytes, %v", st.Blocks*512, err)
	}
	// A device tells of no holes.
	null, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	plain := &Mapping{Bytes: make([]byte, 2*page), File: null}
	if got := plain.NextData(page); got > 2*page {
		t.Errorf("NextData of a device = %#x", got)
	}
}

func TestMapSharedRefuses(t *testing.T) {
	self := Process(os.Getpid())
	_, private, _ := mapped(t, unix.MAP_PRIVATE)
	_, short, path := mapped(t, unix.MAP_SHARED)
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	vmas, err := self.Maps()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := self.MapShared(vmas, private, 4096); !errors.Is(err, ErrNotShared) {
		t.Errorf("private: %v", err)
	}
	if _, err := self.MapShared(vmas, 0x1000, 4096); !errors.Is(err, ErrNotShared) {
		t.Errorf("nothing there: %v", err)
	}
	if _, err := self.MapShared(vmas, short, 3*4096); err == nil || !strings.Contains(err.Error(), "ends at") {
		t.Errorf("truncated: %v", err)
	}
}

func TestReadAndWriteProcess(t *testing.T) {
	b, addr, _ := mapped(t, unix.MAP_PRIVATE)
	self := Process(os.Getpid())
	b[5] = 7
	var got [8]byte
	if n, err := self.Read(got[:], addr); n != 8 || err != nil || got[5] != 7 {
		t.Errorf("read %d, %v, %v", n, err, got)
	}
	if n, err := self.Write([]byte{1, 2}, addr+4096); n != 2 || err != nil || b[4097] != 2 {
		t.Errorf("wrote %d, %v", n, err)
	}
	if n, err := self.Read(got[:], 16); n != 0 || !errors.Is(err, unix.EFAULT) {
		t.Errorf("where nothing is mapped: %d, %v", n, err)
	}
	if _, err := Process(1<<22+1).Read(got[:], addr); !errors.Is(err, unix.ESRCH) {
		t.Errorf("no such process: %v", err)
	}
}

func TestProcessFacts(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := Process(cmd.Process.Pid)
	ended := make(chan struct{})
	p.OnExit(func() { close(ended) })
	never := p.OnExit(func() { t.Error("called after it was cancelled") })
	never()
	if uid, gid, err := p.UID(); err != nil || uid != os.Geteuid() || gid != os.Getegid() {
		t.Errorf("uid = %d, gid = %d, %v", uid, gid, err)
	}
	if !p.HasThread(int(p)) || p.HasThread(1<<22+1) {
		t.Error("HasThread is wrong")
	}
	if owner, err := ThreadOwner(unix.Gettid()); err != nil || owner != Process(os.Getpid()) {
		t.Errorf("owner = %d, %v", owner, err)
	}
	if p.OtherFiles() {
		t.Error("a child is said to see other files")
	}
	found := false
	all, err := Processes()
	for _, q := range all {
		found = found || q == p
	}
	if err != nil || !found {
		t.Errorf("%d is not among %v, %v", p, all, err)
	}
	select {
	case <-ended:
		t.Fatal("ended before it was killed")
	default:
	}
	cmd.Process.Kill()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("nobody told that the process ended")
	}
	cmd.Wait()
	if args, err := p.Cmdline(); err == nil {
		t.Errorf("arguments of no process: %q", args)
	}
	gone := make(chan struct{})
	p.OnExit(func() { close(gone) })
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Error("a process that had ended before was waited for")
	}
}

func TestPageOutlivesItsMapping(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page")
	p, err := CreatePage(path)
	if err != nil {
		t.Fatal(err)
	}
	p.Bytes[0] = 9
	if b, err := os.ReadFile(path); err != nil || b[0] != 9 {
		t.Errorf("read %v, %v", b[:1], err)
	}
	if b, open, err := ReadPage(path); b != 9 || !open || err != nil {
		t.Errorf("while it is open: %d, %v, %v", b, open, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if b, open, err := ReadPage(path); b != 9 || open || err != nil {
		t.Errorf("afterwards: %d, %v, %v", b, open, err)
	}
	if _, _, err := ReadPage(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if err := p.Close(); err == nil {
		t.Error("closed twice without an error")
	}
	if _, err := CreatePage(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("created over a file: %v", err)
	}
}
