package syscalls

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vitrine-vmi/vitrine/arch"
)

const minus100 = 0xffffff9c // AT_FDCWD as a 32-bit register write leaves it

// at is where the tests put their data.
const at = 0x7ffc0000

// fill puts one piece of everything into memory. The expected lines follow the
// conventions of strace 6.1, as its manual page and its output show them.
func fill(m fakeMemory) {
	m.str(at, "/etc/passwd")
	m.str(at+0x20, "with \"quotes\" and \x1b[31m\xff1")
	m.str(at+0x40, "hello, world\n")
	m.str(at+0x60, strings.Repeat("x", 40))
	m.words(at+0x100, 1, 500_000_000)
	m.words(at+0x110, 0, 0, 2, 3)
	m.put(at+0x140, []byte{2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	m.put(at+0x150, []byte("\x01\x00/run/sock\x00rest"))
	m.put(at+0x170, []byte("\x01\x00\x00abs\x00tract"))
	m.put(at+0x190, append([]byte{10, 0, 0, 53, 0, 0, 0, 0}, append(make([]byte, 15), 1, 0, 0, 0, 0)...))
	m.put(at+0x1b0, pack(uint16(16), uint16(0), uint32(7), uint32(3)))
	m.words(at+0x200, at, at+0x40, 0)
	m.words(at+0x220, at+0x40, 5, at, 4)
	m.put(at+0x240, pack(int32(3), int32(4)))
	m.words(at+0x250, 8192, ^uint64(0))
	m.put(at+0x260, pack(int32(5), uint16(1), uint16(0), int32(-1), uint16(5), uint16(0)))
	m.words(at+0x280, 1<<1|1<<14)
	m.words(at+0x288, ^uint64(1<<8))
	m.words(at+0x290, 0x80000, 0, 8)
	m.words(at+0x2b0, 0x3d0f00, 0, at, at, 0, 0, 0, 0x7fff)
	m.words(at+0x300, 0x55550000, 0x14000000, 0x7f0000, 1<<1)
	m.put(at+0x320, pack(uint32(1), uint64(42), uint32(0x2010), uint64(7)))
	m.put(at+0x340, pack(int32(16)))
	m.put(at+0x344, pack(int32(0x0300)))
	m.put(at+0x348, pack(int32(0x008b)))
	m.put(at+0x34c, pack(int32(0x137f)))
	m.put(at+0x350, pack(uint64(0x9), uint16(0)))
	stat := make([]byte, 144)
	copy(stat[24:], pack(uint32(0o100644)))
	copy(stat[48:], pack(uint64(1234)))
	m.put(at+0x400, stat)
	copy(stat[24:], pack(uint32(0o020620)))
	copy(stat[40:], pack(uint64(0x8801)))
	m.put(at+0x4c0, stat)
	for i, s := range []string{"Linux", "host\n", "6.1"} {
		m.str(arch.GVA(at+0x600+65*i), s)
	}
	m.words(at+0x700, at+0x140, 16, at+0x220, 2, 0, 0, 0x4000)
	m.words(at+0x740, 5, 1<<30-1, 5, 1<<30-2)
	m.words(at+0x760, 77)
	statx := make([]byte, 256)
	copy(statx, pack(uint32(0x203)))
	copy(statx[28:], pack(uint16(0o041755)))
	copy(statx[40:], pack(uint64(4096)))
	m.put(at+0x800, statx)
}

func TestAMD64Lines(t *testing.T) {
	m := fakeMemory{}
	fill(m)
	d := NewDecoder(Fallback(arch.AMD64), nil)
	const bad = 0x10
	for _, tc := range []struct {
		name string
		args [6]uint64
		ret  int64
		want string
	}{
		{"openat", [6]uint64{minus100, at, 0x80000, 0xdead}, 3, `openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3`},
		{"openat", [6]uint64{minus100, at, 0x80241, 0o644}, -13, `openat(AT_FDCWD, "/etc/passwd", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0644) = -1 EACCES (Permission denied)`},
		{"open", [6]uint64{at + 0x20, 2, 0}, -2, `open("with \"quotes\" and \33[31m\3771", O_RDWR) = -1 ENOENT (No such file or directory)`},
		{"open", [6]uint64{at, 0x410002, 0o600}, 3, `open("/etc/passwd", O_RDWR|O_TMPFILE, 0600) = 3`},
		{"open", [6]uint64{bad, 0x101000}, -14, `open(0x10 /* page not present */, O_RDONLY|O_SYNC) = -1 EFAULT (Bad address)`},
		{"open", [6]uint64{0, 3}, -14, `open(NULL, 0x3) = -1 EFAULT (Bad address)`},
		{"openat2", [6]uint64{3, at, at + 0x290, 24}, 4, `openat2(3, "/etc/passwd", {flags=O_RDONLY|O_CLOEXEC, mode=000, resolve=RESOLVE_BENEATH}, 24) = 4`},
		{"close", [6]uint64{3}, 0, `close(3) = 0`},
		{"read", [6]uint64{3, at + 0x40, 100}, 13, `read(3, "hello, world\n", 100) = 13`},
		{"read", [6]uint64{3, at + 0x40, 100}, 0, `read(3, "", 100) = 0`},
		{"read", [6]uint64{3, at + 0x40, 100}, -11, `read(3, 0x7ffc0040, 100) = -1 EAGAIN (Resource temporarily unavailable)`},
		{"read", [6]uint64{0, at + 0x40, 100}, -512, `read(0, 0x7ffc0040, 100) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)`},
		{"write", [6]uint64{1, at + 0x60, 40}, 40, `write(1, "` + strings.Repeat("x", 32) + `"..., 40) = 40`},
		{"write", [6]uint64{1, at + 0x60, 1 << 62}, -14, `write(1, "` + strings.Repeat("x", 32) + `"..., 4611686018427387904) = -1 EFAULT (Bad address)`},
		{"writev", [6]uint64{1, at + 0x220, 2}, 9, `writev(1, [{iov_base="hello", iov_len=5}, {iov_base="/etc", iov_len=4}], 2) = 9`},
		{"readv", [6]uint64{1, at + 0x220, 2}, 6, `readv(1, [{iov_base="hello", iov_len=5}, {iov_base="/", iov_len=4}], 2) = 6`},
		{"lseek", [6]uint64{3, ^uint64(0), 2}, 9, `lseek(3, -1, SEEK_END) = 9`},
		{"access", [6]uint64{at, 4}, 0, `access("/etc/passwd", R_OK) = 0`},
		{"stat", [6]uint64{at, at + 0x400}, 0, `stat("/etc/passwd", {st_mode=S_IFREG|0644, st_size=1234, ...}) = 0`},
		{"fstat", [6]uint64{1, at + 0x4c0}, 0, `fstat(1, {st_mode=S_IFCHR|0620, st_rdev=makedev(0x88, 0x1), ...}) = 0`},
		{"newfstatat", [6]uint64{1, at, at + 0x400, 0x1100}, -9, `newfstatat(1, "/etc/passwd", 0x7ffc0400, AT_SYMLINK_NOFOLLOW|AT_EMPTY_PATH) = -1 EBADF (Bad file descriptor)`},
		{"statx", [6]uint64{minus100, at, 0, 0x203, at + 0x800}, 0, `statx(AT_FDCWD, "/etc/passwd", 0, STATX_TYPE|STATX_MODE|STATX_SIZE, {stx_mask=STATX_TYPE|STATX_MODE|STATX_SIZE, stx_mode=S_IFDIR|S_ISVTX|0755, stx_size=4096, ...}) = 0`},
		{"mmap", [6]uint64{0, 8192, 3, 0x22, 0xffffffff, 0}, 0x7f0000000000, `mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000`},
		{"mprotect", [6]uint64{0x7f0000000000, 4096, 0}, 0, `mprotect(0x7f0000000000, 4096, PROT_NONE) = 0`},
		{"brk", [6]uint64{0}, 0x555555560000, `brk(NULL) = 0x555555560000`},
		{"mremap", [6]uint64{0x1000, 1, 2, 1, 9}, 0x1000, `mremap(0x1000, 1, 2, MREMAP_MAYMOVE) = 0x1000`},
		{"madvise", [6]uint64{0x1000, 4096, 4}, 0, `madvise(0x1000, 4096, MADV_DONTNEED) = 0`},
		{"execve", [6]uint64{at, at + 0x200, at + 0x200}, -2, `execve("/etc/passwd", ["/etc/passwd", "hello, world\n"], 0x7ffc0200 /* 2 vars */) = -1 ENOENT (No such file or directory)`},
		{"clone", [6]uint64{0x1200011, 0, 0, 0x7f10, 0}, 7, `clone(CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, NULL, NULL, 0x7f10, 0) = 7`},
		{"clone3", [6]uint64{at + 0x2b0, 88}, 7, `clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD|CLONE_SYSVSEM|CLONE_SETTLS|CLONE_PARENT_SETTID|CLONE_CHILD_CLEARTID, child_tid=0x7ffc0000, parent_tid=0x7ffc0000, exit_signal=0, stack=NULL, stack_size=0, tls=0x7fff}, 88) = 7`},
		{"wait4", [6]uint64{^uint64(0), at + 0x344, 0, 0}, 7, `wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL) = 7`},
		{"wait4", [6]uint64{7, at + 0x348, 1, 0}, 7, `wait4(7, [{WIFSIGNALED(s) && WTERMSIG(s) == SIGSEGV && WCOREDUMP(s)}], WNOHANG, NULL) = 7`},
		{"wait4", [6]uint64{7, at + 0x34c, 2, 0}, 7, `wait4(7, [{WIFSTOPPED(s) && WSTOPSIG(s) == SIGSTOP}], WUNTRACED, NULL) = 7`},
		{"wait4", [6]uint64{7, at + 0x344, 1, 0}, 0, `wait4(7, 0x7ffc0344, WNOHANG, NULL) = 0`},
		{"kill", [6]uint64{7, 9}, 0, `kill(7, SIGKILL) = 0`},
		{"kill", [6]uint64{0xffffffff, 34}, 0, `kill(-1, SIGRT_2) = 0`},
		{"rt_sigprocmask", [6]uint64{0, at + 0x280, 0, 8}, 0, `rt_sigprocmask(SIG_BLOCK, [INT TERM], NULL, 8) = 0`},
		{"rt_sigprocmask", [6]uint64{2, at + 0x288, at + 0x280, 8}, 0, `rt_sigprocmask(SIG_SETMASK, ~[KILL], [INT TERM], 8) = 0`},
		{"rt_sigaction", [6]uint64{2, at + 0x300, 0, 8}, 0, `rt_sigaction(SIGINT, {sa_handler=0x55550000, sa_mask=[INT], sa_flags=SA_RESTORER|SA_RESTART, sa_restorer=0x7f0000}, NULL, 8) = 0`},
		{"socket", [6]uint64{2, 0x80801, 6}, 3, `socket(AF_INET, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, IPPROTO_TCP) = 3`},
		{"socket", [6]uint64{16, 3, 9}, 3, `socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT) = 3`},
		{"connect", [6]uint64{3, at + 0x140, 16}, -111, `connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = -1 ECONNREFUSED (Connection refused)`},
		{"connect", [6]uint64{3, at + 0x150, 20}, 0, `connect(3, {sa_family=AF_UNIX, sun_path="/run/sock"}, 20) = 0`},
		{"bind", [6]uint64{3, at + 0x170, 12}, 0, `bind(3, {sa_family=AF_UNIX, sun_path=@"abs\0tract"}, 12) = 0`},
		{"bind", [6]uint64{3, at + 0x190, 28}, 0, `bind(3, {sa_family=AF_INET6, sin6_port=htons(53), inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = 0`},
		{"bind", [6]uint64{3, at + 0x1b0, 12}, 0, `bind(3, {sa_family=AF_NETLINK, nl_pid=7, nl_groups=0x3}, 12) = 0`},
		{"accept4", [6]uint64{3, at + 0x140, at + 0x340, 0x80000}, 4, `accept4(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, [16], SOCK_CLOEXEC) = 4`},
		{"setsockopt", [6]uint64{3, 1, 2, at + 0x240, 4}, 0, `setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [3], 4) = 0`},
		{"setsockopt", [6]uint64{3, 1, 25, at + 0x40, 5}, 0, `setsockopt(3, SOL_SOCKET, SO_BINDTODEVICE, "hello", 5) = 0`},
		{"getsockopt", [6]uint64{3, 1, 4, at + 0x240, at + 0x244}, 0, `getsockopt(3, SOL_SOCKET, SO_ERROR, [3], [4]) = 0`},
		{"getsockopt", [6]uint64{3, 1, 4, at + 0x240, at + 0x244}, -1, `getsockopt(3, SOL_SOCKET, SO_ERROR, 0x7ffc0240, 0x7ffc0244) = -1 EPERM (Operation not permitted)`},
		{"sendto", [6]uint64{3, at + 0x40, 5, 0x4000, 0, 0}, 5, `sendto(3, "hello", 5, MSG_NOSIGNAL, NULL, 0) = 5`},
		{"sendmsg", [6]uint64{3, at + 0x700, 0}, 9, `sendmsg(3, {msg_name={sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, msg_namelen=16, msg_iov=[{iov_base="hello", iov_len=5}, {iov_base="/etc", iov_len=4}], msg_iovlen=2, msg_controllen=0, msg_flags=MSG_NOSIGNAL}, 0) = 9`},
		{"socketpair", [6]uint64{1, 1, 0, at + 0x240}, 0, `socketpair(AF_UNIX, SOCK_STREAM, 0, [3, 4]) = 0`},
		{"pipe2", [6]uint64{at + 0x240, 0x80000}, 0, `pipe2([3, 4], O_CLOEXEC) = 0`},
		{"poll", [6]uint64{at + 0x260, 2, 0xffffffff}, 1, `poll([{fd=5, events=POLLIN}, {fd=-1, events=POLLIN|POLLOUT}], 2, -1) = 1`},
		{"select", [6]uint64{10, at + 0x350, 0, 0, at + 0x100}, 1, `select(10, [0 3], NULL, NULL, {tv_sec=1, tv_usec=500000000}) = 1`},
		{"epoll_wait", [6]uint64{3, at + 0x320, 8, 10}, 2, `epoll_wait(3, [{events=EPOLLIN, data=0x2a}, {events=EPOLLHUP|EPOLLRDHUP, data=0x7}], 8, 10) = 2`},
		{"epoll_ctl", [6]uint64{3, 1, 4, at + 0x320}, 0, `epoll_ctl(3, EPOLL_CTL_ADD, 4, {events=EPOLLIN, data=0x2a}) = 0`},
		{"futex", [6]uint64{0x7f00, 0x80, 2, 0, 5, 6}, -11, `futex(0x7f00, FUTEX_WAIT|FUTEX_PRIVATE_FLAG, 2, 0) = -1 EAGAIN (Resource temporarily unavailable)`},
		{"futex", [6]uint64{0x7f00, 129, 0x7fffffff, 9}, 0, `futex(0x7f00, FUTEX_WAKE|FUTEX_PRIVATE_FLAG, 2147483647) = 0`},
		{"fcntl", [6]uint64{3, 1}, 1, `fcntl(3, F_GETFD) = 0x1 (flags FD_CLOEXEC)`},
		{"fcntl", [6]uint64{3, 2, 1}, 0, `fcntl(3, F_SETFD, FD_CLOEXEC) = 0`},
		{"fcntl", [6]uint64{3, 4, 0x802}, 0, `fcntl(3, F_SETFL, O_RDWR|O_NONBLOCK) = 0`},
		{"fcntl", [6]uint64{3, 3}, 0x8802, `fcntl(3, F_GETFL) = 0x8802 (flags O_RDWR|O_NONBLOCK|O_LARGEFILE)`},
		{"fcntl", [6]uint64{3, 1}, 0, `fcntl(3, F_GETFD) = 0`},
		{"access", [6]uint64{at, 0}, 0, `access("/etc/passwd", F_OK) = 0`},
		{"ioctl", [6]uint64{1, 0x5401, 0x7ffc}, -25, `ioctl(1, TCGETS, 0x7ffc) = -1 ENOTTY (Inappropriate ioctl for device)`},
		{"ioctl", [6]uint64{1, 0x80045430 | 0xff, 0x7ffc}, 0, `ioctl(1, _IOC(_IOC_READ, 0x54, 0xff, 0x4), 0x7ffc) = 0`},
		{"nanosleep", [6]uint64{at + 0x100, 0}, 0, `nanosleep({tv_sec=1, tv_nsec=500000000}, NULL) = 0`},
		{"clock_gettime", [6]uint64{1, at + 0x100}, 0, `clock_gettime(CLOCK_MONOTONIC, {tv_sec=1, tv_nsec=500000000}) = 0`},
		{"setitimer", [6]uint64{0, at + 0x110, 0}, 0, `setitimer(ITIMER_REAL, {it_interval={tv_sec=0, tv_usec=0}, it_value={tv_sec=2, tv_usec=3}}, NULL) = 0`},
		{"utimensat", [6]uint64{minus100, at, at + 0x740, 0}, 0, `utimensat(AT_FDCWD, "/etc/passwd", [UTIME_NOW, UTIME_OMIT], 0) = 0`},
		{"prlimit64", [6]uint64{0, 3, 0, at + 0x250}, 0, `prlimit64(0, RLIMIT_STACK, NULL, {rlim_cur=8192, rlim_max=RLIM64_INFINITY}) = 0`},
		{"prctl", [6]uint64{15, at, 1, 2, 3}, 0, `prctl(PR_SET_NAME, 0x7ffc0000) = 0`},
		{"arch_prctl", [6]uint64{0x1002, 0x7f00}, 0, `arch_prctl(ARCH_SET_FS, 0x7f00) = 0`},
		{"uname", [6]uint64{at + 0x600}, 0, `uname({sysname="Linux", nodename="host\n", release="6.1", ...}) = 0`},
		{"umask", [6]uint64{0o22}, 0o77, `umask(022) = 077`},
		{"chown", [6]uint64{at, 0, 0xffffffff}, 0, `chown("/etc/passwd", 0, -1) = 0`},
		{"mknod", [6]uint64{at, 0o020666, 0x103}, 0, `mknod("/etc/passwd", S_IFCHR|0666, makedev(0x1, 0x3)) = 0`},
		{"mknod", [6]uint64{at, 0o010666, 0x103}, 0, `mknod("/etc/passwd", S_IFIFO|0666) = 0`},
		{"getcwd", [6]uint64{at, 4096}, 12, `getcwd("/etc/passwd", 4096) = 12`},
		{"sendfile", [6]uint64{1, 3, at + 0x760, 100}, 100, `sendfile(1, 3, [77], 100) = 100`},
		{"getpid", [6]uint64{1, 2, 3}, 42, `getpid() = 42`},
		{"umount2", [6]uint64{at, 2}, 0, `umount2("/etc/passwd", MNT_DETACH) = 0`},
		{"exit_group", [6]uint64{1}, 0, `exit_group(1) = ?`},
		{"nosuchcall", [6]uint64{1, 2}, -4000, `nosuchcall(0x1, 0x2, 0, 0, 0, 0) = -1 errno 4000`},
	} {
		c := &Call{Name: tc.name, Args: tc.args, Ret: tc.ret, Returned: true}
		if got := line(d, c, m, nil); got != tc.want {
			t.Errorf("\n got %s\nwant %s", got, tc.want)
		}
	}
}

// Bytes are shown as text only if all of them are.
func TestBuffers(t *testing.T) {
	d := NewDecoder(Fallback(arch.AMD64), nil)
	for in, want := range map[string]string{
		"grün":                        `"grün"`,
		"\xc8\x91 \xff\n":             `"\310\221 \377\n"`,
		"\xc8\x91\xff1":               `"\310\221\3771"`,
		"\x7fELF\x02\x01":             `"\177ELF\2\1"`,
		"say \"x\" \\":                `"say \"x\" \\"`,
		"\"\xff\\\x00":                `"\"\377\\\0"`,
		"\x00\x009":                   `"\0\0009"`,
		"\x011\xff":                   `"\0011\377"`,
		"half a \xc3":                 `"half a \303"`,
		strings.Repeat("a", 31) + "ü": `"` + strings.Repeat("a", 31) + `\303"...`,
	} {
		m := fakeMemory{}
		m.put(at, []byte(in))
		args := d.Enter(nil, &Call{Name: "write", Args: [6]uint64{1, at, uint64(len(in))}}, m, nil)
		if args[1].Text != want {
			t.Errorf("write %q shows as %s, want %s", in, args[1].Text, want)
		}
	}
}

func TestByNumber(t *testing.T) {
	d := NewDecoder(Fallback(arch.AMD64), nil)
	for nr, want := range map[int]string{
		39: "getpid() = ?", 471: "rseq_slice_yield(0, 0, 0, 0, 0, 0) = ?", 9999: "syscall_0x270f(0, 0, 0, 0, 0, 0) = ?",
		-1: "syscall_0xffffffff(0, 0, 0, 0, 0, 0) = ?",
	} {
		if got := line(d, &Call{NR: nr}, nil, nil); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestI386Lines(t *testing.T) {
	m := fakeMemory{}
	m.str(0x8000, "/etc/passwd")
	m.put(0x8100, pack(uint32(0x8000), uint32(0)))
	m.put(0x8200, pack(uint32(1), uint32(2)))
	m.put(0x8210, pack(uint64(1), uint64(2)))
	m.put(0x8300, pack(uint32(0x8000), uint32(4)))
	stat64 := make([]byte, 96)
	copy(stat64[16:], pack(uint32(0o100600)))
	copy(stat64[44:], pack(uint64(1<<33)))
	m.put(0x8400, stat64)
	d := NewDecoder(Fallback(arch.I386), nil)
	const junk = 0xdead << 32 // the upper halves of a 64-bit kernel's registers
	for _, tc := range []struct {
		name string
		args [6]uint64
		ret  int64
		want string
	}{
		{"openat", [6]uint64{junk | minus100, junk | 0x8000, 0x88000}, 3, `openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC|0x8000) = 3`},
		{"execve", [6]uint64{0x8000, 0x8100, 0x8100}, 0, `execve("/etc/passwd", ["/etc/passwd"], 0x8100 /* 1 var */) = 0`},
		{"nanosleep", [6]uint64{0x8200}, 0, `nanosleep({tv_sec=1, tv_nsec=2}, NULL) = 0`},
		{"clock_gettime64", [6]uint64{0, 0x8210}, 0, `clock_gettime64(CLOCK_REALTIME, {tv_sec=1, tv_nsec=2}) = 0`},
		{"writev", [6]uint64{1, 0x8300, 1}, 4, `writev(1, [{iov_base="/etc", iov_len=4}], 1) = 4`},
		{"stat64", [6]uint64{0x8000, 0x8400}, 0, `stat64("/etc/passwd", {st_mode=S_IFREG|0600, st_size=8589934592, ...}) = 0`},
		{"mmap2", [6]uint64{0, 4096, 1, 2, 3, 0}, junk | 0xf7f00000, `mmap2(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0) = 0xf7f00000`},
		{"fcntl64", [6]uint64{3, 13, 0x99}, junk | 0xfffffff5, `fcntl64(3, F_SETLK64, 0x99) = -1 EAGAIN (Resource temporarily unavailable)`},
		{"lseek", [6]uint64{3, 0xffffffff, 1}, 0, `lseek(3, -1, SEEK_CUR) = 0`},
		{"waitpid", [6]uint64{0xffffffff, 0, 0}, -10, `waitpid(-1, NULL, 0) = -1 ECHILD (No child processes)`},
		{"socketcall", [6]uint64{3, 0x99}, 0, `socketcall(SYS_CONNECT, 0x99) = 0`},
		{"setuid32", [6]uint64{1000}, 0, `setuid32(1000) = 0`},
	} {
		c := &Call{Name: tc.name, Args: tc.args, Ret: tc.ret, Returned: true}
		if got := line(d, c, m, nil); got != tc.want {
			t.Errorf("\n got %s\nwant %s", got, tc.want)
		}
	}
}

func TestARM64HasItsOwnNumbers(t *testing.T) {
	m := fakeMemory{}
	m.str(at, "/x")
	d := NewDecoder(Fallback(arch.ARM64), nil)
	c := &Call{NR: 56, Args: [6]uint64{minus100, at, 0x10000 | 0x4000}, Ret: 3, Returned: true}
	if got, want := line(d, c, m, nil), `openat(AT_FDCWD, "/x", O_RDONLY|O_DIRECTORY|O_DIRECT) = 3`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	c = &Call{Name: "clone", Args: [6]uint64{17, 0, 0, 0x77, 0x88}, Ret: 3, Returned: true}
	args := d.Enter(nil, c, m, nil)
	if args[3].Name != "tls" || args[4].Name != "child_tidptr" {
		t.Errorf("clone's arguments are %s, %s, want tls, child_tidptr", args[3].Name, args[4].Name)
	}
}

func TestResolver(t *testing.T) {
	m := fakeMemory{}
	m.str(at, "passwd")
	m.put(at+0x20, pack(int32(3), uint16(1), uint16(0)))
	files := fakeFiles{3: "/etc", 4: "/tmp/a>b\n", AtFDCWD: "/root"}
	d := NewDecoder(Fallback(arch.AMD64), nil)
	for _, tc := range []struct {
		c    Call
		want string
	}{
		{Call{Name: "openat", Args: [6]uint64{minus100, at}, Ret: 4, Returned: true}, `openat(AT_FDCWD</root>, "passwd", O_RDONLY) = 4</tmp/a\>b\n>`},
		{Call{Name: "openat", Args: [6]uint64{3, at}, Ret: 9, Returned: true}, `openat(3</etc>, "passwd", O_RDONLY) = 9`},
		{Call{Name: "read", Args: [6]uint64{4, at, 1}, Ret: -4, Returned: true}, `read(4</tmp/a\>b\n>, 0x7ffc0000, 1) = -1 EINTR (Interrupted system call)`},
		{Call{Name: "poll", Args: [6]uint64{at + 0x20, 1, 0}, Ret: 0, Returned: true}, `poll([{fd=3</etc>, events=POLLIN}], 1, 0) = 0`},
		{Call{Name: "fcntl", Args: [6]uint64{4, 0x406, 10}, Ret: 3, Returned: true}, `fcntl(4</tmp/a\>b\n>, F_DUPFD_CLOEXEC, 10) = 3</etc>`},
		{Call{Name: "fcntl", Args: [6]uint64{4, 3}, Ret: 3, Returned: true}, `fcntl(4</tmp/a\>b\n>, F_GETFL) = 0x3 (flags 0x3)`},
	} {
		if got := line(d, &tc.c, m, files); got != tc.want {
			t.Errorf("\n got %s\nwant %s", got, tc.want)
		}
	}
}

// A path constant that the program has never touched is not in memory when the
// call is entered, and is when it returns.
func TestUnreadableAtEntryIsReadAtReturn(t *testing.T) {
	m := fakeMemory{}
	d := NewDecoder(Fallback(arch.AMD64), nil)
	c := &Call{Name: "openat", Args: [6]uint64{minus100, at, 0}}
	args := d.Enter(nil, c, m, nil)
	var fault *arch.FaultError
	if args[1].Text != "0x7ffc0000 /* page not present */" || !errors.As(args[1].Err, &fault) || fault.Addr != at {
		t.Fatalf("at entry: %+v", args[1])
	}
	m.str(at, "/etc/passwd")
	d.Return(args, c, m, nil)
	if args[1].Err == nil {
		t.Error("Return did something before the call returned")
	}
	c.Ret, c.Returned = 3, true
	d.Return(args, c, m, nil)
	if args[1].Text != `"/etc/passwd"` || args[1].Err != nil {
		t.Errorf("at return: %+v", args[1])
	}
}

func TestExecveIsNotReadFromTheNewProgram(t *testing.T) {
	m := fakeMemory{}
	d := NewDecoder(Fallback(arch.AMD64), nil)
	c := &Call{Name: "execve", Args: [6]uint64{at, 0, 0}}
	args := d.Enter(nil, c, m, nil)
	m.str(at, "what the new program has there")
	c.Returned = true
	d.Return(args, c, m, nil)
	if !strings.HasPrefix(args[0].Text, "0x7ffc0000") {
		t.Errorf("path = %s, want the address", args[0].Text)
	}
}

func TestEntryIsWhatCounts(t *testing.T) {
	m := fakeMemory{}
	m.str(at, "first")
	d := NewDecoder(Fallback(arch.AMD64), nil)
	c := &Call{Name: "unlink", Args: [6]uint64{at}}
	args := d.Enter(nil, c, m, nil)
	m.str(at, "second")
	c.Returned = true
	d.Return(args, c, m, nil)
	if args[0].Text != `"first"` {
		t.Errorf("path = %s, want what it was at entry", args[0].Text)
	}
}

func TestLimits(t *testing.T) {
	m := fakeMemory{}
	m.str(at+0xff0, strings.Repeat("a", 8000)) // over two page borders
	pointers := make([]uint64, 2000)
	for i := range pointers {
		pointers[i] = at + 0xff0
	}
	m.words(at+0x8000, pointers...)
	m.str(at+0x20000, "abcdefgh")
	m.put(at+0x30000-4, []byte("tail"))
	d := NewDecoder(Fallback(arch.AMD64), &Options{Strings: 8, Paths: 20, Elements: 2, Args: 3})
	cut := `"` + strings.Repeat("a", 20) + `"...`
	for _, tc := range []struct {
		name string
		args [6]uint64
		want []string
	}{
		{"unlink", [6]uint64{at + 0xff0}, []string{cut}},
		{"execve", [6]uint64{at + 0xff0, at + 0x8000, at + 0x8000}, []string{cut, "[" + cut + ", " + cut + ", " + cut + ", ...]", "0x7ffc8000 /* 2000 vars */"}},
		{"write", [6]uint64{1, at + 0x20000, 8}, []string{"1", `"abcdefgh"`, "8"}},
		{"write", [6]uint64{1, at + 0x20000, 9}, []string{"1", `"abcdefgh"...`, "9"}},
		{"delete_module", [6]uint64{at + 0x20000}, []string{`"abcdefgh"`, "O_RDONLY"}},
		{"delete_module", [6]uint64{at + 0x30000 - 4}, []string{`"tail"... /* page not present */`, "O_RDONLY"}},
		{"writev", [6]uint64{1, at + 0x8000, 3}, []string{"1", `[{iov_base="aaaaaaaa"..., iov_len=2147225584}, {iov_base="aaaaaaaa"..., iov_len=2147225584}, ...]`, "3"}},
	} {
		args := d.Enter(nil, &Call{Name: tc.name, Args: tc.args}, m, nil)
		for i, want := range tc.want {
			if args[i].Text != want {
				t.Errorf("%s argument %d\n got %s\nwant %s", tc.name, i, args[i].Text, want)
			}
		}
	}
}

func TestArgvIsBoundedByText(t *testing.T) {
	m := fakeMemory{}
	m.str(at, strings.Repeat("a", 4000))
	m.words(at+0x8000, make([]uint64, 2000)...)
	for i := range 1000 {
		m.words(at+0x8000+arch.GVA(8*i), at)
	}
	d := NewDecoder(Fallback(arch.AMD64), &Options{Args: 1 << 30})
	args := d.Enter(nil, &Call{Name: "execve", Args: [6]uint64{at, at + 0x8000, 0}}, m, nil)
	if n := len(args[1].Text); n < textLimit || n > textLimit+5000 || !strings.HasSuffix(args[1].Text, ", ...]") {
		t.Errorf("argv's text has %d bytes and ends with %q", n, args[1].Text[n-10:])
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint8(0), 257, uint64(minus100), uint64(at), uint64(0), uint64(0), uint64(0), uint64(0), int64(3), []byte("/etc/passwd\x00"))
	f.Add(uint8(1), 11, uint64(at), uint64(at), uint64(at), uint64(0), uint64(0), uint64(0), int64(-2), pack(uint64(at), uint64(at)))
	f.Add(uint8(2), 212, uint64(3), uint64(at), ^uint64(0), uint64(at), ^uint64(0), uint64(at), int64(1)<<62, pack(uint64(at), uint64(1)<<63))
	f.Add(uint8(0), 46, uint64(3), uint64(at), uint64(0), uint64(0), uint64(0), uint64(0), int64(9), pack(uint64(at), uint64(99), uint64(at), ^uint64(0), uint64(0), ^uint64(0)))
	decoders := [3]*Decoder{}
	for i, a := range []arch.Arch{arch.AMD64, arch.I386, arch.ARM64} {
		decoders[i] = NewDecoder(Fallback(a), nil)
	}
	f.Fuzz(func(t *testing.T, which uint8, nr int, a0, a1, a2, a3, a4, a5 uint64, ret int64, content []byte) {
		m := fakeMemory{}
		m.put(at, content[:min(len(content), 1<<16)])
		m.put(^arch.GVA(0)&^0xfff, content[:min(len(content), 4096)]) // the last page
		m.put(0, content[:min(len(content), 4096)])
		d := decoders[which%3]
		c := &Call{NR: nr, Args: [6]uint64{a0, a1, a2, a3, a4, a5}, Ret: ret}
		args := d.Enter(nil, c, m, fakeFiles{3: string(content)})
		check(t, args)
		c.Returned = true
		d.Return(args, c, m, nil)
		check(t, args)
		if s := d.Result(c, nil).Text; s == "" {
			t.Errorf("no result for %d", ret)
		}
	})
}

// check holds for all arguments, whatever the guest has in its memory.
func check(t *testing.T, args []Arg) {
	t.Helper()
	if len(args) > maxArgs {
		t.Fatalf("%d arguments", len(args))
	}
	for _, a := range args {
		if a.Text == "" || len(a.Text) > 3*textLimit {
			t.Errorf("argument %s has a text of %d bytes", a.Name, len(a.Text))
		}
		control := func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }
		if !utf8.ValidString(a.Text) || strings.ContainsFunc(a.Text, control) {
			t.Errorf("argument %s is not fit to print: %q", a.Name, a.Text)
		}
	}
}

func BenchmarkEnterOpenat(b *testing.B) {
	m := fakeMemory{}
	m.str(at, "/etc/ld.so.cache")
	d := NewDecoder(Fallback(arch.AMD64), nil)
	c := &Call{NR: 257, Args: [6]uint64{minus100, at, 0x80000}}
	var args []Arg
	b.ReportAllocs()
	for b.Loop() {
		args = d.Enter(args[:0], c, m, nil)
	}
}
